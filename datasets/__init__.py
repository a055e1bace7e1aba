"""Readers of the re-identification data sets, the synthetic one, sampling and transforms."""
