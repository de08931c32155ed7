"""The schema and its strict loader: right values round-trip, wrong ones say where, what, and what was probably meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline import config, strict
from pipeline.errors import ConfigError


def tree(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "name": "run",
        "data": {"train": "shards"},
        "model": {"architecture": "ViT-B-32"},
        "train": {"steps": 100, "global_batch_size": 12},
        "optim": {"warmup_steps": 10},
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = base
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value
    return base


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


YAML = """
# comment
name: run
data: {train: shards}
model:
  inline: {embed_dim: 8, vision_cfg: {width: 4}, text_cfg: {width: 4}}
train: {steps: 100, global_batch_size: 12}
optim: {warmup_steps: 0, lr: 1e-4}
augment: {crop_scale: [0.5, 1]}
"""


def test_numbers_in_scientific_notation_are_numbers(tmp_path: Path) -> None:
    cfg = config.load(write(tmp_path, YAML), ["optim.eps=1e-8", "optim.weight_decay=5E-2", "optim.min_lr=.00001"])
    assert (cfg.optim.lr, cfg.optim.eps, cfg.optim.weight_decay, cfg.optim.min_lr) == (1e-4, 1e-8, 5e-2, 1e-5)
    assert cfg.augment.crop_scale == (0.5, 1.0)


def test_words_that_yaml_1_1_takes_for_booleans_stay_words(tmp_path: Path) -> None:
    assert config.load(write(tmp_path, YAML), ["name=no"]).name == "no"


def test_dump_loads_to_an_equal_config(tmp_path: Path) -> None:
    cfg = config.load(write(tmp_path, YAML), ["engine.deepspeed={wall_clock_breakdown: true}", "eval.sets=[a, b]", "name=off"])
    assert config.load(write(tmp_path, config.dump(cfg))) == cfg


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", r"optim.lrr: unknown key 'lrr'; did you mean 'lr'\?"),
        ("optimm.lr=1", r"optimm: unknown key 'optimm'; did you mean 'optim'\?"),
        ("xyzzy=1", r"unknown key 'xyzzy'; known keys: augment, checkpoint, data"),
        ("optim.lr=fast", r"optim.lr = 'fast': expected float, got str"),
        ("train.steps=1.5", r"train.steps = 1.5: expected int, got float"),
        ("train.steps=true", r"train.steps = True: expected int, got bool"),
        ("log.tensorboard=1", r"log.tensorboard = 1: expected bool, got int"),
        (
            "engine.precision=bf17",
            r"engine.precision = 'bf17': must be one of auto, bf16, fp16, fp32 \(did you mean 'bf16'\?\)",
        ),
        ("augment.crop_scale=[0.5]", r"augment.crop_scale = \[0.5\]: expected 2 values, got 1"),
        ("optim=3", r"optim: expected a group of settings, got 3"),
        ("optim.lr", r"override 'optim.lr' is neither key.sub=value nor a .yaml file"),
        ("name.first=x", r"name holds a value, not a group"),
        ("optim.lr=[1", r"is not valid YAML"),
    ],
)
def test_wrong_overrides_are_explained(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.load(write(tmp_path, YAML), [override])


def test_a_file_as_override_replaces_the_keys_it_names(tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text("objective: {terms: {siglip: {weight: 2.0}}}\nseed: 7\n")
    cfg = config.load(write(tmp_path, YAML), ["objective.tile=9", str(tmp_path / "more.yaml"), "seed=8"])
    assert cfg.objective.terms == {"siglip": {"weight": 2.0}} and cfg.objective.tile == 9 and cfg.seed == 8


def test_a_key_given_twice_is_an_error_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run.yaml line 10: key 'name' is given twice"):
        config.load(write(tmp_path, YAML + "name: again\n"))


def test_a_missing_file_names_the_nearest_one(tmp_path: Path) -> None:
    write(tmp_path, YAML)
    with pytest.raises(ConfigError, match=r"rum.yaml does not exist; did you mean run.yaml\?"):
        config.load(tmp_path / "rum.yaml")


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just text"])
def test_a_file_that_holds_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="must hold a mapping of settings"):
        config.load(write(tmp_path, text))


def test_a_required_key_is_named() -> None:
    without = tree()
    del without["train"]["steps"]
    with pytest.raises(ConfigError, match="train.steps is required and not set"):
        config.from_tree(without)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a/b"}, "use one folder name"),
        ({"train__steps": 0}, "train.steps = 0: must be at least 1"),
        ({"train__global_batch_size": 1}, "global_batch_size = 1: must be at least 2"),
        ({"model__inline": {}}, "exactly one of architecture, inline"),
        ({"engine__zero_stage": 4}, r"engine.zero_stage = 4: must be within \[0, 3\]"),
        ({"optim__grad_clip_norm": 0.0}, "optim.grad_clip_norm = 0.0: must be positive"),
        ({"seed": -1}, "seed = -1: must be at least 0"),
        ({"engine__zero_stage": 3, "model__compile": True}, "use a stage up to 2, or compile = false"),
        ({"optim__lr": 0.0}, "optim.lr = 0.0: must be positive"),
        ({"optim__min_lr": 1.0}, "optim.min_lr = 1.0"),
        ({"optim__warmup_steps": 101}, "optim.warmup_steps = 101"),
        ({"objective__min_temperature": 0.2}, "min_temperature = 0.2, init_temperature = 0.07"),
        ({"augment__crop_scale": [1.0, 0.5]}, r"augment.crop_scale = \(1.0, 0.5\): need 0 < low <= high <= 1"),
        ({"eval__every_steps": 1500}, "must be a multiple of checkpoint.every_steps = 1000"),
        ({"augment__hue": 0.6}, "augment.hue = 0.6"),
        ({"data__max_bad_fraction": 1.5}, r"data.max_bad_fraction = 1.5: must be within \[0, 1\]"),
    ],
)
def test_impossible_values_and_combinations_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.from_tree(tree(**changes))


def test_the_batch_per_rank_is_derived_and_must_divide_evenly() -> None:
    assert config.micro_batch_size(12, 3) == 4
    with pytest.raises(ConfigError, match=r"= 10 does not divide over 4 ranks \(remainder 2\); use one of: 8, 12"):
        config.micro_batch_size(10, 4)
    assert config.micro_batch_size(24, 3, 4) == 2
    with pytest.raises(ConfigError, match=r"= 12 does not divide over 3 ranks in 3 micro-batches each.*use one of: 9, 18"):
        config.micro_batch_size(12, 3, 3)
    with pytest.raises(ConfigError, match="use one of: 4$"):
        config.micro_batch_size(3, 4)


def test_yaml_that_would_construct_objects_is_refused() -> None:
    with pytest.raises(ConfigError, match="not valid YAML"):
        strict.parse_yaml("!!python/object/apply:os.system ['true']")
