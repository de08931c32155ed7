"""All ranks go on, or none does.

Between two collectives each rank works alone: it reads its shards, runs its share of a model. If one rank fails there
and raises, the others would wait for it in the next collective until that times out. ``all_or_none`` closes the gap:

    rows = all_or_none(lambda: embed_my_share(...), world)      # a failure on rank 1 raises on every rank, by name
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from pipeline import dist, errors
from pipeline.dist import World
from pipeline.errors import PipelineError

T = TypeVar("T")


def all_or_none(action: Callable[[], T], world: World) -> T:
    """Run ``action`` (no collectives inside) on every rank and return its result if it succeeded everywhere.

    Raises:
        PipelineError: ``action`` raised one on some rank. The failing rank raises its own, the others one of the same
            class that carries the failing rank's number and message.
        RuntimeError: on the other ranks, if ``action`` raised anything else somewhere: a defect stops every rank.
    """
    result: T | None = None
    failure: Exception | None = None
    try:
        result = action()
    except Exception as error:  # whatever it is, the other ranks must hear of it before it goes on
        failure = error
    told = None
    if failure is not None:
        ours = isinstance(failure, PipelineError)
        told = (type(failure).__name__, str(failure)) if ours else ("", f"{type(failure).__name__}: {failure}")
    reports = dist.all_gather_object(told)
    if failure is not None:
        raise failure
    for rank, report in enumerate(reports):
        if report is not None:
            name, message = report
            known = getattr(errors, name, RuntimeError)
            raise known(f"rank {rank} of {world.size} failed: {message}")
    return result  # type: ignore[return-value]  # no failure: result holds a T
