"""The guide to adding a loss term is true: its code runs, and the term that it adds equals its reference."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.losses.terms import TERMS
from tests.losses import cases

GUIDE = Path(__file__).parents[2] / "docs" / "add_a_loss.md"
IMPORTS = """
from dataclasses import dataclass
from typing import ClassVar
import torch
from pipeline.losses.reference.masks import apart, masked_logsumexp
from pipeline.losses.terms.base import Term, cosine, paired
from pipeline.losses.reductions import AXES, Reduction
from tests.losses.cases import VIEWS, Case
"""


@pytest.mark.parametrize("groups", cases.GROUPS)
def test_the_guide_adds_a_term_that_equals_its_reference(monkeypatch: pytest.MonkeyPatch, groups: str) -> None:
    formula, term, case_text = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    scope: dict[str, Any] = {"__name__": cases.__name__}  # dataclasses look their module up
    exec(IMPORTS + formula + term, scope)
    case = eval(case_text, scope)
    monkeypatch.setitem(TERMS, "decoupled", scope["Decoupled"])
    truth = cases.expected(case, cases.GROUPS[groups])
    assert cases.largest_error(cases.measured(case, cases.GROUPS[groups], 0, 1), truth) < 1e-9
