"""Calibration of 1:1 verification."""
