"""An exponential moving average of the weights, in fp32, spread over ranks exactly as the optimizer's own state.

    average.update(skipped)   # after a step: a = d a + (1 - d) w, or nothing where the step was skipped

Each rank averages the numbers that it updates, so the average costs 4 bytes per parameter over all ranks together (at stage 0,
where nothing is sharded, on each of them) and no communication. d starts low and rises to ``engine.ema_decay``, so that the
initial weights are soon forgotten: d_t = min(ema_decay, (1 + t) / (10 + t)) after t updates.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from pipeline.engine.state import Group, OptimizerState, pieces
from pipeline.errors import ConfigError
from pipeline.pieces import Reader


class WeightAverage:
    """The averages of this rank's share of the trainable weights; frozen ones and buffers are their own average."""

    def __init__(self, state: OptimizerState, decay: float) -> None:
        """Start from the weights as they are.

        Raises:
            ConfigError: the weights are kept on a disk, where an average would have to be read and written at every step.
        """
        if state.on_disk:
            raise ConfigError("engine.ema_decay with engine.offload on a disk: use engine.offload = cpu, or no average")
        self._state, self._decay = state, decay
        self._weights = [group.flat.detach() for group in state.groups]
        self._averages = [weight.clone() for weight in self._weights]
        self._of = {id(group.flat): average for group, average in zip(state.groups, self._averages, strict=True)}
        self.updates = 0
        """Steps that the average was offered, skipped ones included: the host does not know which were."""

    def of(self, group: Group) -> Tensor:
        """The averages of a group's tensor, flat."""
        return self._of[id(group.flat)].view(-1)

    @torch.no_grad()
    def update(self, skipped: Tensor) -> None:
        """Take the weights after a step into account, unless ``skipped`` (0-dim on the device) is 1; nothing waits for it."""
        share = (1.0 - decay_at(self.updates, self._decay)) * (1.0 - skipped.to(self._averages[0].device))
        torch._foreach_lerp_(self._averages, self._weights, [share] * len(self._averages))
        self.updates += 1

    @torch.no_grad()
    def restore(self, reader: Reader) -> None:
        """Continue a saved average; where there is none, start from the weights that have just been restored."""
        self.updates = int(reader.scalars["ema_updates"])
        if "ema" not in reader.kinds():
            self.updates = 0
            torch._foreach_copy_(self._averages, self._weights)
            logging.getLogger("unisphere").warning("the checkpoint has no averaged weights; the average starts here")
            return
        for group in self._state.groups:
            for piece in pieces(group, {"ema": self.of(group)}):
                reader.fill(piece)


def decay_at(updates: int, decay: float) -> float:
    """How much of the old average the next update keeps, after so many updates.

    >>> [round(decay_at(t, 0.999), 3) for t in (0, 10, 100, 100_000)]
    [0.1, 0.55, 0.918, 0.999]
    """
    return min(decay, (1 + updates) / (10 + updates))
