"""The demo, and all that draws its data sets and trains its CLIP."""
