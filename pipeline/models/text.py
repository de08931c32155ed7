"""Text towers without padding: captions in groups of similar length, each cut to its longest. Exact where it is done.

    feature_Bd = encode(tower, tokens_BL)               # what tower(tokens_BL) returns, to rounding, in a fraction of the time

In a causal tower that is read at the end token, no position sees what comes after it: padding behind the end token cannot
change the result, and its gradient is zero. Captions have 10 to 30 tokens and the context 77, so most of the usual work is
padding. ``ignores_padding`` says for which towers this holds; the others get their tokens as they are.

Shapes: B captions, L tokens, d features.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

MAX_GROUPS = 6
MIN_GROUP = 16
"""Captions in a group at least: smaller ones gain no time, since matrix products get too thin."""

MULTIPLE = 4
"""Lengths are rounded up to a multiple of this: fewer different shapes to compile for."""


def ignores_padding(tower: nn.Module) -> bool:
    """Whether what follows the end token cannot change the output: causal attention, read at the end token, no class token."""
    return (
        isinstance(tower, TextTransformer)
        and tower.attn_mask is not None
        and tower.cls_emb is None
        and tower.pool_type in ("argmax", "eos")
        and not tower.output_tokens
    )


def accept_any_length(tower: nn.Module) -> None:
    """Let a tower that ignores padding take fewer tokens than its context; open_clip's keeps its causal mask at full size."""
    if isinstance(tower, TextTransformer) and ignores_padding(tower):
        tower.transformer.register_forward_pre_hook(_cut_mask, with_kwargs=True)


def _cut_mask(_: nn.Module, args: tuple[Tensor, ...], options: dict[str, Any]) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    length = args[0].shape[1]
    return args, {**options, "attn_mask": options["attn_mask"][:length, :length]}


def encode(tower: nn.Module, tokens_BL: Tensor, length_B: Tensor | None = None) -> Any:
    """What ``tower(tokens_BL)`` returns, with as little padding as a few groups of similar length need.

    Args:
        tower: a text tower that went through ``accept_any_length``.
        tokens_BL: int64. The number of groups depends on B alone, so that ranks of ZeRO stage 3, which gather weights in
            each call of the tower, make equally many calls.
        length_B: tokens of each caption up to its end token at least, int64 in host memory. None: the device is asked, which
            the host waits for.
    """
    if not ignores_padding(tower):
        return tower(tokens_BL)
    if length_B is None:
        length_B = _end(tower, tokens_BL).cpu()
    order_B = torch.argsort(length_B, stable=True)
    sizes = group_sizes(length_B.tolist(), max(1, min(MAX_GROUPS, len(order_B) // MIN_GROUP)))
    lengths = length_B[order_B].tolist()
    there_and_back_2B = _moved(torch.stack([order_B, torch.argsort(order_B)]), tokens_BL.device)
    found = []
    for rows, last in zip(torch.split(there_and_back_2B[0], sizes), itertools.accumulate(sizes), strict=True):
        length = min(tokens_BL.shape[1], _rounded(lengths[last - 1]))
        found.append(tower(tokens_BL[rows, :length]))
    return torch.cat(found)[there_and_back_2B[1]]


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A host tensor on ``device``; from page-locked memory, for a copy from other memory waits for the device."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def group_sizes(lengths: Sequence[int], num_groups: int) -> list[int]:
    """Captions in each of exactly ``num_groups`` groups, shortest first, so that the fewest tokens are computed in all.

    Each group pays its longest caption's rounded length for every member; which lengths share a group is found by dynamic
    programming over the few different ones.
    """
    counts = sorted(Counter(map(_rounded, lengths)).items())
    # best[j]: tokens and sizes of the cheapest way to put the j shortest different lengths into the groups so far
    best: dict[int, tuple[int, list[int]]] = {0: (0, [])}
    for _ in range(min(num_groups, len(counts))):
        best = {
            last: min(
                (tokens + counts[last - 1][0] * size, [*sizes, size])
                for first, (tokens, sizes) in best.items()
                if first < last
                for size in [sum(count for _, count in counts[first:last])]
            )
            for last in range(min(best) + 1, len(counts) + 1)
        }
    sizes = best[len(counts)][1]
    while len(sizes) < num_groups:  # fewer different lengths than groups
        widest = max(range(len(sizes)), key=sizes.__getitem__)
        sizes[widest : widest + 1] = [sizes[widest] - sizes[widest] // 2, sizes[widest] // 2]
    return sizes


def _rounded(length: int) -> int:
    return -(-length // MULTIPLE) * MULTIPLE


def _end(tower: Any, tokens_BL: Tensor) -> Tensor:
    """Tokens up to and with the one at which the tower is read, int64 [B]."""
    ends_BL = (tokens_BL == tower.eos_id).int() if tower.pool_type == "eos" else tokens_BL
    return ends_BL.argmax(dim=1) + 1
