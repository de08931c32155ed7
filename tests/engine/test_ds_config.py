"""What DeepSpeed is told: derived once, and nothing unknown or contradictory gets through."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config import EngineConfig, OptimConfig, from_tree
from pipeline.engine.ds_config import ds_config, resolve_precision
from pipeline.errors import ConfigError


def derive(device_type: str = "cuda", precision: Any = "bf16", **engine: Any) -> dict[str, Any]:
    return ds_config(
        EngineConfig(**engine),
        OptimConfig(grad_clip_norm=0.5),
        micro_batch_size=8,
        world_size=4,
        precision=precision,
        device_type=device_type,
    )


def test_batch_clipping_stage_and_precision_come_from_the_run() -> None:
    config = derive(zero_stage=2)
    assert config["train_batch_size"] == 32 and config["train_micro_batch_size_per_gpu"] == 8
    assert config["gradient_clipping"] == 0.5
    assert config["zero_optimization"]["stage"] == 2 and config["zero_optimization"]["overlap_comm"] is True
    assert config["bf16"] == {"enabled": True} and "fp16" not in config


def test_bf16_without_sharding_uses_autocast_which_keeps_fp32_weights() -> None:
    config = derive(zero_stage=0)
    assert config["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"} and "bf16" not in config


def test_fp32_enables_nothing() -> None:
    assert not {"bf16", "fp16", "torch_autocast"} & derive(precision="fp32").keys()


def test_extra_settings_are_merged_without_touching_the_input() -> None:
    extra = {"zero_optimization": {"reduce_bucket_size": 7}, "wall_clock_breakdown": True}
    config = derive(deepspeed=extra)
    assert config["zero_optimization"]["reduce_bucket_size"] == 7 and config["zero_optimization"]["stage"] == 1
    assert config["wall_clock_breakdown"] is True
    assert extra == {"zero_optimization": {"reduce_bucket_size": 7}, "wall_clock_breakdown": True}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"train_batch_size": 8}, "derived from train.global_batch_size"),
        ({"bf16": {"enabled": True}}, "derived from engine.precision"),
        ({"zero_optimization": {"stage": 3}}, "derived from engine.zero_stage"),
        ({"zero_optimization": {"offload_optimizer": {}}}, "offload_optimizer is derived from engine.offload"),
        ({"zero_optimisation": {}}, "did you mean 'zero_optimization'"),
        ({"stage3_max_live_parameters": 1}, "unknown key 'stage3_max_live_parameters'"),
    ],
)
def test_refuses_what_is_derived_or_unknown(extra: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        derive(deepspeed=extra)


@pytest.mark.parametrize(
    ("device_type", "bf16", "expected"), [("cuda", True, "bf16"), ("cuda", False, "fp16"), ("cpu", True, "fp32")]
)
def test_automatic_precision(device_type: str, bf16: bool, expected: str) -> None:
    precision, reason = resolve_precision(EngineConfig(), device_type, bf16)
    assert precision == expected and reason


def test_a_configured_precision_wins() -> None:
    assert resolve_precision(EngineConfig(precision="bf16"), "cpu", False)[0] == "bf16"


def test_offloading_is_one_setting() -> None:
    config = derive(zero_stage=2, offload="cpu")
    assert config["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    assert config["zero_force_ds_cpu_optimizer"] is False
    disk = derive("cpu", zero_stage=3, offload="/local")["zero_optimization"]["offload_optimizer"]
    assert disk == {"device": "nvme", "nvme_path": "/local", "pin_memory": False}
    assert "offload_optimizer" not in derive(zero_stage=2)["zero_optimization"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"offload": "gpu"}, "engine.offload = gpu: use none, cpu, or the absolute path"),
        ({"offload": "cpu", "zero_stage": 0}, "engine.offload = cpu with engine.zero_stage = 0: .* from stage 1 on"),
        ({"offload": "/local", "zero_stage": 2}, "engine.offload = /local with engine.zero_stage = 2: .* at stage 3 only"),
    ],
)
def test_impossible_offloading_is_refused(settings: dict[str, Any], message: str) -> None:
    tree = {"name": "r", "data": {"train": "x"}, "model": {"architecture": "ViT-B-32"}, "engine": settings}
    with pytest.raises(ConfigError, match=message):
        from_tree({**tree, "train": {"steps": 9, "global_batch_size": 4}, "optim": {"warmup_steps": 0}})
