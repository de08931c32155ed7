"""What ranks share per step: sums over all of them, read one step late, or at once where the loop looks anyway."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.dist import World
from pipeline.watching.pulse import Beat, Pulse
from tests.distributed import run_ranks
from tests.engine.test_gate import Looks


def two_steps(world: World) -> tuple[list[Beat], list[Beat], list[Beat], dict[str, int]]:
    pulse = Pulse(torch.device("cpu"))
    with Looks() as looks:
        for step in (0, 1):
            mean = pulse.share(torch.tensor(float(world.rank)), stop=world.rank == 1 and step == 1)
            pulse.close(step + 1, torch.tensor(0.5), (~mean.isfinite()).float())
        late = pulse.read()
        rest = pulse.read(latest=True)
    return late, rest, pulse.read(latest=True), dict(looks.found)


def test_beats_are_equal_on_all_ranks_and_cost_no_look_at_the_device() -> None:
    ranks = run_ranks(two_steps, 3)
    assert ranks[0] == ranks[1] == ranks[2]
    late, rest, nothing, looks = ranks[0]
    assert late == [Beat(1, 1.0, 0.5, False, False, 0, 0)]
    assert rest == [Beat(2, 1.0, 0.5, False, False, 1, 0)]
    assert nothing == [] and looks == {}


@pytest.mark.parametrize("wish", ["stop", "save"])
def test_a_wish_brings_the_step_after_it_along(wish: str) -> None:
    """What follows is a save, which must know of every step."""
    pulse = Pulse(torch.device("cpu"))
    for step in range(3):
        pulse.share(torch.tensor(1.0), stop=step == 1 and wish == "stop", save=step == 1 and wish == "save")
        pulse.close(step + 1, torch.tensor(0.5), torch.tensor(0.0))
        assert [beat.step for beat in pulse.read()] == [[], [1], [2, 3]][step]


def one_bad_rank(world: World) -> Beat:
    pulse = Pulse(torch.device("cpu"))
    mean = pulse.share(torch.tensor(math.nan if world.rank == 1 else 1.0), stop=False)
    pulse.close(1, torch.tensor(2.0), (~mean.isfinite()).float())
    return pulse.read(latest=True)[0]


def test_one_rank_s_nan_is_everybody_s() -> None:
    assert all(math.isnan(beat.loss) and beat.skipped for beat in run_ranks(one_bad_rank, 2))


def test_what_is_forgotten_is_not_read() -> None:
    pulse = Pulse(torch.device("cpu"))
    pulse.share(torch.tensor(1.0), stop=True)
    pulse.close(1, torch.tensor(1.0), torch.tensor(0.0))
    pulse.forget()
    assert pulse.read(latest=True) == []
