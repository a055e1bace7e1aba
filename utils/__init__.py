"""Floor 1: records, files, devices, metrics; imports only tables of `configs`."""
