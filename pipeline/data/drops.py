"""What could not be used, by cause, and how much of it is too much. Layer 1; no torch.

A sample that cannot be used is never an exception that ends the run and never silence: it is a ``BadSample`` where it
is found, a ``Drop`` in the batch that had to do without it, and a number in the ``DropBudget`` of the run.

    budget = DropBudget()
    for batch in train_batches(...):
        budget.add(len(batch.keys), batch.drops)
        budget.check(cfg.data.max_bad_fraction)     # BudgetExceeded, with causes, counts and examples
    budget.totals                                   # Counter({"image-undecodable": 3, "caption-empty": 1})

Over several ranks: ``DropBudget.merged(all_gather_object(budget)).check(...)`` gives the same answer everywhere.

Causes: image-missing, image-empty, image-undecodable, image-too-large, caption-missing, caption-empty,
caption-not-utf8, json-invalid, label-invalid, sample-too-large, tar-corrupt, read-failed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.errors import BudgetExceeded, DataError

GRACE_SAMPLES = 1000
"""The first samples share one allowance: one bad image in the first batch of 64 is not yet a fraction of 1/64."""

EXAMPLES_PER_CAUSE = 3


@dataclass(frozen=True)
class Drop:
    """One sample that was not used: why, where it lies, and what exactly was wrong."""

    cause: str
    shard: str
    key: str
    detail: str

    def __str__(self) -> str:
        return f"{self.cause}: {self.key} in {self.shard}: {self.detail}"


class BadSample(DataError):
    """One sample cannot be used; its neighbours may well be. Carries the ``Drop`` that describes it."""

    def __init__(self, cause: str, detail: str, *, shard: str = "?", key: str = "?") -> None:
        self.drop = Drop(cause, shard, key, detail)
        super().__init__(str(self.drop))

    def located(self, shard: str, key: str) -> BadSample:
        """The same failure with the place where it happened, for code that only saw bytes when it raised."""
        return BadSample(self.drop.cause, self.drop.detail, shard=shard, key=key)


class DropBudget:
    """Counts kept and dropped samples; ``check`` bounds the dropped fraction."""

    def __init__(self) -> None:
        self.num_kept = 0
        self.totals: Counter[str] = Counter()
        self.examples: dict[str, list[Drop]] = {}

    @property
    def num_dropped(self) -> int:
        """Drops of all causes."""
        return self.totals.total()

    def add(self, num_kept: int, drops: Iterable[Drop] = ()) -> None:
        """Count one batch: the samples it holds, and those that it had to replace."""
        self.num_kept += num_kept
        for drop in drops:
            self.totals[drop.cause] += 1
            examples = self.examples.setdefault(drop.cause, [])
            if len(examples) < EXAMPLES_PER_CAUSE and drop not in examples:
                examples.append(drop)

    @staticmethod
    def merged(budgets: Iterable[DropBudget]) -> DropBudget:
        """The sum over ranks; keeps the first examples in rank order."""
        total = DropBudget()
        for budget in budgets:
            total.num_kept += budget.num_kept
            total.totals.update(budget.totals)
            for cause, examples in budget.examples.items():
                kept = total.examples.setdefault(cause, [])
                kept += examples[: EXAMPLES_PER_CAUSE - len(kept)]
        return total

    def check(self, max_fraction: float) -> None:
        """Do nothing while dropped / (kept + dropped) is within bounds.

        Below ``GRACE_SAMPLES`` samples seen, the bound is the one for ``GRACE_SAMPLES``; a bound of 0 tolerates
        nothing.

        Raises:
            BudgetExceeded: with the count and examples (shard and key) of every cause.
        """
        num_seen = self.num_kept + self.num_dropped
        if self.num_dropped > max_fraction * max(num_seen, GRACE_SAMPLES):
            raise BudgetExceeded(
                f"{self.num_dropped} of {num_seen} samples could not be used, more than data.max_bad_fraction = "
                f"{max_fraction:.2%} allows:\n{self.summary()}\nrepair or rebuild these shards, or raise the bound"
            )

    def summary(self) -> str:
        """One line per cause, most frequent first, with examples; empty when nothing was dropped."""
        lines = []
        for cause, count in sorted(self.totals.items(), key=lambda item: (-item[1], item[0])):
            examples = self.examples.get(cause, [])
            where = "; ".join(f"{drop.key} in {drop.shard} ({drop.detail})" for drop in examples)
            lines.append(f"  {cause}: {count}, for example {where}")
        return "\n".join(lines)
