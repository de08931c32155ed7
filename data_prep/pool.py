"""One function over many shards: in this process or several, results in order, progress on stderr.

    for result in over_shards(check, jobs, workers=4, weights=[job.num_bytes for job in jobs], unit="B"):
        total.merge(result)

Results come in the order of the jobs whoever finished first, so that what is made of them does not depend on the number
of workers. The bar shows rate and remaining time; in a log file it writes a line every fifteen seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from pipeline.errors import DataError

Job = TypeVar("Job")
Result = TypeVar("Result")


def progress(total: int, desc: str, unit: str) -> Any:
    """A tqdm bar on stderr with rate and remaining time."""
    from tqdm import tqdm

    interval = 0.2 if sys.stderr.isatty() else 15.0
    return tqdm(total=total, desc=desc, unit=unit, unit_scale=True, file=sys.stderr, mininterval=interval)


def over_shards(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    workers: int,
    weights: Sequence[int],
    desc: str = "shards",
    unit: str = "B",
) -> Iterator[Result]:
    """Yield ``function(job)`` for every job in order, from ``workers`` processes (this one, if 1).

    ``weights`` are what the bar counts. Raises what ``function`` raises, and DataError when a process dies.
    """
    with progress(sum(weights), desc, unit) as bar:
        if workers == 1 or len(jobs) <= 1:
            for job, weight in zip(jobs, weights, strict=True):
                yield function(job)
                bar.update(weight)
            return
        # spawn: a forked child would inherit the threads and sockets of remote file systems in a broken state.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context, initializer=follow_parent)
        waiting: deque[tuple[Future[Result], int]] = deque()
        try:
            for job, weight in zip(jobs, weights, strict=True):
                waiting.append((pool.submit(function, job), weight))
                if len(waiting) > 4 * workers:  # bounded: results wait in memory for the one before them
                    yield _finish(waiting, bar)
            while waiting:
                yield _finish(waiting, bar)
        except BrokenProcessPool as error:
            raise DataError("a worker process died, perhaps for lack of memory; run again with fewer --workers") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _finish(waiting: deque[tuple[Future[Result], int]], bar: Any) -> Result:
    future, weight = waiting.popleft()
    result = future.result()
    bar.update(weight)
    return result


def follow_parent() -> None:
    """Initialize a worker process: leave Ctrl-C to the parent, and end when it does, which a killed parent cannot ask for."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only worker processes run this"
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
