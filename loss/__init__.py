"""One class, one formula; all computed in fp32 (or wider) whatever the autocast."""
