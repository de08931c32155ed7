"""A step in micro-batches that keeps all negatives: less memory for activations, the same loss and gradients.

Plain gradient accumulation contrasts each micro-batch with itself alone, which is another loss. Here every embedding of the
step is computed first, without activations (a forward pass under no_grad); the loss and its gradient at the embeddings are
those of the whole batch; then each micro-batch is run forward again, now with activations, and the known gradient is sent
back through it. The price is one more forward pass of the towers. (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch
Size under Memory Limited Setup".)

    micro = MicroBatches(engine, count=4)
    features = micro.forward(inputs, seed=17)
    losses = objective(features, step=step)
    micro.backward(losses.total)
    engine.step(lr)

With count = 1 there is no second forward pass. The features are leaves either way: the loss may be differentiated as often as
one likes (each term's own gradient norm, say) without touching the engine, whose hooks expect one backward pass per step.
Dropout is the same in both passes: patches are dropped by sample (``models/draws.py``), so that the number of micro-batches
does not matter, and what torch's generator draws has a seed per rank and micro-batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.engine.engine import Engine
from pipeline.features import Features, Inputs


class MicroBatches:
    """Forward and backward of one step at a time, in ``count`` micro-batches of equal size."""

    def __init__(self, engine: Engine, count: int) -> None:
        self._engine, self._count = engine, count
        self._parts: list[Inputs] = []
        self._live: Features | None = None
        """The features with their graph, where one forward pass is enough."""
        self._leaves: Features | None = None
        self._seed = 0

    def forward(self, inputs: Inputs, *, seed: int) -> Features:
        """The step's features, of all this rank's samples; as leaves.

        Args:
            inputs: their number of samples divides evenly by ``count``.
            seed: what dropout draws from in this step, at most 64 bits; the same on every rank.
        """
        self._seed = seed
        self._parts = inputs.chunk(self._count)
        with torch.set_grad_enabled(self._count == 1):
            seen = [self._run(place) for place in range(self._count)]
        self._live = seen[0] if self._count == 1 else None
        embeddings = {
            name: torch.cat([features.embeddings[name].detach() for features in seen]).requires_grad_()
            for name in seen[0].embeddings
        }
        scalars = {name: value.detach().clone().requires_grad_() for name, value in seen[0].scalars.items()}
        extras = {name: torch.cat([features.extras[name].detach() for features in seen]) for name in seen[0].extras}
        extras = {name: value.requires_grad_(value.is_floating_point()) for name, value in extras.items()}
        self._leaves = Features(embeddings, scalars, inputs.group_b, extras)
        return self._leaves

    def backward(self, loss: Tensor) -> None:
        """Bring the gradient of ``loss``, a function of the features that ``forward`` returned, to the parameters."""
        assert self._leaves is not None, "backward before forward"
        numbers = {name: value for name, value in self._leaves.extras.items() if value.requires_grad}
        leaves = {**self._leaves.embeddings, **numbers, **self._leaves.scalars}
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        grads = {name: grad for name, grad in zip(leaves, found, strict=True) if grad is not None}
        for place in range(self._count):
            features = self._live or self._run(place)
            rows = slice(place * len(features.group_b), (place + 1) * len(features.group_b))
            # Its gradient is the loss's: each embedding times what the loss says about it. The scalars count once.
            by_sample = {**features.embeddings, **features.extras}
            terms = [(z * grads[name][rows]).sum() for name, z in by_sample.items() if name in grads]
            terms += [(place == 0) * value * grads[name] for name, value in features.scalars.items() if name in grads]
            self._engine.backward(torch.stack(terms).sum(), last=place == self._count - 1)
        self._live = self._leaves = None

    def _run(self, place: int) -> Features:
        self._engine.draw_from(self._seed, place, self._count, len(self._parts[place].group_b))
        return self._engine.forward(self._parts[place])
