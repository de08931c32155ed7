"""Every term by its name in the configuration. A term is found because its file lies in this folder; nothing lists it.

clip.py        clip, siglip
gap.py         alignment, uniformity, cross_uniformity
structure.py   in_modal, separation, brownian_bridge, geometric_consistency, cyclip
mixup.py       m2_mix, v_mix, l_mix, vl_mix
uniclip.py     uniclip (mp_nce, mil_nce, supcon), simclr
captioning.py  captioning
base.py        what a term is
"""

from __future__ import annotations

import importlib
import pkgutil

from pipeline.losses.terms.base import Step, Term

__all__ = ["TERMS", "Step", "Term"]


def _find() -> dict[str, type[Term]]:
    terms: dict[str, type[Term]] = {}
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
        for value in vars(importlib.import_module(f"{__name__}.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, Term) and "name" in vars(value):
                assert terms.get(value.name, value) is value, f"two terms are named {value.name}"
                terms[value.name] = value
    return terms


TERMS = _find()
