"""Figures of log records."""

from __future__ import annotations

from pathlib import Path

from pipeline.data.drops import DropBudget
from pipeline.watching.figures import drop_figures, eval_figures, keys_digest
from tests.runs import run_config


def test_digests_of_ranks_add_up_to_that_of_all_whatever_their_order() -> None:
    whole = keys_digest(["a", "b", "c", "d"])
    assert (keys_digest(["c", "a"]) + keys_digest(["d", "b"])) % 2**64 == whole
    assert keys_digest(["a", "b", "c", "e"]) != whole and 0 < whole < 2**64


def test_numbers_of_an_evaluation_have_names() -> None:
    result = {"set": "/x/emoji", "zero_shot": {"accuracy@1": 0.5, "n": 4}, "protocol": "p", "done": True}
    assert eval_figures([result]) == {"emoji/zero_shot/accuracy@1": 0.5, "emoji/zero_shot/n": 4.0}


def test_a_mixture_logs_each_source_s_share(tmp_path: Path) -> None:
    drops = DropBudget()
    drops.add(4, (), (0, 0, 0, 1))
    assert drop_figures(drops, run_config(tmp_path)) == {"dropped": 0}
    sources = [{"path": "a", "name": "one"}, {"path": "b", "name": "two"}]
    mixed = run_config(tmp_path, data={"mixture": sources})
    assert drop_figures(drops, mixed) == {"dropped": 0, "mix/one": 0.75, "mix/two": 0.25}
