"""How many images and identities the benchmarks are published with, so that an incomplete copy is noticed.

Copies differ (some lost images, some got new ones), so a difference is something to know, not an error. None: not
stated, or stated differently in different places.
"""

from __future__ import annotations

from typing import NamedTuple


class PublishedCounts(NamedTuple):
    """A benchmark as its readers here should find it: without junk, distractors included."""

    training_images: int | None
    training_identities: int | None
    query_images: int | None  # of one trial
    gallery_images: int | None  # of one trial
    cameras: int | None  # None, too, where cameras are not labelled
    training_visible_images: int | None = None
    training_infrared_images: int | None = None


# By name of the benchmark and variant. Market-1501's folder of the gallery has 19732 files, 3819 of them junk.
PUBLISHED: dict[tuple[str, str], PublishedCounts] = {
    ("market1501", ""): PublishedCounts(12936, 751, 3368, 15913, 6),
    ("dukemtmc", ""): PublishedCounts(16522, 702, 2228, 17661, 8),
    ("occ_duke", ""): PublishedCounts(15618, 702, 2210, 17661, 8),
    ("msmt17", ""): PublishedCounts(32621, 1041, 11659, 82161, 15),
    ("msmt17", "without val"): PublishedCounts(30248, 1041, 11659, 82161, 15),
    # The data set's own ReadMe; its paper says 37781 training images.
    ("veri", ""): PublishedCounts(37778, 576, 1678, 11579, 20),
    ("VehicleID", "small"): PublishedCounts(113346, 13164, 5732, 800, None),
    ("VehicleID", "medium"): PublishedCounts(113346, 13164, None, 1600, None),
    ("VehicleID", "large"): PublishedCounts(113346, 13164, None, 2400, None),
    ("sysu_mm01", "all-search"): PublishedCounts(34167, 395, 3803, 301, 6, 22258, 11909),
    # Of a test alone, four cameras are read.
    ("sysu_mm01", "indoor-search"): PublishedCounts(34167, 395, 3803, None, None, 22258, 11909),
    **{("regdb", f"split {k}"): PublishedCounts(4120, 206, 2060, 2060, 2, 2060, 2060) for k in range(1, 11)},
}


def published_counts(name: str, variant: str = "") -> PublishedCounts | None:
    """The counts of a benchmark by its name and `Benchmark.variant`; None for data of one's own."""
    return PUBLISHED.get((name, variant))
