"""Floor 1: optimisers and learning rates."""
