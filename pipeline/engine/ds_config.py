"""Everything DeepSpeed is told, as a pure function of the run's configuration. Imports no DeepSpeed.

DeepSpeed ignores top-level keys that it does not know, so a misplaced or misspelt setting is silently a default; here it is
an error. A fact that the run's own configuration states (batch size, precision, clipping, stage) cannot be stated a second
time in ``engine.deepspeed``.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

from pipeline import strict
from pipeline.config import EngineConfig, OptimConfig
from pipeline.errors import ConfigError

ResolvedPrecision = Literal["bf16", "fp16", "fp32"]

_DERIVED = {
    "train_batch_size": "train.global_batch_size",
    "train_micro_batch_size_per_gpu": "train.global_batch_size",
    "gradient_accumulation_steps": "train.micro_batches",
    "gradient_clipping": "optim.grad_clip_norm",
    "bf16": "engine.precision",
    "fp16": "engine.precision",
    "torch_autocast": "engine.precision",
    "optimizer": "optim",
    "scheduler": "optim.warmup_steps and optim.lr",
    "steps_per_print": "log.every_steps",
}
_DERIVED_IN_ZERO = {"stage": "engine.zero_stage", "offload_optimizer": "engine.offload"}
_PASSED_ON = {
    "zero_optimization",
    "activation_checkpointing",
    "aio",
    "comms_logger",
    "communication_data_type",
    "data_types",
    "flops_profiler",
    "memory_breakdown",
    "prescale_gradients",
    "wall_clock_breakdown",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
}
# Elements per bucket. DeepSpeed's own 5e8 reserves gigabytes for models that have a hundredth of that.
_BUCKET_ELEMENTS = 25_000_000


def resolve_precision(engine: EngineConfig, device_type: str, bf16_supported: bool) -> tuple[ResolvedPrecision, str]:
    """What ``engine.precision`` means on this device, and the reason, for the log.

    Args:
        device_type: ``cuda`` or ``cpu``.
        bf16_supported: whether that device computes in bf16.
    """
    if engine.precision != "auto":
        return engine.precision, "as configured"
    if device_type != "cuda":
        return "fp32", "on the CPU, where bf16 was measured to gain nothing for small models"
    return ("bf16", "this GPU computes in bf16") if bf16_supported else ("fp16", "this GPU has no bf16")


def ds_config(
    engine: EngineConfig,
    optim: OptimConfig,
    *,
    micro_batch_size: int,
    world_size: int,
    precision: ResolvedPrecision,
    device_type: str,
    micro_batches: int = 1,
) -> dict[str, Any]:
    """The dictionary for ``deepspeed.initialize``.

    Args:
        micro_batch_size: pairs per rank and forward pass.
        micro_batches: forward and backward passes per step.
        precision: from ``resolve_precision``.

    Raises:
        ConfigError: a key of ``engine.deepspeed`` is unknown, or derived from another setting that it would contradict.
    """
    for key in engine.deepspeed:
        if key in _DERIVED:
            raise ConfigError(f"engine.deepspeed.{key} is derived from {_DERIVED[key]}; set that instead")
        if key not in _PASSED_ON:
            raise ConfigError(strict.unknown_key(f"engine.deepspeed.{key}", key, _PASSED_ON))
    extra = copy.deepcopy(engine.deepspeed)
    zero = extra.pop("zero_optimization", {})
    for key, source in _DERIVED_IN_ZERO.items():
        if key in zero:
            raise ConfigError(f"engine.deepspeed.zero_optimization.{key} is derived from {source}; set that instead")
    config: dict[str, Any] = {
        "train_batch_size": micro_batch_size * micro_batches * world_size,
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": micro_batches,
        "gradient_clipping": optim.grad_clip_norm or 0.0,
        "steps_per_print": 2**31 - 1,  # the run logs for itself
        "zero_optimization": {
            "stage": engine.zero_stage,
            "overlap_comm": device_type == "cuda" and engine.zero_stage > 0,
            "reduce_bucket_size": _BUCKET_ELEMENTS,
            "allgather_bucket_size": _BUCKET_ELEMENTS,
            **zero,
        },
        **extra,
    }
    if engine.offload != "none":
        config["zero_optimization"]["offload_optimizer"] = _offload(engine.offload, pin_memory=device_type == "cuda")
        # torch's fused AdamW runs on the CPU as well; DeepSpeed's own would need a C++ compiler at the first start.
        config.setdefault("zero_force_ds_cpu_optimizer", False)
    if precision == "bf16" and engine.zero_stage == 0:
        # DeepSpeed's bf16 mode has no fp32 master weights at stage 0: small updates would be rounded away. Autocast keeps them.
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    elif precision != "fp32":
        config[precision] = {"enabled": True}
    return config


def _offload(where: str, *, pin_memory: bool) -> dict[str, Any]:
    """Optimizer state on the CPU, or in files of a local disk."""
    if where == "cpu":
        return {"device": "cpu", "pin_memory": pin_memory}
    return {"device": "nvme", "nvme_path": where, "pin_memory": pin_memory}
