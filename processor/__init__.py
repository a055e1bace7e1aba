"""The stages, the loop that runs them, and evaluation."""
