"""Figures of coloured blocks, as a visible and an infrared camera see them.

Both see the same albedo, the visible one in two hues: the easiest images whose modalities have something in common, and
that a small network can learn to match in seconds. With `inverted` infrared albedo, what is light for one modality is
dark for the other: clusters of either stay as good, but the likeness of the two misleads.
"""

from __future__ import annotations

import colorsys
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

BLOCKS_VERSION = 1
GRID = (8, 4)  # blocks: rows, columns
BLOCK = 8  # pixels of a side
DARKEST, SATURATION = 0.1, 0.6
# At difficulty 1: shift in pixels, spread of the light, of its colour and of an infrared camera's gamma, noise.
SHIFT, GAIN, TINT, GAMMA, NOISE = 2, 0.15, 0.1, 0.3, 0.04
QUALITY = 95  # of JPEG


@dataclass(frozen=True)
class BlockFigure:
    """An identity."""

    albedo: np.ndarray  # [8, 4] of 0..1
    hues: np.ndarray  # [2, 3] colours of the upper and the lower half, 0..1


@dataclass(frozen=True)
class BlockCamera:
    """A camera: the colour of its light, or what it makes of infrared light."""

    tint: np.ndarray | None  # [3]; None: infrared
    gamma: float = 1.0


def sample_figure(rng: np.random.Generator) -> BlockFigure:
    """Draw an identity."""
    hues = [colorsys.hsv_to_rgb(hue, SATURATION, 1.0) for hue in rng.random(2)]
    return BlockFigure(rng.uniform(DARKEST, 1.0, GRID), np.array(hues))


def sample_block_camera(rng: np.random.Generator, *, infrared: bool, difficulty: float) -> BlockCamera:
    """Draw a camera; with difficulty 0 all of a modality are alike."""
    tint, gamma = np.exp(difficulty * TINT * rng.uniform(-1, 1, 3)), np.exp(difficulty * GAMMA * rng.uniform(-1, 1))
    return BlockCamera(None, float(gamma)) if infrared else BlockCamera(tint)


def photograph_blocks(
    figure: BlockFigure, camera: BlockCamera, rng: np.random.Generator, *, difficulty: float, inverted: bool = False
) -> bytes:
    """An image of 64 x 32 pixels (height x width) as JPEG.

    Args:
        inverted: infrared cameras see the opposite of the albedo.
    """
    if camera.tint is None:
        albedo = 1 + DARKEST - figure.albedo if inverted else figure.albedo
        blocks = np.repeat(albedo[..., None] ** camera.gamma, 3, axis=2)
    else:
        hues = np.repeat(figure.hues, GRID[0] // 2, axis=0)  # [8, 3]
        blocks = figure.albedo[..., None] * hues[:, None] * camera.tint
    pixels = np.kron(blocks, np.ones((BLOCK, BLOCK, 1)))
    reach = round(difficulty * SHIFT)
    down, right = rng.integers(0, 2 * reach + 1, 2)
    wider = np.pad(pixels, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    pixels = wider[down : down + pixels.shape[0], right : right + pixels.shape[1]]
    gain = 1 + difficulty * GAIN * rng.uniform(-1, 1)
    channels = 1 if camera.tint is None else 3  # infrared noise is grey, too
    pixels = gain * pixels + difficulty * NOISE * rng.standard_normal((*pixels.shape[:2], channels))
    buffer = io.BytesIO()
    Image.fromarray((255 * pixels.clip(0, 1)).round().astype(np.uint8)).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
