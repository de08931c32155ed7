"""The learning rate and the "is it time" rule, at their corners."""

from __future__ import annotations

import pytest

from pipeline.schedule import is_time, lr_at


def test_warmup_reaches_the_peak_and_the_cosine_ends_at_the_floor() -> None:
    rates = [lr_at(step, peak=2.0, warmup_steps=4, total_steps=10, floor=0.5) for step in range(10)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4] == 2.0
    assert rates[7] == pytest.approx(1.25)  # half-way down
    assert all(earlier >= later for earlier, later in zip(rates[4:], rates[5:], strict=False))
    assert rates[9] > 0.5 and lr_at(10, peak=2.0, warmup_steps=4, total_steps=10, floor=0.5) == pytest.approx(0.5)


def test_no_warmup_and_all_warmup() -> None:
    assert lr_at(0, peak=1.0, warmup_steps=0, total_steps=5) == 1.0
    assert lr_at(4, peak=1.0, warmup_steps=5, total_steps=5) == 1.0


def test_is_time() -> None:
    assert [n for n in range(1, 11) if is_time(n, every=4, total_steps=10)] == [4, 8, 10]
    assert [n for n in range(1, 11) if is_time(n, every=0, total_steps=10)] == [10]
