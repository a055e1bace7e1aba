"""Whether the network is there."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request


def answers(address: str, seconds: float = 3.0) -> bool:
    """Whether a server answers at all; libraries' own retries can take minutes to find out that none does."""
    answered = threading.Event()

    def ask() -> None:
        try:
            request = urllib.request.Request(address, method="HEAD")
            with urllib.request.urlopen(request, timeout=seconds):
                answered.set()
        except urllib.error.HTTPError:
            answered.set()  # an answer, if not the one hoped for; the download itself will tell
        except Exception:  # of any type: HF_ENDPOINT may be no address, and the answer no HTTP
            pass

    # A thread, because looking a name up has no time limit of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()
