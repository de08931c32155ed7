"""What is dropped is counted by cause, bounded, and shown with examples."""

from __future__ import annotations

import pickle

import pytest

from pipeline.data.drops import BadSample, Drop, DropBudget
from pipeline.errors import BudgetExceeded, DataError


def drop(cause="image-undecodable", key="k1"):
    return Drop(cause, "s/x-000003.tar", key, "cannot identify image file")


def test_within_bounds_nothing_happens():
    budget = DropBudget()
    budget.add(9_900, [drop(key=str(n)) for n in range(100)])
    assert budget.num_dropped == 100
    budget.check(0.01)


def test_past_the_bound_the_message_has_counts_causes_and_examples():
    budget = DropBudget()
    budget.add(9_899, [drop(key=f"k{n}") for n in range(100)] + [drop("caption-empty", "k7")])
    with pytest.raises(BudgetExceeded) as caught:
        budget.check(0.01)
    text = str(caught.value)
    assert "101 of 10000 samples could not be used, more than data.max_bad_fraction = 1.00% allows" in text
    assert "image-undecodable: 100, for example k0 in s/x-000003.tar (cannot identify image file); k1" in text
    assert "caption-empty: 1, for example k7 in s/x-000003.tar" in text
    assert "k3 in" not in text, "three examples are enough"
    assert text.index("image-undecodable") < text.index("caption-empty"), "most frequent first"


def test_the_first_samples_share_one_allowance():
    budget = DropBudget()
    budget.add(64, [drop()] * 10)
    budget.check(0.01)
    budget.add(64, [drop()])
    with pytest.raises(BudgetExceeded, match="11 of 139 samples"):
        budget.check(0.01)


def test_a_bound_of_zero_tolerates_nothing_and_of_one_everything():
    budget = DropBudget()
    budget.check(0.0)
    budget.add(0, [drop()])
    budget.check(1.0)
    with pytest.raises(BudgetExceeded, match="1 of 1 samples"):
        budget.check(0.0)


def test_merging_equals_counting_in_one_place():
    parts = [DropBudget(), DropBudget(), DropBudget()]
    whole = DropBudget()
    for rank, budget in enumerate(parts):
        drops = [drop(key=f"{rank}-{n}") for n in range(rank + 1)] + [drop(f"cause-{rank}", "z")]
        budget.add(10, drops)
        whole.add(10, drops)
    merged = DropBudget.merged(pickle.loads(pickle.dumps(parts)))
    assert (merged.num_kept, merged.totals, merged.summary()) == (whole.num_kept, whole.totals, whole.summary())
    assert merged.num_kept == 30
    assert merged.num_dropped == 9


def test_an_unlocated_failure_gets_its_place():
    bad = BadSample("image-empty", "the image has 0 bytes").located("s/a.tar", "k")
    assert isinstance(bad, DataError)
    assert str(bad) == "image-empty: k in s/a.tar: the image has 0 bytes"


def test_filtered_samples_are_counted_but_not_held_against_the_budget():
    budget = DropBudget()
    budget.add(10, [Drop("filtered", "s", str(n), "score = 0") for n in range(5000)])
    assert budget.totals["filtered"] == 5000
    assert budget.num_dropped == 0
    budget.check(0.0)
    assert "filtered: 5000, for example 0 in s" in budget.summary()


def test_kept_and_dropped_are_split_by_source():
    left, right = DropBudget(), DropBudget()
    left.add(3, [Drop("image-empty", "a", "1", "0 bytes", source=0)], [0, 0, 1])
    right.add(1, [Drop("image-empty", "b", "2", "0 bytes", source=1)], [1])
    total = DropBudget.merged([left, right])
    assert total.mix(3) == (0.5, 0.5, 0.0)
    assert DropBudget().mix(2) == (0.0, 0.0)
    assert total.by_source == {(0, "image-empty"): 1, (1, "image-empty"): 1}
    assert "image-empty: 2 (1 from source 0, 1 from source 1), for example 1 in a" in total.summary()


def test_drops_are_reported_ever_more_rarely(caplog):
    budget = DropBudget()
    for n in range(100):
        budget.add(1, [Drop("image-empty", "shard.tar", f"key{n}", "0 bytes", source=n % 2)])
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2 * 6, "the 1st, 2nd, 4th, ... 32nd of each source"
    assert lines[0] == "sample not used, the 1. of its kind from source 0: image-empty: key0 in shard.tar: 0 bytes"
