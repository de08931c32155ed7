"""Zero-shot classification: a class is the mean of what the text tower says about it.

    weights_Cd = classifier(prompt_embeddings, num_classes=C)            # one unit row per class
    count_topk(image_Nd, weights_Cd, label_N, world)                     # {1: 871, 5: 990} of N

Each class name is put into each template; the unit embeddings of a class's prompts are averaged and normalised again
(Radford et al. 2021, section 3.1.4). Of two classes with equal scores the one with the lower index wins, as in
``argmax``.

Shapes: N images, C classes, T templates, d = embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.dist import World
from pipeline.errors import DataError
from pipeline.eval.scores import my_rows, score_rows, sum_hits, to_grid

CUTOFFS = (1, 5)


def prompts(classnames: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every template with every class name in place of ``{c}`` or ``{}``; class by class, C * T texts.

    Raises:
        DataError: no classes or no templates, or a template without a place for the class name.
    """
    if not classnames or not templates:
        raise DataError(f"zero-shot needs class names and templates, got {len(classnames)} and {len(templates)}")
    for template in templates:
        if "{c}" not in template and "{}" not in template:
            raise DataError(f"template {template!r} has no place for the class name; write {{c}} where it belongs")
    return [template.replace("{c}", name).replace("{}", name) for name in classnames for template in templates]


def classifier(prompt_Pd: Tensor, num_classes: int) -> Tensor:
    """Average each class's prompts to one unit row.

    Args:
        prompt_Pd: unit embeddings of ``prompts``, P = num_classes * T rows, class by class.
        num_classes: C.

    Returns:
        float64 [C, d], on the grid of ``scores.to_grid``.
    """
    by_class_CTd = prompt_Pd.to(torch.float64).reshape(num_classes, -1, prompt_Pd.shape[1])
    return to_grid(torch.nn.functional.normalize(by_class_CTd.mean(dim=1), dim=1))


def label_ranks(image_Nd: Tensor, class_Cd: Tensor, label_N: Tensor) -> Tensor:
    """The rank of each image's own class among all classes, int64 [N]; 1 = first. Both inputs from ``to_grid``."""
    rank_N = torch.empty(len(image_Nd), dtype=torch.int64, device=image_Nd.device)
    index_C = torch.arange(len(class_Cd), device=image_Nd.device)
    for rows, score_NC in score_rows(image_Nd, class_Cd):
        label_N1 = label_N[rows, None]
        own_N1 = score_NC.gather(1, label_N1)
        ahead_NC = (score_NC > own_N1) | ((score_NC == own_N1) & (index_C < label_N1))
        rank_N[rows] = 1 + ahead_NC.sum(dim=1)
    return rank_N


def count_topk(
    image_Nd: Tensor, class_Cd: Tensor, label_N: Tensor, world: World, cutoffs: tuple[int, ...] = CUTOFFS
) -> dict[int, int]:
    """How many images have their own class among the first K, for each K in ``cutoffs``.

    Args:
        image_Nd: unit embeddings of all images, the same on every rank; each rank scores its share.
        class_Cd: from ``classifier``.
        label_N: int64 class indices.
        world: who shares the work.
        cutoffs: the K of top-K.

    Raises:
        DataError: a label outside ``[0, C)``. All labels are checked on every rank, so that all ranks raise together.
    """
    wrong_N = (label_N < 0) | (label_N >= len(class_Cd))
    if bool(wrong_N.any()):
        raise DataError(
            f"sample {int(wrong_N.nonzero()[0])} has label {int(label_N[wrong_N][0])}, but the class names go from "
            f"0 to {len(class_Cd) - 1}"
        )
    mine = my_rows(len(image_Nd), world)
    return sum_hits(label_ranks(to_grid(image_Nd)[mine], class_Cd, label_N[mine]), cutoffs)
