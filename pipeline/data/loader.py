"""Batches for training: ``train_batches`` is the whole interface between stored shards and the training loop. Layer 2.

    batches = train_batches(cfg.data, cfg.augment, image_size=64, tokenizer=tokenizer, world_rank=0, world_size=2,
                            global_batch_size=256, seed=cfg.seed, start_step=state.step, total_steps=cfg.train.steps)
    for batch in batches:                       # exactly total_steps - start_step of them
        batch = batch.to(device)                # see batches.py for what it holds
        budget.add(len(batch.keys), batch.drops, batch.sources)

One torch DataLoader serves the whole run: what it calls an index is a ``Task``, this rank's rows of one global batch, so
that one worker builds one whole batch, batches come back in order whatever the number of workers, and nothing restarts
or stalls where one epoch ends and the next begins. Resuming is starting the list of tasks at another step.

A task also names the rows that the same worker will be given next, so that it can have their bytes brought near while it
works on these: with remote shards, decoding and waiting overlap.

A worker that dies (out of memory, killed for standing still) costs time, not the run: batches are pure functions of their
task, so the loader starts new workers at the step that is due. Shapes: B pairs per rank and step.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from pipeline.config import AugmentConfig, DataConfig, micro_batch_size
from pipeline.data import plan
from pipeline.data.batches import Batch, TrainBatches
from pipeline.data.mixture import Rows, RunPlan
from pipeline.data.sources import Sources, open_sources, run_plan
from pipeline.data.stalls import IDLE, Board, StallWatch
from pipeline.data.tokenizer import Tokenizer
from pipeline.errors import DataError, PipelineError

log = logging.getLogger(__name__)

MAX_RESTARTS = 3
"""Times that workers are started again before it is given up; a thousand good steps clear the account."""
GOOD_STEPS = 1000


def train_batches(
    data: DataConfig,
    augment: AugmentConfig,
    *,
    image_size: int,
    tokenizer: Tokenizer,
    world_rank: int,
    world_size: int,
    global_batch_size: int,
    seed: int,
    start_step: int,
    total_steps: int,
) -> Iterator[Batch]:
    """This rank's batches for steps ``start_step .. total_steps - 1``.

    Over the ranks they concatenate to the same global batches for every ``world_size``, number of workers, and start.

    Raises:
        ConfigError: the global batch does not divide over the ranks, the seed is negative, or weights make no sense.
        DataError: at the call, when the shards cannot be opened or hold no usable samples; later, when a shard is not what
            its manifest says, when for one place in a batch too many samples in a row could not be used, or when loader
            processes die or stand still again and again.
    """
    micro_batch_size(global_batch_size, world_size)
    plan.generator(seed)
    sources = open_sources(data)
    table = sources.preflight()
    order = run_plan(data, sources, seed=seed, global_batch_size=global_batch_size, total_steps=total_steps)
    if world_rank == 0:
        parts = zip(sources.names, order.epochs(total_steps), strict=True)
        over_the_run = "; ".join(f"{name} {share:.1%}, {epochs:.4g} epochs" for name, (share, epochs) in parts)
        log.info("training data:\n%s\nover %d steps: %s", table, total_steps, over_the_run)
    make = TrainBatches(sources, augment, image_size, tokenizer, data.max_image_pixels, seed)
    board = Board(data.workers_per_rank)
    tasks = _Tasks(order, world_rank, world_size, start_step, total_steps, ahead=max(1, data.workers_per_rank))
    dog = StallWatch(board, world_rank, stall_seconds=data.stall_seconds, limit_seconds=data.stall_limit_seconds)
    return _load(_Work(make, sources, board), tasks, data, dog)


class Task(NamedTuple):
    """The rows of one step, and those that the same worker gets next, if any."""

    rows: Rows
    ahead: Rows | None


@dataclass
class _Tasks:
    """What this rank reads in each step of the rest of the run; walked lazily in the training process."""

    order: RunPlan
    world_rank: int
    world_size: int
    start_step: int
    total_steps: int
    ahead: int

    def __iter__(self) -> Iterator[Task]:
        coming: deque[Rows] = deque()
        for step in range(self.start_step, self.total_steps):
            coming.append(self.order.rows(step, self.world_rank, self.world_size))
            if len(coming) > self.ahead:
                yield Task(coming.popleft(), coming[-1])
        while coming:
            yield Task(coming.popleft(), None)


class _Work(Dataset["Batch | PipelineError"]):
    """Does one task: brings the bytes near, builds the batch, and says on the board what it is doing."""

    def __init__(self, make: TrainBatches, sources: Sources, board: Board) -> None:
        self._make, self._sources, self._board = make, sources, board
        self._step, self._prepared = IDLE, IDLE
        sources.watch(self._note)

    def __getitem__(self, task: Task) -> Batch | PipelineError:
        self._step = task.rows.step
        try:
            for rows in (task.rows, task.ahead):
                if rows is not None and rows.step > self._prepared:
                    self._sources.prepare(rows.index_B.tolist())
                    self._prepared = rows.step
            return self._make[task.rows]
        except PipelineError as error:
            return error
        finally:
            self._step = IDLE
            self._note("", "")

    def _note(self, shard: str, key: str) -> None:
        info = get_worker_info()
        if info is not None:
            self._board.at(info.id, self._step, f"{shard}, {key}")


class _WorkersLost(Exception):
    """Loader processes died; the message is torch's."""


def _load(work: _Work, tasks: _Tasks, data: DataConfig, dog: StallWatch) -> Iterator[Batch]:
    step = first_step = tasks.start_step
    restarts: list[int] = []
    with dog:
        while step < tasks.total_steps:
            tasks.start_step = step
            try:
                for item in _once(work, tasks, data, dog):
                    if isinstance(item, PipelineError):
                        raise item
                    yield item
                    step += 1
            except _WorkersLost as lost:
                restarts = [at for at in restarts if at > step - GOOD_STEPS] + [step]
                why = dog.killed.pop() if dog.killed else str(lost)
                dog.killed.clear()
                if step == first_step or len(restarts) > MAX_RESTARTS:
                    often = f"{len(restarts)} times within {GOOD_STEPS} steps"
                    when = "before the first batch" if step == first_step else often
                    raise DataError(
                        f"loader processes of rank {tasks.world_rank} were lost {when}: {why}; check that memory and /dev/shm "
                        "suffice (data.workers_per_rank, data.prefetch_batches) and that shards can be read in time "
                        "(data.stall_limit_seconds)"
                    ) from lost
                log.warning("rank %d: %s; starting new workers at step %d", tasks.world_rank, why, step + 1)


def _once(work: _Work, tasks: _Tasks, data: DataConfig, dog: StallWatch) -> Iterator[Batch | PipelineError]:
    """The batches of these tasks from one set of worker processes.

    Raises:
        _WorkersLost: some of them died.
    """
    num_workers = data.workers_per_rank
    loader = DataLoader(
        work,
        batch_size=None,
        sampler=tasks,
        collate_fn=unchanged,
        num_workers=num_workers,
        prefetch_factor=data.prefetch_batches if num_workers else None,
        multiprocessing_context="fork" if num_workers else None,  # the board and open files are inherited
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # torch draws a seed for its workers; not from the generator that dropout uses
        pin_memory=torch.cuda.is_available(),
    )
    answer = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    if threading.current_thread() is threading.main_thread() and answer is not None:
        # torch's own answer to a worker's death is to raise out of whatever the training process happens to be doing.
        signal.signal(signal.SIGCHLD, answer)
    for step in range(tasks.start_step, tasks.total_steps):
        try:
            with dog.waiting(step):
                item = next(batches)
        except RuntimeError as error:
            if "DataLoader worker (pid" not in str(error):
                raise  # a defect in a worker, with its traceback
            raise _WorkersLost(str(error)) from error
        yield item


def unchanged(item: Any) -> Any:
    """In place of torch's collation, which would take the batch apart."""
    return item


def start_worker(worker: int) -> None:
    """Set up a loader process: one thread of computation, and deaf to signals meant for the training process.

    Slurm sends its warning (USR1, USR2) and its TERM to every process of a job step. The training process answers them
    by finishing the step and saving, for which it needs its workers. So a worker ignores them, except for a TERM from
    its own parent, which is how torch and multiprocessing end it.
    """
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    # A thread waits for TERM, because only sigwaitinfo tells who sent it; blocked signals stay pending until then.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_parent_says, args=(os.getppid(),), daemon=True).start()


def _end_when_parent_says(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
