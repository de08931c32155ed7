"""Several ranks inside an ordinary pytest function.

    def check(world, scale):                      # a module-level function: it travels to the ranks by name
        return dist.all_reduce_sum(torch.ones(1) * scale).item()

    def test_sum():
        assert run_ranks(check, 3, 2.0) == [6.0, 6.0, 6.0]

Ranks are processes in a gloo group that meet over a file (no port, so no race for one). They are forked from a server that
has torch and DeepSpeed imported and does nothing else, so a rank starts in milliseconds. If a rank raises, its traceback
becomes the test's failure. If the whole does not finish in time, every rank writes the stack of each of its threads, all
ranks are killed, and the test fails with those stacks: a hang is a failure like any other.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import pickle
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "pipeline.losses",
        "pipeline.models.clip",
        "pipeline.engine.engine",
        # What DeepSpeed imports only when an optimizer is set up; it takes seconds, which every rank would pay again.
        "deepspeed.runtime.zero.muon.original_muon",
        "deepspeed.runtime.zero.stage3",
        "torch._inductor.compile_fx",
    ]
)


class RanksFailed(AssertionError):
    """One or more ranks raised, died, or did not finish in time; the message holds what each of them said."""


def run_ranks(fn: Callable[..., Any], world_size: int, *args: Any, timeout_seconds: float = 60) -> list[Any]:
    """Run ``fn(world, *args)`` on ``world_size`` ranks; returns each rank's (picklable) result in rank order."""
    with tempfile.TemporaryDirectory() as folder:
        ranks = []
        # Plain pickle: multiprocessing's own would share tensors' memory, which dies with the rank.
        work = pickle.dumps((fn, args))
        for rank in range(world_size):
            receiver, sender = _context.Pipe(duplex=False)
            process = _context.Process(target=_rank_main, args=(work, rank, world_size, folder, sender))
            process.start()
            sender.close()
            ranks.append((process, receiver))
        try:
            return _collect(ranks, Path(folder), time.monotonic() + timeout_seconds)
        finally:
            for process, _ in ranks:
                process.kill()
                process.join()


def _collect(ranks: list[tuple[Any, Connection]], folder: Path, deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    failures: dict[int, str] = {}
    while len(results) + len(failures) < len(ranks) and time.monotonic() < deadline:
        for rank, (process, receiver) in enumerate(ranks):
            if rank in results or rank in failures or not receiver.poll(0.02):
                continue
            try:
                ok, value = pickle.loads(receiver.recv_bytes())
            except EOFError:
                process.join(5)
                ok, value = False, f"died with exit code {process.exitcode}"
            (results if ok else failures)[rank] = value
            if not ok:  # the others may be waiting for this rank: give them a moment to say so themselves
                deadline = min(deadline, time.monotonic() + 5)
    if len(results) == len(ranks):
        return [results[rank] for rank in range(len(ranks))]
    for rank, (process, _) in enumerate(ranks):
        if rank not in results and rank not in failures and process.is_alive():
            os.kill(process.pid, signal.SIGRTMIN)  # a training takes USR1 itself
            time.sleep(0.3)
            failures[rank] = "did not finish in time; its stacks:\n" + (folder / f"stacks-{rank}").read_text()
    raise RanksFailed("\n".join(f"--- rank {rank} of {len(ranks)}: {text}" for rank, text in sorted(failures.items())))


def _rank_main(work: bytes, rank: int, world_size: int, folder: str, sender: Connection) -> None:
    import torch

    from pipeline import dist

    stacks = open(f"{folder}/stacks-{rank}", "w")  # noqa: SIM115  # open as long as the rank
    faulthandler.register(signal.SIGRTMIN, file=stacks, all_threads=True)
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    world = dist.World(rank, world_size, rank, world_size, "tests")
    try:
        dist.init(world, torch.device("cpu"), timeout_seconds=60, init_method=f"file://{folder}/rendezvous")
        fn, args = pickle.loads(work)
        sender.send_bytes(pickle.dumps((True, fn(world, *args))))
        dist.barrier()  # nobody leaves while another still talks to it
        dist.shutdown()
    except BaseException:
        sender.send_bytes(pickle.dumps((False, traceback.format_exc())))
        os._exit(1)
