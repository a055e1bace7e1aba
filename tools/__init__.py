"""What a user runs beside training and testing, as `python -m tools.NAME` from the checkout."""
