"""A page in the browser, in which a trained network is tried on pictures."""
