"""The losses. ``reference/`` is the specification; everything else must equal it in value and gradient.

    gather.py      the differentiable gather over ranks
    info_nce.py    CLIP's loss over negatives from every rank

To add a loss: write its formula in ``reference.py``, its distributed form in a file of its own that takes ``Features``, and a
case in ``tests/losses/test_oracle.py``, which compares the two at several world sizes.
"""

from pipeline.features import Features
from pipeline.losses.info_nce import info_nce

__all__ = ["Features", "info_nce"]
