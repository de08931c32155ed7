"""What DeepSpeed's optimizers hold, as pieces of named parameters: the same description at every stage and world size.

Each ZeRO stage keeps fp32 weights and the optimizer's moments in its own flat tensors. A ``Group`` is one such tensor with the
spans of parameters inside it; everything else here is loops over groups:

    stage 0                 one tensor per parameter, whole, on every rank
    stages 1 and 2          one flat tensor per parameter group, cut into equal parts over ranks, parameters cut anywhere
    stage 3                 each parameter cut into equal parts over ranks, a rank's parts laid side by side in flat tensors

With ``engine.offload`` on a disk, a group is in memory only inside ``loaded(group)``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.pieces import Piece, Reader


@dataclass(frozen=True)
class Span:
    """Where numbers of one parameter lie in a group's tensor."""

    name: str
    shape: tuple[int, ...]
    start: int
    """First number, in the flattened parameter."""
    offset: int
    """Its place in the group's tensor."""
    length: int


@dataclass(frozen=True)
class Group:
    """One tensor that the optimizer updates."""

    flat: Tensor
    """What the optimizer's state is keyed by."""
    names: tuple[str, ...]
    """Parameters of the group on all ranks: they share a step count."""
    spans: tuple[Span, ...]
    """Those that this rank holds something of."""
    replicated: bool
    """Whether every rank holds the same."""
    number: int = 0


class OptimizerState:
    """The groups of a DeepSpeed engine, on this rank."""

    def __init__(self, ds: Any) -> None:
        self._ds, self._wrapper, self._base = ds, ds.optimizer, ds.basic_optimizer
        self._names = {id(parameter): name for name, parameter in ds.module.named_parameters()}
        self.on_disk = bool(getattr(self._wrapper, "swap_optimizer", False))
        self.groups = self._find_groups()
        if isinstance(self._base, torch.optim.AdamW) and not self.on_disk:
            self._materialise()

    def _find_groups(self) -> list[Group]:
        wrapper = self._wrapper
        if isinstance(wrapper, torch.optim.Optimizer):
            return [self._alone(p, p) for p in self._ds.module.parameters() if p.requires_grad]
        if hasattr(wrapper, "fp32_partitioned_groups_flat"):
            return self._cut_by_parameter()
        if hasattr(wrapper, "fp32_groups"):
            pairs = zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True)
            return [self._alone(low, high) for lows, highs in pairs for low, high in zip(lows, highs, strict=True)]
        return self._cut_by_flat()

    def _alone(self, parameter: nn.Parameter, master: Tensor) -> Group:
        name = self._names[id(parameter)]
        return Group(master, (name,), (Span(name, tuple(master.shape), 0, 0, master.numel()),), replicated=True)

    def _cut_by_flat(self) -> list[Group]:
        """Stages 1 and 2: DeepSpeed links each parameter to its fragment of this rank's part."""
        flats = getattr(self._wrapper, "single_partition_of_fp32_groups", None)
        flats = self._wrapper.fp32_groups_flat_partition if flats is None else flats
        groups = []
        for flat, parameters in zip(flats, self._wrapper.bit16_groups, strict=True):
            spans = []
            for parameter in parameters:
                if (mapping := parameter._hp_mapping) is not None:
                    here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
                    name = self._names[id(parameter)]
                    spans.append(Span(name, tuple(parameter.shape), here.start, there.start, here.numel))
            names = tuple(self._names[id(parameter)] for parameter in parameters)
            groups.append(Group(flat, names, tuple(spans), replicated=False))
        return groups

    def _cut_by_parameter(self) -> list[Group]:
        """Stage 3: parts of equal size, the last ones padded."""
        wrapper, groups = self._wrapper, []
        for number, (flat, parameters) in enumerate(
            zip(wrapper.fp32_partitioned_groups_flat, wrapper.fp16_groups, strict=True)
        ):
            spans, offset = [], 0
            for parameter in parameters:
                part = parameter.partition_numel()
                start = min(part * self._ds.global_rank, parameter.ds_numel)
                length = min(part, parameter.ds_numel - start)
                if length:
                    spans.append(Span(self._names[id(parameter)], tuple(parameter.ds_shape), start, offset, length))
                offset += part
            names = tuple(self._names[id(parameter)] for parameter in parameters)
            groups.append(Group(flat, names, tuple(spans), replicated=False, number=number))
        return groups

    def _materialise(self) -> None:
        """What the first step would do, now: memory is what it will be, and a snapshot before that step is complete."""
        for group in self.groups:
            step = torch.zeros((), dtype=torch.float32, device=group.flat.device)
            moments = {key: torch.zeros_like(group.flat, requires_grad=False) for key in ("exp_avg", "exp_avg_sq")}
            self._base.state[group.flat] = {"step": step, **moments}

    @contextlib.contextmanager
    def loaded(self, group: Group, *, write_back: bool = False) -> Iterator[None]:
        """Have the group's tensors in memory, and on the disk again afterwards."""
        swapped = self._is_swapped(group)
        if swapped:
            self._wrapper._optimizer_states_and_gradient_swap_in(group.number)
        yield
        if swapped and write_back:
            self._wrapper._reassign_or_swap_out_partitioned_parameters(group.number)
            self._wrapper._optimizer_states_and_gradient_swap_out(group.number)
        elif swapped:
            self._wrapper._release_swap_buffers(group.number)

    def _is_swapped(self, group: Group) -> bool:
        """Whether the group is on a disk; small ones stay in memory."""
        return self.on_disk and bool(self._wrapper._swappable_optimizer_subgroup(group.number))

    def tensors(self, group: Group) -> dict[str, Tensor]:
        """The group's fp32 weights and moments, flat, by kind."""
        state = {key: t for key, t in self._base.state[group.flat].items() if _like(t, group.flat)}
        return {"weight": group.flat.detach().view(-1), **{key: t.view(-1) for key, t in state.items()}}

    def steps(self) -> int | dict[str, int]:
        """Updates so far: one number, or by parameter where they differ (one without gradient is not updated at stage 0)."""
        states = [self._base.state[group.flat] for group in self.groups]
        counts = (
            torch.stack([state["step"].reshape(()) for state in states]).tolist() if "step" in states[0] else [0] * len(states)
        )
        by_name = {name: int(count) for count, group in zip(counts, self.groups, strict=True) for name in group.names}
        return next(iter(by_name.values())) if len(set(by_name.values())) == 1 else by_name

    def set_steps(self, steps: int | dict[str, int]) -> None:
        """Continue counting from ``steps()`` of a saved state."""
        for group in self.groups:
            count = steps if isinstance(steps, int) else max(steps[name] for name in group.names)
            state = self._base.state[group.flat]
            if "step" in state:
                state["step"].fill_(count)
            else:  # not stepped yet, and not made ready for it
                state["step"] = torch.full((), count, dtype=torch.float32, device=group.flat.device)

    def restore(self, reader: Reader) -> None:
        """Fill weights and moments from ``reader`` and bring the copies that the model computes with up to date."""
        kinds = reader.kinds() - {"weight", "frozen", "buffer", "ema"}
        with torch.no_grad():
            if hasattr(self._wrapper, "fp32_partitioned_groups_flat"):
                self._wrapper._partition_all_parameters()
            for group in self.groups:
                with self.loaded(group, write_back=True):
                    state = self._base.state[group.flat]
                    for kind in sorted(kinds - state.keys()):  # an optimizer that makes its state at its first step
                        state[kind] = torch.zeros_like(group.flat, requires_grad=False)
                    for piece in pieces(group, self.tensors(group)):
                        reader.fill(piece)
            self._refresh()
        self.set_steps(reader.scalars["optimizer_steps"])

    def _refresh(self) -> None:
        """Low-precision and gathered copies follow from the fp32 weights, exactly as after an optimizer step."""
        wrapper = self._wrapper
        if hasattr(wrapper, "fp32_partitioned_groups_flat"):
            for group in self.groups:
                if not self._is_swapped(group):
                    wrapper._reassign_or_swap_out_partitioned_parameters(group.number)
            wrapper._post_step(set())
        elif hasattr(wrapper, "fp32_groups"):
            for lows, highs in zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True):
                torch._foreach_copy_([low.data for low in lows], [high.data for high in highs])
        elif hasattr(wrapper, "update_lp_params"):
            wrapper.update_lp_params()


def pieces(group: Group, tensors: dict[str, Tensor]) -> list[Piece]:
    """The spans of a group in each of its tensors."""
    return [
        Piece(kind, span.name, span.shape, span.start, tensor[span.offset : span.offset + span.length])
        for kind, tensor in tensors.items()
        for span in group.spans
    ]


def _like(value: Any, flat: Tensor) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape == flat.shape
