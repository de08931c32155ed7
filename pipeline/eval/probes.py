"""What the image embeddings know, asked without text: nearest neighbours, a linear probe, and a probe from a few shots.

    probe(train_Nd, train_label_N, test_Md, test_label_M, num_classes, world)
    # {"knn": {...}, "linear": {...}, "few_shot": {"1": {...}, "2": {...}, ...}}

For sets with a ``train`` split beside ``test``. The linear probe is a logistic regression on the embeddings; its regularisation
is chosen from a closed grid by accuracy on every fifth training sample, then fitted again on all of them. Few-shot probes take
the first k samples of each class in an order that depends on the seed alone, with the middle of the grid.

Shapes: N training samples, M test samples, C classes, d = embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline import dist
from pipeline.dist import World
from pipeline.errors import DataError
from pipeline.eval import logistic
from pipeline.eval.intervals import interval
from pipeline.eval.scores import my_rows, score_rows, to_grid

GRID = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""Values of scikit-learn's C that the linear probe chooses from."""
SHOTS = (1, 2, 4, 8, 16)
SEEDS = (0, 1, 2)
NEIGHBOURS = 20
NEIGHBOUR_TEMPERATURE = 0.07
"""Votes weigh ``exp(cosine / temperature)``, as in Wu et al. 2018 and DINO."""


def probe(
    train_Nd: Tensor, train_label_N: Tensor, test_Md: Tensor, test_label_M: Tensor, num_classes: int, world: World
) -> dict[str, Any]:
    """All three; every rank calls it and gets the same. Ranks share the fits of the few-shot probes and the neighbours.

    Raises:
        DataError: a class of the test part has no training sample, so that no probe could name it.
    """
    absent = sorted(set(test_label_M.tolist()) - set(train_label_N.tolist()))
    if absent:
        raise DataError(
            f"{len(absent)} classes of the test part have no sample in the train part, the first is class {absent[0]}"
        )
    predicted_M = neighbours(train_Nd, train_label_N, test_Md, num_classes, world)
    return {
        "train_samples": len(train_Nd),
        "knn": {"k": NEIGHBOURS, **_accuracy(predicted_M == test_label_M)},
        "linear": linear(train_Nd, train_label_N, test_Md, test_label_M, num_classes),
        "few_shot": few_shot(train_Nd, train_label_N, test_Md, test_label_M, num_classes, world),
    }


def neighbours(train_Nd: Tensor, train_label_N: Tensor, test_Md: Tensor, num_classes: int, world: World) -> Tensor:
    """The class that the ``NEIGHBOURS`` nearest training samples vote for, int64 [M]; of equal votes the lower class."""
    train_Nd, test_Md = to_grid(train_Nd), to_grid(test_Md)
    mine = my_rows(len(test_Md), world)
    parts = [train_label_N.new_zeros(0)]
    for _, score_MN in score_rows(test_Md[mine], train_Nd):
        # A stable sort, so that equally near samples come in the set's order.
        order_MN = score_MN.sort(dim=1, descending=True, stable=True)
        nearest, score = order_MN.indices[:, :NEIGHBOURS], order_MN.values[:, :NEIGHBOURS]
        votes_MC = score.new_zeros(len(score), num_classes)
        votes_MC.scatter_add_(1, train_label_N[nearest], (score / NEIGHBOUR_TEMPERATURE).exp())
        parts.append(votes_MC.argmax(dim=1))
    return dist.all_gather_rows(torch.cat(parts))


def linear(train_Nd: Tensor, train_label_N: Tensor, test_Md: Tensor, test_label_M: Tensor, num_classes: int) -> dict[str, Any]:
    """Accuracy of the probe, the regularisation it chose, and the accuracies it chose by."""
    held_N = torch.arange(len(train_Nd), device=train_Nd.device) % 5 == 4
    chosen_by = {}
    for regularisation in GRID:
        weights = logistic.fit(train_Nd[~held_N], train_label_N[~held_N], num_classes, regularisation)
        hits = logistic.predict(weights, train_Nd[held_N]) == train_label_N[held_N]
        chosen_by[regularisation] = round(float(hits.double().mean()), 6) if len(hits) else 0.0
    best = max(GRID, key=lambda regularisation: (chosen_by[regularisation], -regularisation))
    weights = logistic.fit(train_Nd, train_label_N, num_classes, best)
    found = _accuracy(logistic.predict(weights, test_Md) == test_label_M)
    return {"regularisation": best, "grid": {str(key): value for key, value in chosen_by.items()}, **found}


def few_shot(
    train_Nd: Tensor,
    train_label_N: Tensor,
    test_Md: Tensor,
    test_label_M: Tensor,
    num_classes: int,
    world: World,
    shots: Sequence[int] = SHOTS,
) -> dict[str, Any]:
    """For each number of shots: accuracy with each seed, their mean and standard deviation.

    Shots of which a class has too few samples are left out.
    """
    counted_C = torch.bincount(train_label_N, minlength=num_classes)
    smallest = int(counted_C[counted_C > 0].min())
    jobs = [(k, seed) for k in shots if k <= smallest for seed in SEEDS]
    mine = []
    for k, seed in jobs[world.rank :: world.size]:
        chosen = choose(train_label_N, k, seed)
        weights = logistic.fit(train_Nd[chosen], train_label_N[chosen], num_classes, GRID[len(GRID) // 2])
        mine.append((k, seed, float((logistic.predict(weights, test_Md) == test_label_M).double().mean())))
    found = {(k, seed): value for part in dist.all_gather_object(mine) for k, seed, value in part}
    result = {}
    for k in dict.fromkeys(k for k, _ in jobs):
        values = [round(found[k, seed], 6) for seed in SEEDS]
        result[str(k)] = {"accuracy": values, "mean": float(np.mean(values)), "std": float(np.std(values, ddof=1))}
    return result


def choose(label_N: Tensor, k: int, seed: int) -> Tensor:
    """``k`` samples of every class that occurs, int64, by a permutation that depends on the seed alone."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, k])))
    order = torch.from_numpy(rng.permutation(len(label_N))).to(label_N.device)
    labels = label_N[order]
    chosen = [order[(labels == number).nonzero()[:k, 0]] for number in sorted(set(label_N.tolist()))]
    return torch.cat(chosen).sort().values


def _accuracy(hit_M: Tensor) -> dict[str, Any]:
    n, correct = len(hit_M), int(hit_M.sum())
    return {"n": n, "correct": correct, "accuracy": correct / n, "interval": interval(hit_M.cpu().numpy())}
