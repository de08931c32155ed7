"""One more try for what a remote store refused: stores answer 503 under load and cut connections, and mean nothing by it.

    data = patiently(lambda: system.cat_file(path))

fsspec tries again by itself for some errors of some stores; this covers the rest. What will not change is raised at once:
a name that does not exist, a permission, an answer that the request is wrong (HTTP 4xx).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")

PAUSES_SECONDS = (0.3, 1.0, 3.0)
FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, KeyError, ValueError, AssertionError)


def patiently(action: Callable[[], Answer]) -> Answer:
    """``action()``, which may be done twice without harm; tried again after each of ``PAUSES_SECONDS``.

    Raises what its last try raised.
    """
    for pause in PAUSES_SECONDS:
        try:
            return action()
        except Exception as error:
            if isinstance(error, FINAL) or 400 <= getattr(error, "status", 0) < 500:
                raise
        time.sleep(pause)
    return action()
