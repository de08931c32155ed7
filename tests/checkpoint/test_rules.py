"""Which checkpoints stay: pure functions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.checkpoint.retention import best_step, superseded


@given(
    steps=st.sets(st.integers(1, 1000), min_size=1),
    last=st.integers(0, 5),
    every=st.integers(0, 50),
    best=st.one_of(st.none(), st.integers(1, 1000)),
)
def test_the_newest_the_round_ones_and_the_best_always_stay(steps: set[int], last: int, every: int, best: int | None) -> None:
    gone = superseded(steps, last=last, every=every, best=best)
    assert gone <= steps - {max(steps)}
    assert not any(every and step % every == 0 for step in gone) and best not in gone
    assert last == 0 or len(steps - gone) >= min(last, len(steps))
    assert last == 0 or all(step in gone or step % (every or 1001) == 0 or step == best for step in sorted(steps)[:-last])


def test_the_best_of_those_that_are_there_and_the_newest_of_equals() -> None:
    figures = {1: 0.5, 2: 0.9, 3: 0.5, 4: 0.95}
    assert best_step(figures, [1, 2, 3], highest=True) == 2
    assert best_step(figures, [1, 2, 3], highest=False) == 3
    assert best_step(figures, [7], highest=True) is None
