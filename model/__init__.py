"""Towers, prompts, heads and the network made of them."""
