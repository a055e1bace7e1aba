"""Floor 0: records, files, devices, metrics; imports nothing else of this repository."""
