"""Without its padding a causal tower gives the same features and gradients; every other tower gets what it was given."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor, nn

from pipeline.models import text

CONTEXT, END = 77, 63


def tower(**options: object) -> nn.Module:
    torch.manual_seed(0)
    shape = {"context_length": CONTEXT, "vocab_size": 64, "width": 32, "heads": 2, "layers": 2, "output_dim": 16}
    built = open_clip.transformer.TextTransformer(**{**shape, **options})
    text.accept_any_length(built)
    return built


def captions(count: int, seed: int = 0, longest: int = CONTEXT) -> Tensor:
    """Random words, then the end token, then zeros; lengths from 2 to ``longest``."""
    generator = torch.Generator().manual_seed(seed)
    tokens_BL = torch.randint(1, END, (count, CONTEXT), generator=generator)
    end_B = torch.randint(1, longest, (count,), generator=generator)
    tokens_BL[torch.arange(count), end_B] = END
    return tokens_BL * (torch.arange(CONTEXT) <= end_B[:, None])


def unit(feature_Bd: Tensor) -> Tensor:
    """Unit rows, which is what the model makes of a tower's features."""
    return nn.functional.normalize(feature_Bd, dim=1)


@pytest.mark.parametrize("options", [{}, {"pool_type": "eos", "eos_id": END}, {"proj_bias": True}])
@pytest.mark.parametrize(("count", "calls"), [(1, 1), (31, 1), (64, 4), (200, 6)])
def test_features_and_gradients_are_those_of_the_padded_batch(options, count, calls):
    padded, trimmed = tower(**options), tower(**options)
    tokens_BL = captions(count, longest=40)
    lengths = []
    trimmed.transformer.register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    expected, found = unit(padded(tokens_BL)), unit(text.encode(trimmed, tokens_BL))
    assert torch.allclose(found, expected, atol=1e-6, rtol=0)
    weights = torch.randn(count, 16, generator=torch.Generator().manual_seed(1))
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    for (name, ours), theirs in zip(trimmed.named_parameters(), padded.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-5 * max(1.0, float(theirs.grad.abs().max())), rtol=0), name
    assert len(lengths) == calls
    assert lengths == sorted(lengths)
    assert all(length % 4 == 0 and length <= 40 for length in lengths)


@pytest.mark.parametrize("count", [1, 64, 200])
def test_with_lengths_from_the_host_the_device_is_not_asked(count):
    """The same groups and features; on the meta device, where there is nothing to look at, it still works."""
    built, tokens_BL = tower(), captions(count, longest=40)
    length_B = tokens_BL.argmax(1) + 1
    assert torch.equal(text.encode(built, tokens_BL, length_B), text.encode(built, tokens_BL))
    longer_B = (length_B + torch.arange(count) % 9).clamp(max=CONTEXT)
    assert torch.allclose(unit(text.encode(built, tokens_BL, longer_B)), unit(built(tokens_BL)), atol=1e-6, rtol=0)
    nowhere = built.to("meta")
    assert text.encode(nowhere, tokens_BL.to("meta"), length_B).shape == (count, 16)
    with pytest.raises(NotImplementedError, match="meta"):
        text.encode(nowhere, tokens_BL.to("meta"))


def brute_force(lengths: list[int], num_groups: int) -> int:
    """Tokens of the best of all ways to cut sorted captions into groups."""
    ordered = sorted(-(-length // 4) * 4 for length in lengths)
    cuts = itertools.combinations(range(1, len(ordered)), num_groups - 1)
    ways = ([0, *cut, len(ordered)] for cut in cuts)
    return min(sum((b - a) * ordered[b - 1] for a, b in itertools.pairwise(way)) for way in ways)


@pytest.mark.parametrize("num_groups", [1, 2, 3, 4])
def test_groups_compute_as_few_tokens_as_any_others_would(num_groups):
    rng = np.random.Generator(np.random.PCG64(0))
    for _ in range(20):
        lengths = rng.integers(2, 30, 12).tolist()
        sizes = text.group_sizes(lengths, num_groups)
        ends = np.cumsum(sizes)
        assert len(sizes) == num_groups
        assert ends[-1] == 12
        assert min(sizes) >= 1
        tokens = sum(size * -(-sorted(lengths)[end - 1] // 4) * 4 for size, end in zip(sizes, ends, strict=True))
        assert tokens == brute_force(lengths, num_groups)


def test_equal_lengths_still_make_the_asked_for_number_of_groups():
    assert sorted(text.group_sizes([7] * 10, 4)) == [2, 2, 3, 3]
    assert text.group_sizes([5], 1) == [1]


def test_full_captions_and_trimmed_batches_pass():
    built = tower()
    full = captions(20)
    full[3] = END - 1
    full[3, -1] = END
    assert torch.allclose(unit(text.encode(built, full)), unit(built(full)), atol=1e-6, rtol=0)
    short = captions(20, longest=12)
    assert torch.allclose(unit(text.encode(built, short[:, :16])), unit(built(short)), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"no_causal_mask": True},
        {"no_causal_mask": True, "use_pad_mask": True, "pool_type": "eos", "eos_id": END},
        {"embed_cls": True},
        {"pool_type": "last"},
        {"pool_type": "first"},
        {"output_tokens": True},
    ],
)
def test_other_towers_are_never_cut(options):
    built = tower(**options)
    assert not text.ignores_padding(built)
    seen = []
    built.token_embedding.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    text.encode(built, captions(64))
    assert seen == [(64, CONTEXT)]


def test_a_tower_of_another_library_gets_its_tokens_whole():
    class Sum(nn.Module):
        def forward(self, tokens_BL: Tensor) -> Tensor:
            return tokens_BL.sum(1)

    assert torch.equal(text.encode(Sum(), captions(64)), captions(64).sum(1))


def test_changed_padding_changes_nothing_where_it_is_cut():
    """What ``ignores_padding`` claims, against the tower itself; and that the others would notice."""
    tokens_BL = captions(16, longest=30)
    noise_BL = torch.where(torch.arange(CONTEXT) > tokens_BL.argmax(1, keepdim=True), 5, tokens_BL)
    for options, ignores in (({}, True), ({"no_causal_mask": True}, False), ({"pool_type": "last"}, False)):
        built = tower(**options)
        assert torch.allclose(unit(built(noise_BL)), unit(built(tokens_BL)), atol=1e-6, rtol=0) is ignores
        assert text.ignores_padding(built) is ignores


def test_gradient_checkpointing_and_copies_keep_working():
    built = tower()
    built.set_grad_checkpointing(True)
    found = text.encode(copy.deepcopy(built).train(), captions(64))
    assert torch.allclose(unit(found), unit(tower()(captions(64))), atol=1e-6, rtol=0)
