"""What a file that cannot be read as tensors is instead, and how to fix it."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path

# How a file begins that holds something else -> what it is, and how to get what is wanted.
BEGINNINGS = {
    rb"\Z": "is empty; was the download or copy complete?",
    rb"version https://git-lfs": "is a git-lfs pointer; fetch the file itself (git lfs pull)",
    rb"(?i)\s*(<!doctype|<html|<\?xml)": "is a web page; download the file itself",
    rb"PK\x03\x04|\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!|.{257}ustar": (
        "is an archive (zip, tar, gzip ...); unpack it and name the file of weights in it"
    ),
    rb"\x80[\x03-\x05]": "is a pickle that torch.save did not write, and is not loaded; save its tensors with that",
    rb"[^\x00-\x08\x0e-\x1f]{8,}\Z": "is a text file, not weights",
}


def why_unreadable(path: Path, error: Exception) -> str:
    """The message about a file that torch or safetensors refused with `error`; nothing in it is executed."""
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror or error})"
    with open(path, "rb") as file:
        start = file.read(512)
    saved = False  # an archive by torch.save, whose checksums have been compared
    if start.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(path) as archive:
            saved = any(name.endswith("/data.pkl") for name in archive.namelist())
    for beginning, what in BEGINNINGS.items():
        if not saved and re.match(beginning, start, re.DOTALL):
            return what
    refused = re.search(r"GLOBAL (\S+)", str(error))  # torch names the first that is neither tensor nor plain type
    if isinstance(error, pickle.UnpicklingError) and (saved or refused):
        what = refused[1] if refused else "a pickle of unusual instructions (of protocol 4 or later)"
        return (
            f"holds {what}{'' if saved else ' (or is damaged)'}, and is not loaded, because anything but "
            "tensors and plain types can run code. If you trust its source, save its tensors alone: python -c "
            f"\"import torch; torch.save(torch.load('{path}', 'cpu', weights_only=False)['state_dict'], "
            f"'{path.stem}_tensors.pth')\" (their key in place of ['state_dict'], .state_dict() of a whole module)"
        )
    return f"cannot be read: damaged or truncated ({type(error).__name__})"
