"""The loss: its terms, their weights, the temperature."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.config.limits import INFINITY, Ranges, Rule


@dataclass(frozen=True)
class WeightConfig:
    """How much a loss term counts over a run. These keys stand among the term's own settings."""

    weight: float = 1.0
    schedule: Literal["constant", "linear", "cosine", "inverse_epoch"] = "constant"
    """``linear`` and ``cosine`` go from weight to final_weight over the run; ``inverse_epoch`` is weight / (epoch + 1)."""
    final_weight: float = 0.0


@dataclass(frozen=True)
class ObjectiveConfig:
    """The loss: which terms, with which weights. Temperature = 1 / logit scale."""

    terms: dict[str, dict[str, Any]] = field(default_factory=lambda: {"clip": {}})
    """Term name to its settings, see ``losses/terms``; weights and schedules as in ``WeightConfig``."""

    init_temperature: float = 0.07
    min_temperature: float = 0.01
    """Bound that holds in every forward pass, whatever the optimizer did to the parameter."""
    learn_temperature: bool = True
    tile: int | None = None
    """Rows and columns of a tile of cosines; changes memory and speed only. None: 512 on the CPU, 4096 on a GPU."""
    keep_mb: float = 24.0
    """Memory in MB for cosines of the first pass that the second uses again; what does not fit is computed twice."""
    gather_dtype: Literal["fp32", "bf16"] = "fp32"
    """What embeddings travel between ranks in; gradients return in fp32 either way."""
    product_dtype: Literal["fp32", "bf16"] = "fp32"
    """What embeddings are rounded to for products with negatives; sums and positives are fp32 either way."""


RANGES: Ranges = {
    "objective.tile": (1, INFINITY),
    "objective.keep_mb": (0, INFINITY),
}


def rules(objective: ObjectiveConfig) -> list[Rule]:
    """Combinations of these settings that must hold."""
    return [
        (
            0 < objective.min_temperature <= objective.init_temperature <= 1,
            f"objective: need 0 < min_temperature <= init_temperature <= 1, got min_temperature = "
            f"{objective.min_temperature}, init_temperature = {objective.init_temperature}",
        ),
    ]
