"""Where a step's time goes: ``unisphere train CONFIG --profile`` writes a table and a trace into ``RUN-profile/``.

    phase        seconds per step    share
    data wait              0.0021      2 %
    forward                0.0402     38 %
    gather                 0.0031      3 %     collectives within forward and loss
    loss                   0.0105     10 %
    backward               0.0391     37 %
    reduction              0.0052      5 %     collectives within backward and optimizer
    optimizer              0.0030      3 %
    log                    0.0012      1 %
    save                   0.0010      1 %     one save, spread over checkpoint.every_steps
    undisturbed            0.0940              a step of the same run without waiting for each phase

While the table is measured a phase ends when the device has finished it, and every collective is waited for: only then does a
share say what a phase costs. Normally copies and reductions overlap with computing, so a step of the run itself is shorter, as
the last line says. The trace (``trace.json``, for Perfetto or chrome://tracing) is of further steps that run as always.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline import dist
from pipeline.config import EvalConfig, LogConfig, RunConfig
from pipeline.dist import World
from pipeline.watching.pace import Pace

WARM_UP, MEASURED, UNDISTURBED, TRACED = 3, 10, 10, 3
"""Steps of each kind, in this order."""
ROWS = ("data wait", "forward", "gather", "loss", "backward", "reduction", "optimizer", "log", "save")
_COLLECTIVES_OF = {"forward": "gather", "loss": "gather", "backward": "reduction", "optimizer": "reduction"}


@dataclasses.dataclass(frozen=True)
class Profile:
    """Seconds of a step by phase, and of all of it, measured apart."""

    seconds: dict[str, float]
    step_seconds: float
    """Of a step in which each phase is waited for, save included."""
    undisturbed_seconds: float

    def table(self) -> str:
        """As text; the shares add up to what the phases explain of the step."""
        lines = [f"{'phase':12} {'seconds per step':>16} {'share':>8}"]
        for row in ROWS:
            lines.append(f"{row:12} {self.seconds[row]:16.4f} {self.seconds[row] / self.step_seconds:8.1%}")
        lines.append(f"{'sum':12} {sum(self.seconds.values()):16.4f} {self.explained:8.1%}")
        lines.append(f"{'undisturbed':12} {self.undisturbed_seconds:16.4f}")
        return "\n".join(lines) + "\n"

    @property
    def explained(self) -> float:
        """Sum of all shares: 1, but for what no phase covers."""
        return sum(self.seconds.values()) / self.step_seconds


class ProfilingPace(Pace):
    """A pace that waits for the device between phases in the steps that it measures, and traces others."""

    def __init__(self, device: torch.device, trace: Path | None) -> None:
        """``trace``: file of the trace; None writes none."""
        super().__init__()
        self._device, self._trace = device, trace
        self._boundaries: list[float] = []
        self._measuring = False
        self._totals: defaultdict[str, float] = defaultdict(float)
        self._mark, self._inside = 0.0, 0.0
        self._profiler: Any = None

    def enter(self, phase: str, step: int | None = None) -> None:
        """As every pace; also the bookkeeping of a profile."""
        if self._measuring and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        if self._measuring or self._phase == "save":
            collectives = _COLLECTIVES_OF.get(self._phase)
            if collectives is not None:
                self._totals[collectives] += self._inside
            name = "data wait" if self._phase == "data" else self._phase
            self._totals[name] += now - self._mark - (self._inside if collectives else 0.0)
        self._mark, self._inside = now, 0.0
        super().enter(phase, step)
        if phase == "data":
            self._boundary(now)
        elif phase == "save" and self._profiler is not None:
            self._stop_trace()

    def waited_for_others(self, seconds: float) -> None:
        """A collective took so long."""
        self._inside += seconds

    def _boundary(self, now: float) -> None:
        """A step ends and another begins."""
        self._boundaries.append(now)
        steps = len(self._boundaries) - 1
        self._measuring = WARM_UP <= steps < WARM_UP + MEASURED
        if steps == WARM_UP + MEASURED + UNDISTURBED and self._trace is not None:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if self._device.type == "cuda":
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._profiler = torch.profiler.profile(activities=activities)
            self._profiler.start()

    def _stop_trace(self) -> None:
        self._profiler.stop()
        self._profiler.export_chrome_trace(str(self._trace))
        self._profiler = None

    def result(self, steps_per_save: int) -> Profile:
        """What was measured; ``steps_per_save`` spreads the one save at the end (0: it counts as nothing)."""
        ends = self._boundaries
        seconds = {row: self._totals[row] / MEASURED for row in ROWS if row != "save"}
        seconds["save"] = self._totals["save"] / steps_per_save if steps_per_save else 0.0
        measured = (ends[WARM_UP + MEASURED] - ends[WARM_UP]) / MEASURED
        undisturbed = (ends[WARM_UP + MEASURED + UNDISTURBED] - ends[WARM_UP + MEASURED]) / UNDISTURBED
        return Profile(seconds, measured + seconds["save"], undisturbed)


def shortened(cfg: RunConfig) -> RunConfig:
    """The run that is profiled: as it is, from its start, in a folder of its own, for a few steps and one save."""
    steps = WARM_UP + MEASURED + UNDISTURBED + TRACED
    return dataclasses.replace(
        cfg,
        name=f"{cfg.name}-profile",
        resume_from=None,
        train=dataclasses.replace(cfg.train, steps=steps, max_starts_without_progress=0),
        optim=dataclasses.replace(cfg.optim, warmup_steps=min(cfg.optim.warmup_steps, steps)),
        checkpoint=dataclasses.replace(cfg.checkpoint, every_steps=0, every_minutes=0, upload=None, background=False),
        eval=EvalConfig(),
        log=LogConfig(every_steps=cfg.log.every_steps, tensorboard=False, peak_tflops=cfg.log.peak_tflops),
    )


def run(cfg: RunConfig, world: World, train: Callable[[RunConfig, World, Pace], None]) -> Profile:
    """Profile ``cfg``; every rank calls it. Rank 0 prints the table and writes the files.

    Args:
        train: the training loop, given a pace.
    """
    short = shortened(cfg)
    if world.is_main:
        shutil.rmtree(short.run_dir, ignore_errors=True)  # a profile starts at the start
        short.run_dir.mkdir(parents=True)
    pace = ProfilingPace(dist.pick_device(world.local_rank), short.run_dir / "trace.json" if world.is_main else None)
    with dist.timed_collectives(pace.waited_for_others):
        train(short, world, pace)
    found = pace.result(cfg.checkpoint.every_steps)
    if world.is_main:
        (short.run_dir / "profile.json").write_text(json.dumps(dataclasses.asdict(found), indent=1) + "\n", encoding="utf-8")
        print(f"{found.table()}trace: {short.run_dir / 'trace.json'}")
    return found
