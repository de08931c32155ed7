"""What a model draws at random while it trains, as a function of the step and the sample: patch dropout on any number of ranks.

    by_sample(towers)                              # replaces the libraries' patch dropout
    model.draw_from(seed, first=64, count=32)      # before a forward pass: this step's number, and which samples these are
    drawn_by_each_rank(model)                      # ["text.transformer.layer.0.dropout", ...]: what still depends on the ranks

The libraries drop what the generator of their process draws next, so that another number of ranks, or of micro-batches, drops
other patches. Here the patches that stay are those with the largest hashes of (step's seed, tower, view, place of the sample in
the global batch, token), in whole numbers: the same on every device, and without a word between host and device. (Li et al.
2023, "Scaling Language-Image Pre-training via Masking".) Dropout of single activations, which a few architectures bring along,
stays with torch's generator; a run says so at its start.

Shapes: N rows (views times samples), L tokens, K of them kept, W the tower's width.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from open_clip.transformer import PatchDropout as OpenClipDropout
from timm.layers import PatchDropout as TimmDropout
from timm.layers import PatchDropoutWithIndices as TimmDropoutWithIndices
from torch import Tensor, nn

from pipeline.models.towers import Towers

_WORD = 0xFFFFFFFF
_LOG = logging.getLogger("unisphere")


class PatchDropout(nn.Module):
    """Keeps a random share of an image's tokens while training; which ones is a function of ``draw_from`` alone."""

    state: Tensor

    def __init__(self, share: float, prefix: int, number: int, *, ordered: bool = False, returns_indices: bool = False) -> None:
        """Prepare.

        Args:
            share: of the tokens that are left out, in [0, 1).
            prefix: tokens before the patches, which stay.
            number: of the tower; towers draw independently.
            ordered: keep the patches in their order, rather than in that of the draw.
            returns_indices: also return which were kept, int64 [N, K], as some of timm's towers expect.
        """
        super().__init__()
        self.share, self.prefix, self.number = share, prefix, number
        self.ordered, self.returns_indices = ordered, returns_indices
        self.count: int | None = None
        """Samples in a forward pass of one view; None: all rows belong to one view."""
        # On the device, so that a new step is no new constant to a compiler: two words of seed, first sample, first view.
        self.register_buffer("state", torch.zeros(4, dtype=torch.int64), persistent=False)

    def draw_from(self, seed: int, first: int, count: int) -> None:
        """What the next forward passes draw from: a step's ``seed``, and samples ``first`` to ``first + count - 1`` of it."""
        for place, value in enumerate((seed & _WORD, seed >> 32 & _WORD, first, 0)):
            self.state[place].fill_(value)
        self.count = count

    def forward(self, tokens_NLW: Tensor) -> Any:
        """The kept tokens [N, prefix + K, W], K = max(1, L (1 - share)); all of them outside of training."""
        if not self.training or self.share == 0:
            return (tokens_NLW, None) if self.returns_indices else tokens_NLW
        before, patches = tokens_NLW[:, : self.prefix], tokens_NLW[:, self.prefix :]
        kept_NK = self._kept(len(patches), patches.shape[1])
        index_NKW = kept_NK.unsqueeze(-1).expand(-1, -1, patches.shape[2])
        left = torch.cat((before, patches.gather(1, index_NKW)), dim=1)
        return (left, kept_NK) if self.returns_indices else left

    @torch.no_grad()
    def _kept(self, rows: int, length: int) -> Tensor:
        """Which patches stay, int64 [N, K]."""
        count = self.count or rows
        row_N = torch.arange(rows, device=self.state.device)
        low, high, first, view = self.state
        key_N = _mix(low ^ _mix(high ^ _mix(row_N % count + first) ^ _mix(row_N // count + view + (self.number << 16))))
        token_L = torch.arange(length, device=self.state.device)
        # A token's number below its hash: no two are equal, so that every device sorts alike.
        hash_NL = _mix(key_N[:, None] ^ _mix(token_L + 1)) * length + token_L
        kept_NK = hash_NL.topk(max(1, int(length * (1 - self.share))), dim=1).indices
        self.state[3] += rows // count  # a tower that is called once per view goes on to the next one
        return kept_NK.sort(dim=1).values if self.ordered else kept_NK


def _mix(word: Tensor) -> Tensor:
    """A hash of 32-bit words, held in int64; products wrap around and their low halves are right nevertheless.

    The constants are those of Wellons, "Prospecting for Hash Functions" (2018).
    """
    word = word & _WORD
    word = (word ^ (word >> 16)) * 0x7FEB352D & _WORD
    word = (word ^ (word >> 15)) * 0x846CA68B & _WORD
    return word ^ (word >> 16)


def by_sample(towers: Towers) -> None:
    """Put this module's patch dropout in the place of open_clip's and timm's."""
    number = 0
    for tower in towers.modules():
        for module in list(tower.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, OpenClipDropout):
                    drop = PatchDropout(child.prob, int(child.exclude_first_token), number)
                elif isinstance(child, (TimmDropout, TimmDropoutWithIndices)):
                    with_indices = isinstance(child, TimmDropoutWithIndices)
                    drop = PatchDropout(
                        child.prob, child.num_prefix_tokens, number, ordered=child.ordered, returns_indices=with_indices
                    )
                else:
                    continue
                setattr(module, name, drop)
                number += 1


def drawn_by_each_rank(model: nn.Module) -> list[str]:
    """Modules that draw from torch's generator while training: a rate of theirs, called drop-something or ``p``, is not 0."""
    return [
        name
        for name, module in model.named_modules()
        if not isinstance(module, PatchDropout)
        and any(
            isinstance(value, float)
            and value > 0
            and ("drop" in key or (key == "p" and isinstance(module, nn.modules.dropout._DropoutNd)))
            for key, value in vars(module).items()
        )
    ]


def announce(model: nn.Module) -> None:
    """Warn of what makes a run's losses depend on its number of ranks."""
    if found := drawn_by_each_rank(model):
        _LOG.warning(
            "each rank and micro-batch draws its own dropout in %d modules (%s, ...): with another number of ranks or "
            "train.micro_batches a resumed run drops other activations, and its losses are not those it would have had",
            len(found),
            found[0],
        )
