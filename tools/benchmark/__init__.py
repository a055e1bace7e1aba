"""How fast the program is, against the textbook way of doing the same."""
