"""Answers as HTML. Pictures stand in it, so that no file is written for them."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path

from PIL import Image

from tools.app.answers import Comparison, Found

STYLE = """
.said { font-size: 1.6rem; font-weight: 600; margin: .2rem 0 }
.same { color: #15803d } .different { color: #c2410c }
.meaning { color: var(--body-text-color-subdued); white-space: pre-line }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; margin: .8rem 0 }
.pictures figure { margin: 0; width: 9rem } .pictures img { width: 100%; border-radius: .5rem }
.pictures figcaption { font-size: .85rem; overflow-wrap: anywhere; color: var(--body-text-color-subdued) }
.pictures b { color: var(--body-text-color) }
.fault { border-left: .3rem solid #dc2626; padding: .5rem .8rem; font-weight: 600 }
"""
SAID = {"same": "one identity", "different": "two identities"}


def of_comparison(found: Comparison) -> str:
    """The score, what is decided, and the pictures."""
    decision = f', <span class="{found.decision}">{SAID[found.decision]}</span>' if found.decision else ""
    said = f'<p class="said">cosine <span data-testid="cosine">{found.cosine:.4f}</span>{decision}</p>'
    captions = ("first", "second", "first: where they agree", "second: where they agree")
    pictures = "".join(_figure(*one) for one in zip(found.pictures, captions, strict=False))
    return f'{said}<p class="meaning">{escape(found.meaning)}</p>{_row(pictures)}{_note(found.note)}'


def of_search(found: Found) -> str:
    """The query, and what was found."""
    captions = ("your picture", "where its feature comes from")
    query = "".join(_figure(*one) for one in zip(found.pictures, captions, strict=False))
    hits = "".join(
        _figure(picture, Path(hit.name).name, f"{hit.rank}. {hit.score:.4f}") for hit, picture in found.shown
    )
    return f'{_row(query)}<p class="said">most similar</p>{_row(hits)}{_note(found.note)}'


def of_fault(words: str) -> str:
    """What is wrong, in a line."""
    return f'<p class="fault" role="alert">{escape(words)}</p>'


def _row(figures: str) -> str:
    return f'<div class="pictures">{figures}</div>'


def _note(words: str | None) -> str:
    return f'<p class="meaning">{escape(words)}</p>' if words else ""


def _figure(picture: Image.Image, caption: str, title: str = "") -> str:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    head = f"<b>{escape(title)}</b><br>" if title else ""
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" alt="{escape(caption)}">'
        f"<figcaption>{head}{escape(caption)}</figcaption></figure>"
    )
