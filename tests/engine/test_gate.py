"""A step with bad numbers moves nothing, bitwise, at every stage; and asking for it costs no look at the device."""

from __future__ import annotations

import copy
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.dist import World
from pipeline.engine.gate import Gate
from tests import tiny
from tests.distributed import run_ranks
from tests.engine.test_engine import B, new_engine


def one_step(engine: Any, world: World, step: int, factor: float = 1.0, **limits: Any) -> tuple[float, float]:
    """Gradient norm and whether it was skipped, of a step whose gradients on this rank are multiplied by ``factor``."""
    inputs = tiny.share(tiny.batch(B, seed=step, num_groups=9), world.rank, world.size)
    loss = tiny.objective()(engine.forward(inputs), step=step).total
    engine.backward(loss * factor)
    norm = engine.step(1e-2, **limits)
    return norm.item(), engine.skipped.item()


def everything(engine: Any) -> list[Tensor]:
    """Copies of this rank's weights, masters, moments and step counts."""
    optimizer = engine._ds.basic_optimizer
    found = [p.detach() for p in engine.module.parameters()]
    found += [t for group in optimizer.param_groups for t in group["params"]]
    found += [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
    return [t.detach().clone() for t in found]


def bad_steps_between(world: World, stage: int, precision: str) -> dict[str, Any]:
    engine, calm = new_engine(world, stage, precision), new_engine(world, stage, precision)
    for step in range(2):
        one_step(engine, world, step)
        one_step(calm, world, step)
    before, seen = everything(engine), {}
    for name, factor in (("nan", float("nan")), ("inf", float("inf"))):
        seen[name] = one_step(engine, world, 7, factor if world.rank == world.size - 1 else 1.0)
    seen["veto"] = one_step(engine, world, 8, veto=torch.tensor(True))
    seen["large"] = one_step(engine, world, 9, max_norm=1e-3)
    seen["same"] = all(map(torch.equal, before, everything(engine)))
    seen["good"] = one_step(engine, world, 2, veto=torch.tensor(False), max_norm=1e6)
    seen["moved"] = not all(map(torch.equal, before, everything(engine)))
    one_step(calm, world, 2)
    seen["as if nothing had been"] = all(map(torch.equal, everything(calm), everything(engine)))
    return seen


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (1, "fp32"), (2, "bf16"), (3, "fp32")])
def test_bad_steps_leave_weights_and_optimizer_bitwise_unchanged(stage: int, precision: str) -> None:
    for seen in run_ranks(bad_steps_between, 2, stage, precision):
        assert seen["nan"] == seen["inf"] == (float("inf"), 1.0)
        assert all(seen[name][1] == 1.0 for name in ("nan", "inf", "veto", "large"))
        assert seen["same"] and seen["moved"] and seen["as if nothing had been"]
        assert seen["good"][1] == 0.0 and 0 < seen["good"][0] < 1e6


def test_a_bad_first_step_is_as_if_it_had_not_been() -> None:
    for stage in (0, 2):
        assert all(run_ranks(bad_first_step, 1, stage))


def bad_first_step(world: World, stage: int) -> bool:
    engine, calm = new_engine(world, stage), new_engine(world, stage)
    one_step(engine, world, 5, float("nan"))
    one_step(engine, world, 0)
    one_step(calm, world, 0)
    return all(map(torch.equal, everything(calm), everything(engine)))


class Looks(TorchDispatchMode):
    """Counts operations whose result the host waits for."""

    NAMES = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "allclose")

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        if name in self.NAMES:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def looks_of_a_step(world: World, stage: int, precision: str) -> dict[str, int]:
    engine = new_engine(world, stage, precision)
    for step in range(3):  # stage 3 compares the order of parameters over ranks in its first steps
        one_step(engine, world, step)
    inputs = tiny.share(tiny.batch(B, seed=1, num_groups=9), world.rank, world.size)
    features = engine.forward(inputs)
    with Looks() as looks:
        engine.backward((features.embeddings["image"] * features.embeddings["text"]).sum() * features.scalars["scale"].sum())
        engine.step(1e-2, veto=torch.zeros((), dtype=torch.bool))
    return dict(looks.found)


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (2, "bf16")])
def test_a_step_never_waits_for_a_number(stage: int, precision: str) -> None:
    assert run_ranks(looks_of_a_step, 2, stage, precision) == [{}, {}]


def test_a_look_is_counted() -> None:
    with Looks() as looks:
        copy.copy(torch.ones(1).sum().item())
    assert looks.found == {"_local_scalar_dense": 1}


def one_weight() -> torch.nn.Parameter:
    weight = torch.nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    return weight


def test_an_optimizer_that_cannot_be_told_is_not_called() -> None:
    weight = one_weight()
    optimizer = torch.optim.SGD([weight], lr=1.0)
    gate = Gate(optimizer, optimizer, torch.device("cpu"))
    for veto, expected in ((True, 1.0), (False, 0.0)):
        gate.arm(None, torch.tensor(veto), torch.tensor(1.0))
        optimizer.step()
        gate.settle()
        assert weight.item() == expected and gate.skipped.item() == float(veto)


@pytest.mark.parametrize(("scale", "searching"), [(4.0, True), (1.0, False)])
def test_an_overflow_of_fp16_is_a_bad_step_only_at_the_lowest_scale(scale: float, searching: bool) -> None:
    scaler = SimpleNamespace(cur_scale=scale, min_scale=1.0, raise_error_at_min_scale=True)
    wrapper = SimpleNamespace(overflow=False, loss_scaler=scaler, _global_grad_norm=2.0, dtype=torch.float16)
    gate = Gate(torch.optim.AdamW([one_weight()], fused=True), wrapper, torch.device("cpu"))
    assert not scaler.raise_error_at_min_scale
    gate.arm(None, None)
    wrapper.overflow, scaler.cur_scale = True, max(1.0, scale / 2)  # what DeepSpeed's step does
    assert gate.settle().item() == float("inf")
    assert gate.skipped.item() == 1.0 and gate.searching == searching
    gate.arm(None, None)
    wrapper.overflow = False
    assert gate.settle().item() == 2.0
    assert gate.skipped.item() == 0.0 and not gate.searching


def test_the_update_itself_clips_where_nobody_else_does() -> None:
    moved = []
    for clip_norm in (None, 0.5):
        weight = one_weight()
        optimizer = torch.optim.AdamW([weight], lr=1.0, betas=(0.0, 0.0), eps=1.0, weight_decay=0.0, fused=True)
        gate = Gate(optimizer, optimizer, torch.device("cpu"))
        gate.clip_norm = clip_norm
        gate.arm(None, None, torch.tensor(2.0))
        optimizer.step()
        moved.append(1.0 - weight.item())
    assert moved == pytest.approx([0.5, 0.2])  # g / (|g| + 1) for g = 1, and for g = 1 * 0.5 / 2
