"""What could not be used, by cause, and how much of it is too much. Layer 1; no torch.

A sample that cannot be used is never an exception that ends the run and never silence: it is a ``BadSample`` where it
is found, a ``Drop`` in the batch that had to do without it, and a number in the ``DropBudget`` of the run.

    budget = DropBudget()
    for batch in train_batches(...):
        budget.add(len(batch.keys), batch.drops, batch.sources)
        budget.check(cfg.data.max_bad_fraction)     # BudgetExceeded, with causes, counts and examples
    budget.totals                                   # Counter({"image-undecodable": 3, "caption-empty": 1})
    budget.mix(3)                                   # (0.6, 0.3, 0.1): what the batches were really made of

Over several ranks: ``DropBudget.merged(all_gather_object(budget)).check(...)`` gives the same answer everywhere.

Causes: image-missing, image-empty, image-undecodable, image-too-large, caption-missing, caption-empty,
caption-not-utf8, caption-too-long, json-invalid, label-invalid, sample-too-large, tar-corrupt, read-failed; and
``filtered``, which is counted but not held against the budget: the source's own filters asked for it.

Every rank reports the 1st, 2nd, 4th, 8th, ... drop of each cause and source as it comes, so that a log stays readable
whatever happens.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.errors import BudgetExceeded, DataError

log = logging.getLogger(__name__)

FILTERED = "filtered"

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
    source: int = 0

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
        self.by_source: Counter[tuple[int, str]] = Counter()
        self.kept_by_source: Counter[int] = Counter()
        self.examples: dict[str, list[Drop]] = {}

    @property
    def num_dropped(self) -> int:
        """Drops of all causes but filters."""
        return self.totals.total() - self.totals[FILTERED]

    def add(self, num_kept: int, drops: Iterable[Drop] = (), sources: Iterable[int] = ()) -> None:
        """Count one batch: the samples it holds, those that it had to replace, and the source of each that it holds."""
        self.num_kept += num_kept
        self.kept_by_source.update(sources)
        for drop in drops:
            self.totals[drop.cause] += 1
            self.by_source[drop.source, drop.cause] += 1
            examples = self.examples.setdefault(drop.cause, [])
            if len(examples) < EXAMPLES_PER_CAUSE and drop not in examples:
                examples.append(drop)
            count = self.by_source[drop.source, drop.cause]
            if drop.cause != FILTERED and count & (count - 1) == 0:
                log.warning("sample not used, the %d. of its kind from source %d: %s", count, drop.source, drop)

    def mix(self, num_sources: int) -> tuple[float, ...]:
        """The fraction of the kept samples that came from each source; zeros before anything was counted."""
        total = self.kept_by_source.total()
        return tuple(self.kept_by_source[number] / max(1, total) for number in range(num_sources))

    @staticmethod
    def merged(budgets: Iterable[DropBudget]) -> DropBudget:
        """The sum over ranks; keeps the first examples in rank order."""
        total = DropBudget()
        for budget in budgets:
            total.num_kept += budget.num_kept
            total.totals.update(budget.totals)
            total.by_source.update(budget.by_source)
            total.kept_by_source.update(budget.kept_by_source)
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
            sources = {number: n for (number, name), n in sorted(self.by_source.items()) if name == cause}
            split = f" ({', '.join(f'{n} from source {number}' for number, n in sources.items())})" if len(sources) > 1 else ""
            lines.append(f"  {cause}: {count}{split}, for example {where}")
        return "\n".join(lines)
