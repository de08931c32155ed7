"""One small collective per step: what every rank must know about every other before it decides anything.

    pulse = Pulse(device)
    mean_loss = pulse.share(loss, stop=True)      # this step's only collective of its own: three numbers
    ... backward, optimizer ...
    pulse.close(step, norm, skipped)
    for beat in pulse.read(): ...                 # what all ranks now know alike

The numbers stay on the device and are copied to the host behind the step's own work, so nothing waits: ``read`` gives the steps
up to the one before the last. Where the loop looks at numbers anyway (a log record, a save) ``read(latest=True)`` gives all of
them, and so does finding a wish among the others, since a save follows. Either way each rank reads the same beats at the same
place in the loop, so decisions that rest on them agree without any further word between ranks.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline import dist


@dataclass(frozen=True)
class Beat:
    """One completed step, equal on all ranks."""

    step: int
    """Completed optimizer steps, this one included."""
    loss: float
    """Mean over ranks; not finite if any rank's is not."""
    grad_norm: float
    """Global, before clipping; infinite if any gradient of any rank is not finite."""
    skipped: bool
    """Whether the step left the weights as they were."""
    searching: bool
    """Skipped only because fp16's loss scale was too high."""
    stop: int
    """Ranks that want to stop."""
    save: int
    """Ranks that want a checkpoint."""


class Pulse:
    """Shares a step's few numbers among ranks, and hands them to the host without waiting."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._shared = torch.zeros(3, device=device)
        self._pending: deque[tuple[int, bool, Tensor, Any]] = deque()

    def share(self, loss: Tensor, *, stop: bool, save: bool = False) -> Tensor:
        """Reduce over ranks; collective.

        Args:
            loss: this rank's, 0-dim.
            stop: this rank wants to stop.
            save: this rank wants a checkpoint.

        Returns:
            The mean loss, fp32 0-dim on the device.
        """
        wishes = [torch.full((), float(wish), device=self._device) for wish in (stop, save)]
        self._shared = dist.all_reduce_sum(torch.stack([loss.detach().float(), *wishes]))
        return self._shared[0] / dist.world_size()

    def close(self, step: int, grad_norm: Tensor, skipped: Tensor, *, searching: bool = False) -> None:
        """End a step: start the copy of its numbers to the host.

        Args:
            step: completed steps, this one included.
            grad_norm: 0-dim on the device, equal on all ranks.
            skipped: 1.0 or 0.0, likewise.
            searching: skipped only because fp16's loss scale was too high.
        """
        numbers = torch.cat([self._shared, torch.stack([grad_norm, skipped])])
        arrived = None
        if self._device.type == "cuda":
            host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            host.copy_(numbers, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
            numbers = host
        self._pending.append((step, searching, numbers, arrived))

    def read(self, *, latest: bool = False) -> list[Beat]:
        """The steps that were not read yet: without the last one, unless ``latest`` or a wish is among them."""
        beats: list[Beat] = []
        while len(self._pending) > (0 if latest or any(beat.stop or beat.save for beat in beats) else 1):
            step, searching, numbers, arrived = self._pending.popleft()
            if arrived is not None:
                arrived.synchronize()
            loss, stop, save, norm, skipped = numbers.tolist()
            beats.append(Beat(step, loss / dist.world_size(), norm, skipped > 0, searching, round(stop), round(save)))
        return beats

    def forget(self) -> None:
        """Leave out what was not read: the run goes back, and those steps happen again."""
        self._pending.clear()
