"""Records, files, devices, metrics; imports only the tables of `configs`."""
