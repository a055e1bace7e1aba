"""Floor 2: the stages, the loop that runs them, and evaluation."""
