"""UniCLIP: image-text, image-image and text-text pairs in one contrastive problem, in one space.

The paper: Lee et al., "UniCLIP: Unified Framework for Contrastive Language-Image Pre-training", NeurIPS 2022 (arXiv
2209.13430). All V image views and U texts of all B samples, N = (V + U) B embeddings, are anchors and candidates alike:

    positives  P_i   the other embeddings of the same sample: views and texts
    negatives  N_i   all embeddings, of both modalities, of samples of other groups
    logits     l_ij = (cos_ij - b_D) / tau_D      with D in {II, IT, TT} the domain of the pair; tau, b are learned

Other samples of the anchor's group are neither. Choices where the source is unsure or silent:

- A constant added to a row changes nothing, so one of the three offsets is redundant: b_IT is 0, whatever is passed.
- A domain in which no pair is positive (TT with one text, II with one view) would learn to switch its negatives off. For
  each of the two a rule says what is done: "own" temperature and offset (refused without positives), "tie" to those of IT,
  or "drop" the domain altogether. One caption per image: tie.
- The terms of an anchor are averaged, not summed, over its positives, and the domain weight stands inside that mean. The
  paper's weights are not known; 1 balances V = 3, U = 1, where II and IT have equally many positive pairs.

Shapes: B global batch, d width, V image views, U texts per image, N = (V + U) B; NN matrices are ordered image view 0 of all
samples, image view 1 of all, ..., text 0 of all, ...

Example: one view, one text, no in-modal pairs is CLIP
    >>> image_Bd, text_Bd = torch.eye(2), torch.eye(2).flip(0)
    >>> zeros_3 = torch.zeros(3)
    >>> round(mp_nce(image_Bd[None], text_Bd[None], zeros_3, zeros_3, torch.arange(2), "drop", "drop").item(), 4)
    1.3133
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.losses.reference.masks import apart, masked_logsumexp

II, IT, TT = 0, 1, 2
"""Domains of a pair, the index into everything of shape [3]: the number of texts in the pair."""

DomainRule = Literal["own", "tie", "drop"]
"""What is done with an in-modal domain: see the module's docstring."""


class _Sets(NamedTuple):
    logits_NN: Tensor
    domain_NN: Tensor
    positive_NN: Tensor
    negative_NN: Tensor


def mp_nce(
    image_VBd: Tensor,
    text_UBd: Tensor,
    log_tau_3: Tensor,
    offset_3: Tensor,
    group_B: Tensor,
    image_image: DomainRule = "own",
    text_text: DomainRule = "tie",
    weight_3: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Tensor:
    """Multi-positive NCE: InfoNCE of each positive pair alone against the anchor's negatives.

    ``mean_i mean_{p in P_i} w_D(i,p) * -log( e^{l_ip} / (e^{l_ip} + sum_{n in N_i} e^{l_in}) )``, over all N anchors. Positives
    do not compete: none is ever pushed away, and no easy one starves a hard one.

    Args:
        image_VBd, text_UBd: unit rows of all views [V, B, d] and texts [U, B, d].
        log_tau_3: log temperature of II, IT, TT [3]; entries of tied or dropped domains are not read. Clamped by the caller.
        offset_3: offset b of II, IT, TT [3]; that of IT, and those of tied or dropped domains, are not read.
        group_B: int64 [B].
        image_image, text_text: rules of the in-modal domains. With one view (one text) "own" is refused.
        weight_3: weight of positive pairs by domain: II, IT, TT.

    Returns:
        0-dim loss, >= 0; 0 where nobody has a negative.

    Raises:
        ValueError: a rule that is not one of the three, or "own" for a domain without positives.
    """
    sets = _sets(image_VBd, text_UBd, log_tau_3, offset_3, group_B, image_image, text_text)
    negatives_N = masked_logsumexp(sets.logits_NN, sets.negative_NN)
    weight_NN = sets.logits_NN.new_tensor(weight_3)[sets.domain_NN]
    loss_NN = -weight_NN * F.logsigmoid(sets.logits_NN - negatives_N[:, None])
    return _mean_over_positives(loss_NN, sets.positive_NN).mean()


def mil_nce(
    image_VBd: Tensor,
    text_UBd: Tensor,
    log_tau_3: Tensor,
    offset_3: Tensor,
    group_B: Tensor,
    image_image: DomainRule = "own",
    text_text: DomainRule = "tie",
) -> Tensor:
    """MIL-NCE (Miech et al. 2020) on the same sets: ``mean_i -log( sum_P e^l / (sum_P e^l + sum_N e^l) )``.

    One good positive is enough, so the easiest takes the gradient. Arguments, errors and limits as in ``mp_nce``.
    """
    sets = _sets(image_VBd, text_UBd, log_tau_3, offset_3, group_B, image_image, text_text)
    positives_N = masked_logsumexp(sets.logits_NN, sets.positive_NN)
    return -F.logsigmoid(positives_N - masked_logsumexp(sets.logits_NN, sets.negative_NN)).mean()


def supcon(
    image_VBd: Tensor,
    text_UBd: Tensor,
    log_tau_3: Tensor,
    offset_3: Tensor,
    group_B: Tensor,
    image_image: DomainRule = "own",
    text_text: DomainRule = "tie",
) -> Tensor:
    """SupCon (Khosla et al. 2020, L_out) on the same sets: ``mean_i mean_{p in P_i} -log( e^{l_ip} / sum_{P u N} e^l )``.

    Positives compete with one another: an easy one is repelled, and with |P| of them an anchor's loss is >= log |P|, not 0.
    That holds with negatives; an anchor without any contributes 0 here as in every term, rather than let its positives
    compete for nothing. Arguments and errors as in ``mp_nce``.
    """
    sets = _sets(image_VBd, text_UBd, log_tau_3, offset_3, group_B, image_image, text_text)
    everything_N = masked_logsumexp(sets.logits_NN, sets.positive_NN | sets.negative_NN)
    loss_N = _mean_over_positives(everything_N[:, None] - sets.logits_NN, sets.positive_NN)
    return loss_N.masked_fill(~sets.negative_NN.any(dim=1), 0).mean()


def _mean_over_positives(values_NN: Tensor, positive_NN: Tensor) -> Tensor:
    """Per anchor the mean over its positives [N]; every anchor has one, its pair in the other modality."""
    return values_NN.masked_fill(~positive_NN, 0).sum(dim=1) / positive_NN.sum(dim=1)


def _sets(
    image_VBd: Tensor,
    text_UBd: Tensor,
    log_tau_3: Tensor,
    offset_3: Tensor,
    group_B: Tensor,
    image_image: DomainRule,
    text_text: DomainRule,
) -> _Sets:
    """Logits and the two masks of all N anchors, as the module's docstring defines them."""
    views, texts, samples = len(image_VBd), len(text_UBd), len(group_B)
    _check_rule("image_image", image_image, views, "image views")
    _check_rule("text_text", text_text, texts, "texts per image")
    rules = {II: image_image, IT: "own", TT: text_text}
    device = group_B.device

    row_Nd = torch.cat([image_VBd, text_UBd]).flatten(0, 1)
    is_text_N = (torch.arange(views + texts, device=device) >= views).long().repeat_interleave(samples)
    domain_NN = is_text_N[:, None] + is_text_N[None, :]

    own_tau = torch.tensor([II if image_image == "own" else IT, IT, TT if text_text == "own" else IT], device=device)
    has_offset_3 = torch.tensor([image_image == "own", False, text_text == "own"], device=device)
    tau_3 = log_tau_3[own_tau].exp()
    logits_NN = (row_Nd @ row_Nd.T - offset_3.masked_fill(~has_offset_3, 0)[domain_NN]) / tau_3[domain_NN]

    used_NN = torch.tensor([rules[domain] != "drop" for domain in (II, IT, TT)], device=device)[domain_NN]
    sample_N = torch.arange(samples, device=device).repeat(views + texts)
    same_sample_NN = ~apart(sample_N)
    itself_NN = torch.eye(len(sample_N), dtype=torch.bool, device=device)
    return _Sets(
        logits_NN,
        domain_NN,
        positive_NN=same_sample_NN & ~itself_NN & used_NN,
        negative_NN=apart(group_B.repeat(views + texts)) & used_NN,
    )


def _check_rule(name: str, rule: DomainRule, count: int, what: str) -> None:
    if rule not in ("own", "tie", "drop"):
        raise ValueError(f"{name} is {rule!r}; it must be one of own, tie, drop")
    if rule == "own" and count < 2:
        raise ValueError(
            f"{name} is 'own', but with {count} {what} that domain has no positive pair, and its temperature and offset would "
            "learn to switch its negatives off: use 'tie' or 'drop'"
        )
