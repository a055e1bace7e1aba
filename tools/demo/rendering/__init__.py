"""Procedural images: a sampled subject, seen by a sampled camera, painted with PIL polygons."""
