"""From a run's configuration to its model, with the initial weights and locks that it asks for.

model = build(cfg.model, cfg.objective, objective.scalars(), num_view_params=K)     # a ClipModel
objective.check(domains(num_views, cfg.model))                                      # what it will make
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline.config import ModelConfig, ObjectiveConfig
from pipeline.config.model import HeadsConfig
from pipeline.features import Scalar, view_name
from pipeline.models import draws, tuning, weights
from pipeline.models.heads import Heads
from pipeline.models.model import CAPTIONING, ClipModel
from pipeline.models.scale import LogitScale
from pipeline.models.text import accept_any_length
from pipeline.models.towers import architecture, build_towers

__all__ = ["ClipModel", "build", "domains"]


def domains(num_views: int = 1, model: ModelConfig | None = None) -> tuple[str, ...]:
    """What the model makes of this many image views, by the names that losses use: embeddings, and extras of captioning models.

    Args:
        num_views: V.
        model: whose heads add domains of their own; None is a model without heads.
    """
    heads = HeadsConfig() if model is None else model.heads
    views = [view_name(view) for view in range(num_views)]
    found = [*views, "text"]
    captioning = model is not None and "multimodal_cfg" in architecture(model)
    if heads.independent is not None:
        found += [f"independent_{name}" for name in found]
    if heads.projector is not None:
        found += [f"projected_{name}" for name in views]
    return (*found, *CAPTIONING) if captioning else tuple(found)


def build(
    model: ModelConfig,
    objective: ObjectiveConfig,
    scalars: Mapping[str, Scalar] | None = None,
    *,
    num_view_params: int = 0,
) -> ClipModel:
    """The model of a run, on the CPU in fp32, with the initial weights the configuration asks for.

    Args:
        model: architecture, heads, and options.
        objective: the temperature's start and bound.
        scalars: further numbers that the run's loss learns (``Objective.scalars``); evaluation and export need none.
        num_view_params: K, how many numbers describe a view; only a head that is aware of augmentations needs it.

    Raises:
        ConfigError: the architecture is unknown, a head does not fit it, or the initial weights do not.
    """
    config = architecture(model)
    towers = build_towers(config, second_image_tower=model.second_tower == "image")
    accept_any_length(towers.text)
    draws.by_sample(towers)
    if model.gradient_checkpointing:
        for tower in towers.modules():
            tower.set_grad_checkpointing(True)
    heads = None
    if model.heads != HeadsConfig():
        heads = Heads(model.heads, towers.visual, towers.text, config["embed_dim"], num_view_params)
    scale = LogitScale(objective.init_temperature, objective.min_temperature, objective.learn_temperature)
    clip = ClipModel(towers, scale, scalars, heads, views_together=model.views_together)
    if model.init_weights is not None:
        fixed = clip.logit_scale.log_scale.detach().clone()
        weights.load(clip, Path(model.init_weights), fresh_projections=model.fresh_projections)
        if not objective.learn_temperature:  # a temperature that the run fixes is the run's, not the file's
            clip.logit_scale.log_scale.data.copy_(fixed)
    for prefix, tower in (("visual", model.image_tower), ("text", model.text_tower)):
        if tower.init_weights is not None:
            weights.load_tower(clip, prefix, Path(tower.init_weights))
    tuning.apply(clip, model)
    if model.compile:
        for tower in towers.modules():
            tower.compile()
    return clip
