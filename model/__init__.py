"""Floor 1: towers, prompts, heads and the network made of them."""
