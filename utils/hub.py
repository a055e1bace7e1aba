"""The Hugging Face Hub: released networks are fetched from it, and uploaded to it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from utils.errors import UserError, WeightsError, one_line
from utils.network import answers

PREFIX = "hf-hub:"
NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


class Repository(NamedTuple):
    """Where a network is on the Hub."""

    name: str  # user/name
    revision: str | None  # branch, tag or commit; None: the main branch


def on_hub(weight: str | Path) -> bool:
    """Whether a name of weights is of the form hf-hub:..."""
    return str(weight).startswith(PREFIX)


def repository_of(weight: str | Path) -> Repository:
    """hf-hub:user/name or hf-hub:user/name@revision -> the repository.

    Raises:
        WeightsError: it is of another form.
    """
    found = NAME.fullmatch(str(weight).removeprefix(PREFIX).replace("\\", "/"))
    if not found:
        raise WeightsError(f"{weight}: expected {PREFIX}user/name or {PREFIX}user/name@revision")
    return Repository(found["name"], found["revision"])


def fetch(weight: str | Path, files: Sequence[str], needed: Sequence[str]) -> Path:
    """The local folder with `files` of a repository: from the Hub's cache on this machine or, once, from the network.

    Args:
        needed: those of them without which it is of no use.

    Raises:
        WeightsError: they are not on this machine and cannot be fetched.
    """
    import huggingface_hub as hub  # takes a second
    from huggingface_hub.constants import ENDPOINT

    repository = repository_of(weight)
    options: dict[str, Any] = {
        "repo_id": repository.name,
        "revision": repository.revision,
        "allow_patterns": list(files),
    }
    try:
        folder = Path(hub.snapshot_download(**options, local_files_only=True))
        if all((folder / name).exists() for name in needed):
            return folder
    except Exception:  # of any type: whatever it is, it is not here
        pass
    page = f"{ENDPOINT}/{repository.name}"
    by_hand = (
        f"download {', '.join(needed)} from {page}/tree/{repository.revision or 'main'} into a folder and name that"
    )
    if not answers(page):
        raise WeightsError(f"{weight}: is not on this machine and the network does not answer; {by_hand} instead")
    try:
        folder = Path(hub.snapshot_download(**options))
    except Exception as error:  # of any type: the library's own, its client's, the operating system's
        raise WeightsError(f"{weight}: downloading failed ({one_line(error)}); {by_hand} instead") from error
    if lacking := [name for name in needed if not (folder / name).exists()]:
        raise WeightsError(f"{weight}: is no released network of this program: it has no {lacking[0]}")
    return folder


def check_login(repository: str) -> None:
    """Raise UserError if nothing could be uploaded to user/name: another name, no token, or no network."""
    from huggingface_hub import get_token
    from huggingface_hub.constants import ENDPOINT

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise UserError(f"--push {repository}: expected user/name")
    if not get_token():
        raise UserError(f"--push {repository}: nobody is logged in to the Hub; run `hf auth login`, or set HF_TOKEN")
    if not answers(ENDPOINT):
        raise UserError(f"--push {repository}: {ENDPOINT} does not answer")


def push(folder: Path, repository: str, files: Sequence[str]) -> str:
    """Upload `files` of a folder -> the repository's address. A repository that is not there is made, and is private.

    Raises:
        UserError: why it cannot be uploaded.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        page = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=list(files))
    except Exception as error:  # of any type: the library's own, its client's, the operating system's
        raise UserError(
            f"--push {repository}: {one_line(error)}; {folder} is complete: `hf upload {repository} {folder}`"
        ) from error
    return str(page)
