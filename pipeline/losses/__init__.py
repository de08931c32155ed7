"""The losses. ``reference/`` is the specification; everything else equals it in value and gradient at any world size.

    reference/     THE SPEC: plain formulas on the whole batch, one file per paper
    gather.py      the differentiable collectives
    reductions.py  the words in which a term says what it wants to have summed over negatives
    tiles.py       the tile engine, which computes that for all terms at once, with
                     operands.py  what its matrix products work on: rows, gathered columns, number formats, masks
                     tile.py      one tile: its cosines, exponents, and the way back
                     sums.py      reductions under way
    terms/         the terms, one file per family; each says what it wants from the engine and what it makes of it
    objective.py   Objective: the weighted sum of the terms that a run asks for

To add a term: write its formula in ``reference/``, a class in a file of ``terms/`` (it is found there), and a case in
``tests/losses/cases.py``, which compares the two. ``docs/add_a_loss.md`` walks through one.
"""

from pipeline.losses.objective import Objective

__all__ = ["Objective"]
