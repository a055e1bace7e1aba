"""Readers of the re-identification data sets, rendered ones among them, sampling and transforms."""
