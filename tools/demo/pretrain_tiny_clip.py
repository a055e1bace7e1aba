"""Pre-train the tiny CLIP on rendered people and their captions, and write its weights.

    python -m tools.demo.pretrain_tiny_clip                       # as the shipped file was made
    python -m tools.demo.pretrain_tiny_clip --steps 50 --identities 500 --out /tmp/tiny.safetensors

Images and captions come from the renderer of the synthetic data set, but identities and cameras from other random
streams: nobody of the demo's is seen here, nor any of its cameras. Contrastive training as CLIP's (Radford et al.,
2021, figure 3); at the end the trained logit scale is folded into both projections (see model/tiny_clip.py).
"""

from __future__ import annotations

import argparse
import io
import logging
import math
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tools.inference import check_output
from utils.command import answer_early, at_least, new_parser, run_script


def read_command_line(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The words of the command line."""
    parser = new_parser(__doc__)
    parser.add_argument("--identities", type=at_least(1), default=24000, help="for training (default %(default)s)")
    parser.add_argument("--steps", type=at_least(1), default=3600, help="of training (default %(default)s)")
    parser.add_argument("--batch", type=at_least(2), default=192, help="images in a batch (default %(default)s)")
    parser.add_argument("--lr", type=float, default=1.5e-3, help="learning rate (default %(default)s)")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of training (default %(default)s)")
    parser.add_argument("--processes", type=at_least(1), default=2, help="that render images (default %(default)s)")
    parser.add_argument("--out", type=Path, help="file to write (default: the file of this repository)")
    arguments = parser.parse_args(argv)
    if arguments.out:
        check_output(str(arguments.out), "--out", ".safetensors")
    return arguments


if __name__ == "__main__":  # before torch is loaded, which takes seconds
    answer_early(read_command_line)

import numpy as np
import open_clip
import torch
from PIL import Image
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from model import tiny_clip
from tools.demo.rendering.camera import sample_camera
from tools.demo.rendering.caption import caption
from tools.demo.rendering.person import sample_person
from tools.demo.rendering.scene import photograph

logger = logging.getLogger("pretrain_tiny_clip")

IDENTITY_STREAM, CAMERA_STREAM = 999, 31337  # the synthetic data set draws from others
CAMERAS, DIFFICULTY = 80, 1.1
IMAGES, CAPTIONS = 3, 6  # an identity
HELD_OUT = 1024  # identities for the score and the folding
# Prompts whose words the network must know, captions or not.
TEMPLATES = ("A photo of a X X X X person.", "A photo of a X X X X vehicle.")


def main(argv: Sequence[str] | None = None) -> None:
    args = read_command_line(argv)
    args.out = args.out or tiny_clip.FILE
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.manual_seed(args.seed)

    started = time.time()
    pixels, captions = render_identities(args.identities + HELD_OUT, args.processes)
    logger.info("%d images rendered in %.0f s", pixels.shape[0] * IMAGES, time.time() - started)
    tokens, token_ids = tokenize(captions)
    logger.info(
        "captions use %d of CLIP's %d tokens, at most %d each", len(token_ids), tiny_clip.VOCABULARY, tokens.shape[2]
    )

    clip = tiny_clip.build(vocabulary=len(token_ids))
    started, busy = time.time(), time.process_time()
    train(clip, pixels[HELD_OUT:], tokens[HELD_OUT:], steps=args.steps, batch=args.batch, lr=args.lr, seed=args.seed)
    seconds = {"wall_seconds": round(time.time() - started), "cpu_seconds": round(time.process_time() - busy)}
    score, norm_product = held_out(clip, pixels[:HELD_OUT], tokens[:HELD_OUT])
    scale = clip.logit_scale.exp().item()
    facts = {
        **{f"held_out_top1_of_{ways}": value for ways, value in score.items()},
        "logit_scale": scale,
        "norm_product_before_folding": norm_product,
        **{name: getattr(args, name) for name in ("identities", "steps", "batch", "lr", "seed")},
        **seconds,
    }
    tiny_clip.save(args.out, tiny_clip.fold_logit_scale(clip.state_dict(), norm_product), token_ids, facts)
    logger.info("%s", facts)
    logger.info("%s, %.2f MB", args.out, args.out.stat().st_size / 1e6)


# ------------------------------------------------------------------------------------------------------ images, words


def render_identities(count: int, processes: int) -> tuple[np.ndarray, list[list[str]]]:
    """Images uint8 [count, IMAGES, H, W, 3] and CAPTIONS captions for every identity."""
    with ProcessPoolExecutor(processes, initializer=_make_cameras) as pool:  # one that is killed ends all
        results = list(pool.map(_render_identity, range(count), chunksize=200))
    return np.stack([pixels for pixels, _ in results]), [captions for _, captions in results]


def _make_cameras() -> None:
    global cameras  # one set a process: they are costly to make and to send
    cameras = [sample_camera(np.random.default_rng([CAMERA_STREAM, i]), difficulty=DIFFICULTY) for i in range(CAMERAS)]


def _render_identity(identity: int) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng([IDENTITY_STREAM, identity])
    person = sample_person(rng)
    passers_by = [sample_person(rng) for _ in range(2)]
    height, width = tiny_clip.IMAGE_SIZE
    pixels = []
    for _ in range(IMAGES):
        jpeg = photograph(person, cameras[rng.integers(CAMERAS)], rng, passers_by=passers_by).jpeg
        # Re-identification resizes bicubically for training and bilinearly for testing: know both.
        resample = Image.Resampling.BICUBIC if rng.random() < 0.5 else Image.Resampling.BILINEAR
        pixels.append(np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB").resize((width, height), resample)))
    return np.stack(pixels), [caption(person, rng) for _ in range(CAPTIONS)]


def tokenize(captions: list[list[str]]) -> tuple[Tensor, Tensor]:
    """Captions -> rows [N, CAPTIONS, L] of the compact table, and the CLIP ids [V] of its rows.

    The order of ids is kept, so that the end-of-text token stays the largest.
    """
    flat = open_clip.tokenize([text for group in captions for text in group])
    extra = open_clip.tokenize(list(TEMPLATES))
    token_ids, rows = torch.cat([flat, extra]).unique(return_inverse=True)
    rows = rows[: len(flat)]
    length = int((flat > 0).sum(dim=1).max())
    return rows[:, :length].view(len(captions), -1, length), token_ids


# ------------------------------------------------------------------------------------------------------------ training


def train(clip: open_clip.CLIP, pixels: np.ndarray, tokens: Tensor, *, steps, batch, lr, seed) -> None:
    generator = Generator().manual_seed(seed)
    matrices = [p for p in clip.parameters() if p.ndim > 1]
    vectors = [p for p in clip.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
    order, hits, started = torch.empty(0, dtype=torch.long), [], time.time()
    for step in range(steps):
        if len(order) < batch:
            order = torch.randperm(len(pixels), generator=generator)
        rows, order = order[:batch], order[batch:]
        done = step / steps
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, done / 0.05) * 0.5 * (1 + math.cos(math.pi * done))
        which = torch.randint(0, IMAGES, (batch,), generator=generator)
        images = augment(normalise(pixels[rows.numpy(), which.numpy()]), generator)
        captions = tokens[rows, torch.randint(0, CAPTIONS, (batch,), generator=generator)]
        logits = (
            clip.logit_scale.clamp(max=math.log(100)).exp()
            * F.normalize(clip.encode_image(images))
            @ (F.normalize(encode_texts(clip, captions)).T)
        )
        target = torch.arange(batch)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        hits.append((logits.argmax(dim=1) == target).float().mean().item())
        if (step + 1) % 50 == 0:
            rate = (step + 1) * batch / (time.time() - started)
            logger.info(
                "step %d/%d  top-1 of %d: %.3f  %.0f images/s", step + 1, steps, batch, np.mean(hits[-50:]), rate
            )


def normalise(pixels: np.ndarray) -> Tensor:
    """uint8 [B, H, W, 3] -> float [B, 3, H, W] in -1..1, as the demo's PIXEL_MEAN and PIXEL_STD of 0.5."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def augment(
    images: Tensor, generator: Generator, *, padding: int = 3, colour: float = 0.1, erase: float = 0.3
) -> Tensor:
    """Flip, shift, colour and erase [B, 3, H, W], a draw for every image."""
    count, _, height, width = images.shape

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, generator=generator)

    images = torch.where(uniform(0, 1)[..., None] < 0.5, images.flip(3), images)
    padded = F.pad(images, [padding] * 4)
    rows = torch.randint(0, 2 * padding + 1, (count, 1), generator=generator) + torch.arange(height)
    columns = torch.randint(0, 2 * padding + 1, (count, 1), generator=generator) + torch.arange(width)
    images = padded.gather(2, rows[:, None, :, None].expand(-1, 3, -1, padded.shape[3]))
    images = images.gather(3, columns[:, None, None, :].expand(-1, 3, height, -1))
    images = images * (1 + colour * torch.randn(count, 1, 1, 1, generator=generator))
    images = images + colour * torch.randn(count, 3, 1, 1, generator=generator)
    area, aspect = height * width * uniform(0.02, 0.35), uniform(math.log(0.3), -math.log(0.3)).exp()
    box_height, box_width = (area * aspect).sqrt().clamp(max=height), (area / aspect).sqrt().clamp(max=width)
    top, left = uniform(0, 1) * (height - box_height), uniform(0, 1) * (width - box_width)
    y, x = torch.arange(height)[None, :, None], torch.arange(width)[None, None, :]
    box = (y >= top) & (y < top + box_height) & (x >= left) & (x < left + box_width) & (uniform(0, 1) < erase)
    return images.masked_fill(box[:, None], 0.0)


def encode_texts(clip: open_clip.CLIP, tokens: Tensor) -> Tensor:
    """Token rows [B, L] -> features [B, E]; what open_clip does, but for texts shorter than the context."""
    length = tokens.shape[1]
    x = clip.token_embedding(tokens) + clip.positional_embedding[:length]
    x = clip.transformer(x, attn_mask=clip.attn_mask[:length, :length])
    return clip.ln_final(x[torch.arange(len(x)), tokens.argmax(dim=1)]) @ clip.text_projection


@torch.no_grad()
def held_out(clip: open_clip.CLIP, pixels: np.ndarray, tokens: Tensor) -> tuple[dict[int, float], float]:
    """Image-to-text accuracy among 256 and 1024 unseen identities, and mean |image| * |text|."""
    clip.eval()
    images = torch.cat([clip.encode_image(normalise(chunk)) for chunk in np.array_split(pixels[:, 0], 8)])
    texts = torch.cat([encode_texts(clip, chunk) for chunk in tokens[:, 0].split(128)])
    scores = {}
    for ways in (256, HELD_OUT):
        hits = [
            (F.normalize(i) @ F.normalize(t).T).argmax(dim=1) == torch.arange(len(i))
            for i, t in zip(images.split(ways), texts.split(ways), strict=True)
        ]
        scores[ways] = torch.cat(hits).float().mean().item()
    return scores, (images.norm(dim=1) * texts.norm(dim=1)).mean().item()


if __name__ == "__main__":
    sys.exit(run_script(main))
