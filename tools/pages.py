"""What figures have in common: their colours, and their files (one after the other, or pages of a PDF file)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from utils.errors import writing
from utils.files import replacing

DOTS = 200  # per inch
# Told apart by the colour-blind (Okabe and Ito, 2008).
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#000000")
_, _, GREEN, _, BLUE, VERMILION, _, BLACK = COLOURS


def write_pages(path: Path, figures: Iterable[Figure]) -> list[Path]:
    """Write figures of the kind that the suffix of `path` says, of which one at a time is in memory -> the files.

    A file is complete or as it was; without figures none is written.

    Args:
        path: of the first; the others are NAME_2.png, NAME_3.png ...; a PDF file has pages instead.

    Raises:
        UserError: a file cannot be written.
    """
    paths = []
    with writing(path), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # of file names
        if path.suffix.lower() == ".pdf":
            figures = iter(figures)
            first = next(figures, None)
            if first is not None:
                with replacing(path) as file, PdfPages(file) as pages:
                    for figure in chain([first], figures):
                        pages.savefig(figure, dpi=DOTS)
                paths.append(path)
            return paths
        for number, figure in enumerate(figures, 1):
            target = path if number == 1 else path.with_stem(f"{path.stem}_{number}")
            with replacing(target) as file:
                figure.savefig(file, format=path.suffix[1:].lower(), dpi=DOTS)
            paths.append(target)
    return paths
