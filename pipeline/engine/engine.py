"""``Engine``: the verbs of a training step, the same at every ZeRO stage, precision, and world size.

    engine = Engine(model, cfg.optim, cfg.engine, world=world, device=device, micro_batch_size=64)
    features = engine.forward(inputs)
    engine.backward(loss)                      # averages gradients over ranks
    grad_norm = engine.step(lr)                # clips, steps
    engine.save(folder); engine.load(folder)   # every rank, together
    engine.consolidated()                      # fp32 weights on rank 0

DeepSpeed is configured by ``ds_config`` alone; nothing outside this room touches its objects.
"""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else every rank warns that it looked for one in vain

import deepspeed
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor, nn

from pipeline.config import EngineConfig, OptimConfig
from pipeline.dist import World
from pipeline.engine.ds_config import ds_config, resolve_precision
from pipeline.engine.parameters import parameter_groups
from pipeline.engine.safe_loading import SafeCheckpointEngine
from pipeline.errors import CheckpointError, ConfigError
from pipeline.features import Features, Inputs

_TAG = "engine"


class Engine:
    """A model, its optimizer, and how both are spread over ranks."""

    def __init__(
        self,
        model: nn.Module,
        optim: OptimConfig,
        engine: EngineConfig,
        *,
        world: World,
        device: torch.device,
        micro_batch_size: int,
        micro_batches: int = 1,
    ) -> None:
        """Initialise DeepSpeed; every rank, together. The process group exists already.

        Raises:
            ConfigError: a DeepSpeed setting is unknown, derived from another one, or refused by DeepSpeed.
        """
        _quiet()
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        self.precision, self.precision_reason = resolve_precision(engine, device.type, bf16)
        self.ds_config = ds_config(
            engine,
            optim,
            micro_batch_size=micro_batch_size,
            micro_batches=micro_batches,
            world_size=world.size,
            precision=self.precision,
            device_type=device.type,
        )
        # Before DeepSpeed casts: what a checkpoint's weights are named, in order, and which of them are buffers.
        self._buffers = [name for name, _ in model.named_buffers() if name in model.state_dict()]
        optimizer = torch.optim.AdamW(
            parameter_groups(model, optim), lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=True
        )
        try:
            self._ds, self._optimizer, _, _ = deepspeed.initialize(
                model=model.to(device), optimizer=optimizer, config=self.ds_config, dist_init_required=False
            )
        except (ValueError, TypeError, AssertionError) as error:
            raise ConfigError(f"DeepSpeed refuses this configuration: {error}\nit was told: {self.ds_config}") from error
        self._ds.checkpoint_engine = SafeCheckpointEngine(self._ds.checkpoint_engine)

    @property
    def module(self) -> Any:
        """The model, for evaluation under ``eval()`` and ``no_grad``."""
        return self._ds.module

    def train(self) -> None:
        """Switch dropout and the like to training."""
        self._ds.train()

    def eval(self) -> None:
        """Switch dropout and the like off."""
        self._ds.eval()

    def forward(self, inputs: Inputs) -> Features:
        """This rank's features; see ``ClipModel.forward``."""
        features: Features = self._ds(*inputs)
        return features

    def backward(self, loss: Tensor, *, last: bool = True) -> None:
        """Back-propagate this rank's share of the loss, or one micro-batch's part of it.

        Gradients are averaged over ranks; the parts of a step add up, and ``step`` follows the last one.
        """
        self._ds.backward(loss, scale_wrt_gas=False)
        if not last:
            self._ds.step()  # counts the micro-batch; moves nothing

    def step(self, lr: float) -> float:
        """Clip, update the weights with learning rate ``lr``, clear gradients.

        Returns:
            The global gradient norm before clipping, equal on all ranks.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        # Without a wrapped optimizer (stage 0 in fp32 or autocast) DeepSpeed clips, but reports no norm.
        unwrapped = isinstance(self._optimizer, torch.optim.Optimizer)
        norm = self._gradient_norm() if unwrapped else None
        self._ds.step()
        return float(self._ds.get_global_grad_norm() if norm is None else norm)

    def _gradient_norm(self) -> Tensor:
        norms = [p.grad.norm() for p in self.module.parameters() if p.grad is not None]
        total: Tensor = torch.stack(norms).norm()
        return total

    def save(self, folder: Path) -> None:
        """Write every rank's share of model and optimizer state under ``folder``; every rank, together."""
        self._ds.save_checkpoint(str(folder), tag=_TAG, save_latest=False)
        # DeepSpeed adds scripts that unpickle these files without care; the weights are in the checkpoint as safetensors.
        for script in ("zero_to_fp32.py", "zero_to_torch.py"):
            (folder / script).unlink(missing_ok=True)

    def load(self, folder: Path) -> None:
        """Restore what ``save`` wrote, at the same world size and stage; every rank, together.

        Raises:
            CheckpointError: the files do not fit this model, stage, or world size, or hold something that is not data.
        """
        try:
            path, _ = self._ds.load_checkpoint(str(folder), tag=_TAG)
        except Exception as error:
            raise CheckpointError(f"{folder} cannot be restored into this run: {error}") from error
        if path is None:
            raise CheckpointError(f"{folder} holds no engine state; it may belong to another ZeRO stage")

    def consolidated(self) -> dict[str, Tensor]:
        """The whole model's weights by name, fp32, on the CPU of rank 0 (empty elsewhere); every rank, together.

        Taken from the optimizer's fp32 masters where there are any, parameter by parameter, so that no rank ever holds more
        than one whole parameter besides its own share.
        """
        main = self._ds.global_rank == 0
        weights: dict[str, Tensor] = {}
        for name, parameter in self.module.named_parameters():
            full = _whole(parameter)
            if main:
                weights[name] = full.detach().to("cpu", torch.float32, copy=True).contiguous()
        if main:
            buffers = dict(self.module.named_buffers())
            weights.update({name: buffers[name].detach().to("cpu", copy=True) for name in self._buffers})
        return weights


def _whole(parameter: nn.Parameter) -> Tensor:
    """One parameter in full: its fp32 master if sharded or cast, else itself. Collective where it is sharded."""
    if parameter.requires_grad:
        master: Tensor | None = safe_get_full_fp32_param(parameter)
        if master is not None:
            shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
            return master.view(shape)
    if hasattr(parameter, "ds_id"):  # sharded at stage 3 but frozen: it has no master
        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()
    return parameter


def _quiet() -> None:
    """Keep DeepSpeed's configuration dump out of the log, and its optional shared-memory extension from being compiled.

    That extension serves inference only; building it would need a C++ compiler and 20 s at a first run on the CPU.
    """
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger")
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
