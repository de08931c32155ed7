"""Every term beside its reference: what the comparison of the two runs over, in tests and in the table of docs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.losses import gather, reference
from pipeline.losses.reference.mixup import derangement_block, draw_lambda, random_derangement
from pipeline.losses.terms import TERMS, Step, Term
from pipeline.losses.tiles import TileOptions, reduce_tiles

B, D, SEED, NUMBER = 12, 5, 3, 41
VIEWS = ("image", "text")
CAPTIONS = ("caption_logits",)
TOKENS, VOCABULARY = 3, 7
TWO = ("image", "image_2", "text")
ALL = ("image", "image_2", "text", "text_2")
HEADS = ("independent_image", "independent_image_2", "independent_text", "independent_text_2")
PROJECTED = ("projected_image", "projected_image_2")
GROUPS = {
    "distinct": torch.arange(B),
    "pairs": torch.arange(B) // 2,
    "across ranks": torch.arange(B) % 4,
    "one group": torch.zeros(B, dtype=torch.int64),
}
Rows = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """One term with some settings, the domains it is given, and the reference's answer for the whole batch."""

    term: str
    domains: tuple[str, ...]
    reference: Callable[[Rows, Rows, Tensor], Tensor]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Readable name."""
        changed = ", ".join(f"{key}={value}" for key, value in self.settings.items())
        return self.term + (f" ({changed})" if changed else "") + f" on {len(self.domains)} domains"

    def build(self) -> Term:
        """The term."""
        return TERMS[self.term](**self.settings)


def s10() -> Tensor:
    """The scale of temperature 0.1."""
    return torch.tensor(10.0, dtype=torch.float64)


def draws(term: str, alpha: float, per_sample: bool, like: Tensor) -> tuple[Tensor, Tensor]:
    """The lambdas and partners that the term draws in the step of these cases."""
    generator = Step({}, {}, torch.arange(B), seed=SEED, number=NUMBER).generator(term)
    lam_B = draw_lambda(generator, alpha, B, per_sample)
    return lam_B.to(like), random_derangement(generator, B, derangement_block(B))


def _mix(term: str, per_sample: bool) -> Callable[[Rows, Rows, Tensor], Tensor]:
    def answer(z: Rows, s: Rows, g: Tensor) -> Tensor:
        lam_B, partner_B = draws(term, 0.5, per_sample, z["image"])
        if term == "m2_mix":
            return reference.m2_mix(z["image"], z["text"], lam_B, torch.tensor(1 / 0.07, dtype=lam_B.dtype), g)
        return getattr(reference, term)(z["image"], z["text"], lam_B, partner_B, s["scale"], g)

    return answer


def _uni(form: str, images: str, texts: str, domains: tuple[str, ...], **weights: Any) -> Case:
    def answer(z: Rows, s: Rows, g: Tensor) -> Tensor:
        views, captions = ([z[n] for n in domains if n.startswith(kind)] for kind in VIEWS)
        zero = torch.zeros((), dtype=g.new_zeros(0).double().dtype)
        tau = [s.get(f"uniclip_log_tau_{domain}", zero) for domain in ("II", "IT", "TT")]
        offset = [s.get(f"uniclip_offset_{domain}", zero) for domain in ("II", "IT", "TT")]
        extra = {"weight_3": weights["weights"]} if weights else {}
        tensors = (torch.stack(views), torch.stack(captions), torch.stack(tau), torch.stack(offset), g)
        return getattr(reference, form)(*tensors, images, texts, **extra)

    return Case("uniclip", domains, answer, {"form": form, "image_image": images, "text_text": texts, **weights})


def caption_labels() -> Tensor:
    """Labels [B, TOKENS] with more padding in later samples, so that ranks differ in their number of tokens."""
    labels = torch.arange(B * TOKENS).view(B, TOKENS) % VOCABULARY
    return labels.masked_fill(torch.arange(TOKENS) > 2 - torch.arange(B)[:, None] // 4, -100)


CASES = [
    Case("clip", VIEWS, lambda z, s, g: reference.info_nce(z["image"], z["text"], s["scale"], g)),
    Case(
        "clip", VIEWS, lambda z, s, g: reference.info_nce(z["image"], z["text"], s["scale"], g, 0.1), {"label_smoothing": 0.1}
    ),
    Case("siglip", VIEWS, lambda z, s, g: reference.siglip(z["image"], z["text"], s["scale"], s["siglip_bias"], g)),
    Case("alignment", VIEWS, lambda z, s, g: reference.alignment(z["image"], z["text"])),
    Case("uniformity", VIEWS, lambda z, s, g: (reference.uniformity(z["image"], g) + reference.uniformity(z["text"], g)) / 2),
    Case("cross_uniformity", VIEWS, lambda z, s, g: reference.cross_uniformity(z["image"], z["text"], g)),
    Case("in_modal", TWO, lambda z, s, g: reference.in_modal_info_nce(z["image"], z["image_2"], s["scale"], g)),
    Case(
        "in_modal",
        ALL,
        lambda z, s, g: (
            (
                reference.in_modal_info_nce(z["image"], z["image_2"], s["scale"], g)
                + reference.in_modal_info_nce(z["text"], z["text_2"], s["scale"], g)
            )
            / 2
        ),
    ),
    Case(
        "separation",
        (*VIEWS, *HEADS),
        lambda z, s, g: (
            reference.orthogonality(z["image"], z["independent_image"], z["text"], z["independent_text"])
            + reference.independent_contrast(*(z[name] for name in HEADS), s["scale"], g)
            + reference.independent_uniformity(z["independent_image"], z["independent_text"], g)
        ),
    ),
    Case("brownian_bridge", TWO, lambda z, s, g: reference.brownian_bridge(z["image"], z["text"], z["image_2"])),
    Case("geometric_consistency", VIEWS, lambda z, s, g: reference.geometric_consistency(z["image"], z["text"])),
    Case(
        "geometric_consistency",
        ALL,
        lambda z, s, g: (
            reference.geometric_consistency(z["image"], z["text"])
            + reference.augmented_consistency(z["image"], z["image_2"], z["text"], z["text_2"])
        ),
    ),
    Case("captioning", CAPTIONS, lambda z, s, g: reference.captioning(z["caption_logits"], caption_labels(), -100)),
    Case("cyclip", VIEWS, lambda z, s, g: reference.cyclip(z["image"], z["text"])),
    *(
        Case(term, VIEWS, _mix(term, per_sample), {"per_sample": per_sample})
        for term in ("m2_mix", "v_mix", "l_mix", "vl_mix")
        for per_sample in (False, True)
    ),
    _uni("mp_nce", "drop", "drop", VIEWS),
    _uni("mp_nce", "tie", "tie", VIEWS),
    _uni("mp_nce", "own", "tie", TWO),
    _uni("mp_nce", "own", "tie", ("image", "image_2", "image_3", "text"), weights=(2.0, 1.0, 0.5)),
    _uni("mp_nce", "own", "own", ALL),
    _uni("mil_nce", "own", "tie", TWO),
    _uni("supcon", "own", "tie", TWO),
    *(
        Case("simclr", (*TWO, *further), lambda z, s, g, pair=pair: reference.simclr(z[pair[0]], z[pair[1]], s10(), g))
        for further, pair in (((), ("image", "image_2")), (PROJECTED, PROJECTED))
    ),
]


def inputs(case: Case, high_scale: bool = False) -> tuple[Rows, Rows]:
    """Un-normalised float64 rows (or logits of captions) by name, and the learned numbers; leaves that require a gradient."""
    generator = torch.Generator().manual_seed(11)
    shapes = {name: (B, TOKENS, VOCABULARY) if name in CAPTIONS else (B, D) for name in case.domains}
    rows = {name: torch.randn(shape, dtype=torch.float64, generator=generator) for name, shape in shapes.items()}
    values = {"scale": 95.0 if high_scale else 9.0}
    for place, (name, scalar) in enumerate(case.build().scalars().items()):
        # Away from their start, so that a tied or forgotten one shows.
        values[name] = scalar.init * (1 - 0.1 * place) + 0.02 * (place + 1)
    scalars = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
    return _leaves(rows), _leaves(scalars)


def _leaves(tensors: Rows) -> Rows:
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


def unit(rows: Rows) -> Rows:
    """Rows on the sphere; what is no embedding stays as it is."""
    return {name: tensor if name in CAPTIONS else F.normalize(tensor, dim=1) for name, tensor in rows.items()}


def expected(case: Case, group_B: Tensor, high_scale: bool = False) -> Rows:
    """The reference's loss and gradients on the whole batch."""
    rows, scalars = inputs(case, high_scale)
    loss = case.reference(unit(rows), scalars, group_B)
    (loss + 0 * sum(t.sum() for t in [*rows.values(), *scalars.values()])).backward()
    return {"loss": loss.detach(), **{name: t.grad for name, t in {**rows, **scalars}.items()}}  # type: ignore[dict-item]


def measured(
    case: Case, group_B: Tensor, rank: int, size: int, tile: int = 5, high_scale: bool = False, keep_mb: float = 0
) -> Rows:
    """The term's loss and gradients from this rank's rows, averaged over ranks as the engine averages them."""
    whole, scalars = inputs(case, high_scale)
    part = slice(rank * B // size, (rank + 1) * B // size)
    rows = _leaves({name: tensor.detach()[part].clone() for name, tensor in whole.items()})
    extras = {**unit(rows), "caption_labels": caption_labels()[part]}
    embeddings = {name: extras.pop(name) for name in case.domains if name not in CAPTIONS}
    step = Step(embeddings, scalars, group_B[part], extras, seed=SEED, number=NUMBER)
    term = case.build()
    reductions = term.reductions(step)
    values = reduce_tiles(step.domains, reductions, TileOptions(tile, keep_mb)) if reductions else []
    loss = term.loss(step, values)
    (loss + 0 * sum(t.sum() for t in [*rows.values(), *scalars.values()])).backward()
    found = {"loss": gather.reduce_sum(loss.detach()) / size}
    found |= {name: gather.gather_rows(t.grad) / size for name, t in rows.items()}  # type: ignore[arg-type]
    return found | {name: gather.reduce_sum(t.grad) / size for name, t in scalars.items()}  # type: ignore[arg-type]


def largest_error(found: Rows, truth: Rows) -> float:
    """Largest absolute difference over the loss and every gradient; infinite if something is not finite."""
    errors = torch.stack([(found[name] - truth[name]).abs().max() for name in truth])
    return float(errors.max()) if errors.isfinite().all() else float("inf")
