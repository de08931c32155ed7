"""Averaging gradients over ranks at ZeRO stages 1 and 2: a copy, an all-reduce beside the backward pass, and a share to keep.

    reduction = Reduction(zero_optimizer, early=True)   # takes the place of DeepSpeed's hooks
    reduction.expect(last=True)                         # before each backward pass of a step
    loss.backward()                                     # each gradient goes into a bucket as it appears; full ones are sent
    reduction.finish(last=True)                         # waits, and hands this rank's share to the optimizer

DeepSpeed copies each gradient into a bucket, divides it, copies it into a message, out of it again, into a buffer of its share,
and that into another one; the Python between adds up too. Here a gradient is divided into its place in a bucket, and the bucket
is the message; what this rank updates is copied out of it, or the bucket lies there from the beginning. The layout is
DeepSpeed's own, so everything after it (norm, update, gathering of weights, checkpoints) stays as it is, and so do the results,
bitwise (``tests/engine/test_reduction.py``). Buckets leave in one fixed order, whichever gradients a rank has.

Stage 1 sums micro-batches in the parameters' gradients and sends the last one's; stage 2 (``early``) keeps no gradient: it
sends those of every micro-batch, adds up the shares, and has only a few buckets in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as torch_dist
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor, nn

_IN_FLIGHT = 2
"""Buckets that stage 2 has in memory."""
_DEEPSPEEDS_OWN = ("zero_optimization", "communication_data_type", "prescale_gradients", "data_types")
"""Settings about the reduction: a run that makes them gets DeepSpeed's."""


def applies(wrapper: Any, deepspeed: dict[str, Any]) -> bool:
    """Whether DeepSpeed's optimizer can be handed its gradients; not where it has offloaded its state, for example.

    Args:
        wrapper: DeepSpeed's optimizer.
        deepspeed: the run's own settings for DeepSpeed.
    """
    return type(wrapper) is DeepSpeedZeroOptimizer and not wrapper.cpu_offload and not set(deepspeed) & set(_DEEPSPEEDS_OWN)


class _Range(NamedTuple):
    """Numbers of a rank's share: a parameter's, or a gap where DeepSpeed aligns parameters or fills up the last rank."""

    start: int
    stop: int
    gap: bool


class _Share:
    """A group's gradients on this rank as DeepSpeed takes them: one tensor for norm and update, by number for its tools."""

    def __init__(self, flat: Tensor, ranges: list[_Range]) -> None:
        self.flat_partition, self._ranges = flat, ranges

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.flat_partition,))

    def __getitem__(self, number: int) -> Tensor:
        """What this rank has of the gradient of the group's ``number``-th parameter here, or the gap at that place."""
        return self.flat_partition[self._ranges[number].start : self._ranges[number].stop]


@dataclass
class _Bucket:
    """Neighbouring gradients of one group: numbers ``start`` to ``stop - 1`` of its flat tensor."""

    group: int
    start: int
    stop: int
    places: dict[int, tuple[int, int]]
    """By the id of a parameter: where its gradient lies in the flat tensor."""
    missing: set[int] = field(default_factory=set)
    """Ids of parameters whose gradients have not come in this pass."""
    message: Tensor | None = None
    work: Any = None


class Reduction:
    """Brings gradients of one engine's parameters to the ranks that update them."""

    def __init__(self, wrapper: Any, order: dict[int, int], *, early: bool) -> None:
        """Replace DeepSpeed's hooks on the parameters.

        Args:
            wrapper: DeepSpeed's optimizer of stage 1 or 2.
            order: a parameter's id -> its place in the model; backward passes meet them about in reverse.
            early: send every micro-batch's gradients at once and keep none (stage 2).
        """
        self._wrapper, self._early = wrapper, early
        self._process_group = wrapper.dp_process_group
        self._size, self._rank = torch_dist.get_world_size(self._process_group), torch_dist.get_rank(self._process_group)
        self._sending = self._adding = False
        self._next = self._taken = 0
        """Buckets are sent, and taken out, in the order of their list; these are the next ones."""
        self._shares: list[Tensor] = []
        self._ranges = [self._ranges_of(group) for group in range(len(wrapper.bit16_groups))]
        limit = wrapper.reduce_bucket_size
        found = [bucket for group in range(len(wrapper.bit16_groups)) for bucket in self._cut(group, limit)]
        self._buckets = sorted(found, key=lambda bucket: -min(order[key] for key in bucket.places))
        self._bucket_of = {key: bucket for bucket in self._buckets for key in bucket.places}
        self._parameters = {id(parameter): parameter for parameters in wrapper.bit16_groups for parameter in parameters}
        for handle in wrapper._grad_acc_hooks:
            handle.remove()
        for parameter in self._parameters.values():
            parameter.register_post_accumulate_grad_hook(self._arrived)

    def _cut(self, group: int, limit: int) -> list[_Bucket]:
        """Buckets of at most ``limit`` numbers, or of a single parameter, from the end of the flat tensor to its beginning."""
        parameters = self._wrapper.round_robin_bit16_groups[group]
        offsets = self._wrapper.round_robin_bit16_offsets[group]
        found: list[_Bucket] = []
        for parameter, start in zip(reversed(parameters), reversed(offsets), strict=True):
            stop = start + parameter.numel()
            if not found or found[-1].stop - start > limit:
                found.append(_Bucket(group, start, stop, {}))
            found[-1].start, found[-1].places[id(parameter)] = start, (start, stop)
        return found

    def expect(self, *, last: bool) -> None:
        """Prepare for a backward pass; ``last`` of its step."""
        self._sending = self._early or last
        if not self._sending:
            return
        self._adding = bool(self._shares)
        if not self._adding:
            self._shares = [self._new_share(group) for group in range(len(self._wrapper.bit16_groups))]
        self._next = self._taken = 0
        for bucket in self._buckets:
            bucket.missing = set(bucket.places)

    def _ranges_of(self, group: int) -> list[_Range]:
        """What this rank's share of a group consists of, in order."""
        size, found, end = int(self._wrapper.partition_size[group]), list[_Range](), 0
        low = self._rank * size
        parameters, offsets = self._wrapper.round_robin_bit16_groups[group], self._wrapper.round_robin_bit16_offsets[group]
        ranges = [(start, start + parameter.numel()) for parameter, start in zip(parameters, offsets, strict=True)]
        for start, stop in [*ranges, (low + size, low + size)]:
            for gap, (first, past) in ((True, (end, start)), (False, (start, stop))):
                first, past = max(first - low, 0), min(past - low, size)
                if first < past:
                    found.append(_Range(first, past, gap))
            end = max(end, stop)
        return found

    def _new_share(self, group: int) -> Tensor:
        """Memory for what this rank updates of a group; its gaps are zero."""
        like, size = self._wrapper.bit16_groups_flat[group], int(self._wrapper.partition_size[group])
        share = torch.empty(size, dtype=like.dtype, device=like.device)
        for part in self._ranges[group]:
            if part.gap:
                share[part.start : part.stop].zero_()
        return share

    @torch.no_grad()
    def _arrived(self, parameter: nn.Parameter) -> None:
        """A gradient is complete for this pass."""
        if not self._sending:
            return
        assert parameter.grad is not None
        bucket = self._bucket_of[id(parameter)]
        self._fill(bucket, parameter)
        bucket.missing.discard(id(parameter))
        while self._next < len(self._buckets) and not self._buckets[self._next].missing:
            self._send()

    def _fill(self, bucket: _Bucket, parameter: nn.Parameter) -> None:
        """Put a parameter's share of the average into the message; zeros where it has no gradient."""
        start, stop = bucket.places[id(parameter)]
        place = self._message(bucket)[start - bucket.start : stop - bucket.start]
        if parameter.grad is None:
            place.zero_()
        else:
            torch.div(parameter.grad.reshape(-1), self._size, out=place)
        parameter.grad = None

    def _message(self, bucket: _Bucket) -> Tensor:
        """The bucket's memory: part of this rank's share if it is all this rank's, so that nothing has to be copied."""
        if bucket.message is None:
            share, low = self._shares[bucket.group], self._rank * len(self._shares[bucket.group])
            own = low <= bucket.start and bucket.stop <= low + len(share)
            if own and not self._adding:
                bucket.message = share[bucket.start - low : bucket.stop - low]
            else:
                aligned = sum(stop - start for start, stop in bucket.places.values()) < bucket.stop - bucket.start
                new = torch.zeros if aligned else torch.empty
                bucket.message = new(bucket.stop - bucket.start, dtype=share.dtype, device=share.device)
        return bucket.message

    def _send(self) -> None:
        bucket = self._buckets[self._next]
        for key in bucket.missing:  # of no use in this pass; perhaps in an earlier micro-batch
            self._fill(bucket, self._parameters[key])
        if self._size > 1:
            bucket.work = torch_dist.all_reduce(self._message(bucket), group=self._process_group, async_op=True)
        self._next += 1
        if self._early and self._next - self._taken > _IN_FLIGHT:
            self._take()

    def _take(self) -> None:
        """Keep this rank's part of the next bucket that was sent, once it has come back."""
        bucket = self._buckets[self._taken]
        message, share = self._message(bucket), self._shares[bucket.group]
        if bucket.work is not None:
            bucket.work.wait()
        low = self._rank * len(share)
        start, stop = max(bucket.start, low), min(bucket.stop, low + len(share))
        if start < stop:
            mine, theirs = share[start - low : stop - low], message[start - bucket.start : stop - bucket.start]
            if self._adding:
                mine.add_(theirs)
            elif mine.data_ptr() != theirs.data_ptr():
                mine.copy_(theirs)
        bucket.message = bucket.work = None
        self._taken += 1

    @torch.no_grad()
    def finish(self, *, last: bool) -> None:
        """Wait for what is on its way; after the ``last`` pass of a step the optimizer has this rank's share."""
        if not self._sending:
            return
        while self._next < len(self._buckets):
            self._send()
        while self._taken < len(self._buckets):
            self._take()
        if last:
            for group, share in enumerate(self._shares):
                self._wrapper.averaged_gradients[group] = _Share(share, self._ranges[group])
            self._shares = []

    @torch.no_grad()
    def norm(self) -> Tensor:
        """The global gradient norm after ``finish``, fp32 0-dim on the device; one collective."""
        parts = [
            part
            for group, ranges in enumerate(self._ranges)
            for part in self._wrapper.averaged_gradients[group].flat_partition.split(
                [stop - start for start, stop, _ in ranges]
            )
        ]
        square = torch.stack(torch._foreach_norm(parts, 2, torch.float32)).square().sum()
        if self._size > 1:
            torch_dist.all_reduce(square, group=self._process_group)
        return square.sqrt()
