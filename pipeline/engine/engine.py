"""``Engine``: the verbs of a training step, the same at every ZeRO stage, precision, and world size.

    engine = Engine(model, cfg.optim, cfg.engine, world=world, device=device, micro_batch_size=64)
    features = engine.forward(inputs)
    engine.backward(loss)                      # averages gradients over ranks
    grad_norm = engine.step(lr)                # clips, steps; or moves nothing where the norm is not finite
    engine.snapshot(); engine.restore(reader)  # this rank's share of the state, restored at any world size and stage
    engine.consolidated()                      # fp32 weights on rank 0

DeepSpeed is configured by ``ds_config`` alone; nothing outside this room touches its objects.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import warnings
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else every rank warns that it looked for one in vain

import deepspeed
import torch.distributed as torch_dist
from torch import Tensor, nn

from pipeline.config import EngineConfig, OptimConfig
from pipeline.dist import World
from pipeline.engine.average import WeightAverage
from pipeline.engine.ds_config import ds_config, resolve_precision
from pipeline.engine.gate import Gate
from pipeline.engine.parameters import parameter_groups
from pipeline.engine.reduction import Reduction, applies
from pipeline.engine.state import OptimizerState, pieces
from pipeline.errors import ConfigError
from pipeline.features import Features, Inputs
from pipeline.pieces import MODEL_KINDS, Piece, Reader, Snapshot, share

_COUNTERS = ("global_steps", "skipped_steps")
_LOSS_SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


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
        _check_disk(engine.offload)
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
        state = model.state_dict()
        self._shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        self._buffers = [name for name, _ in model.named_buffers() if name in state]
        optimizer = torch.optim.AdamW(
            parameter_groups(model, optim), lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=True
        )
        try:
            self._ds, self._optimizer, _, _ = deepspeed.initialize(
                model=model.to(device), optimizer=optimizer, config=self.ds_config, dist_init_required=False
            )
        except (ValueError, TypeError, AssertionError) as error:
            raise ConfigError(f"DeepSpeed refuses this configuration: {error}\nit was told: {self.ds_config}") from error
        self._reduction: Reduction | None = None
        if applies(self._optimizer, engine.deepspeed):
            order = {id(parameter): place for place, parameter in enumerate(self._ds.module.parameters())}
            self._reduction = Reduction(self._optimizer, order, early=engine.zero_stage == 2)
            self._ds.enable_backward_allreduce = False
        self._gate = Gate(self._ds.basic_optimizer, self._optimizer, device)
        if self._gate.can_clip and self.precision != "fp16":  # which unscales and clips in one
            # Stage 0: DeepSpeed would compute the norm a second time, tensor by tensor. Others: one more pass over gradients,
            # and the norm in fp64, of a copy of each gradient.
            self._gate.clip_norm = optim.grad_clip_norm
            self._ds._config.gradient_clipping = self._optimizer.clip_grad = 0.0
            self._optimizer.compute_grad_norm = self._reduction is None
        # Not torch.manual_seed: it formats a stack for every device that is not in use, a hundred times the work.
        self._generators = [torch.default_generator]
        if device.type == "cuda":
            self._generators.append(torch.cuda.default_generators[device.index or 0])
        self._state = OptimizerState(self._ds)
        self._average = WeightAverage(self._state, engine.ema_decay) if engine.ema_decay is not None else None

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

    def draw_from(self, seed: int, place: int, count: int, samples: int) -> None:
        """Fix what the next forward pass draws at random.

        Args:
            seed: the step's, equal on all ranks.
            place: of the micro-batch among this rank's ``count`` of ``samples`` each.
        """
        number = self._ds.global_rank * count + place
        for generator in self._generators:
            generator.manual_seed((seed + number) % 2**64)
        self.module.draw_from(seed, first=number * samples, count=samples)

    def forward(self, inputs: Inputs) -> Features:
        """This rank's features; see ``ClipModel.forward``."""
        features: Features = self._ds(*inputs)
        return features

    def backward(self, loss: Tensor, *, last: bool = True) -> None:
        """Back-propagate this rank's share of the loss, or one micro-batch's part of it.

        Gradients are averaged over ranks; the parts of a step add up, and ``step`` follows the last one.
        """
        if self._reduction is not None:
            self._reduction.expect(last=last)
        self._ds.backward(loss, scale_wrt_gas=False)
        if self._reduction is not None:
            self._reduction.finish(last=last)
        if not last:
            self._ds.step()  # counts the micro-batch; moves nothing

    def step(self, lr: float, max_norm: float | None = None, veto: Tensor | None = None) -> Tensor:
        """Clip, update the weights with learning rate ``lr``, clear gradients.

        Where the gradient norm is not finite or above ``max_norm``, or ``veto`` (0-dim bool on the device, equal on all ranks)
        is true, only the last happens: nothing moves on any rank, neither weights nor moments nor averages; see ``skipped``.
        The host does not wait for the answer.

        Returns:
            The global gradient norm before clipping, equal on all ranks; 0-dim fp32 on the device.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self._gate.arm(max_norm, veto, self._gradient_norm())
        self._ds.step()
        norm = self._gate.settle()
        if self._average is not None:
            self._average.update(self.skipped)
        return norm

    @property
    def skipped(self) -> Tensor:
        """1.0 where the last step moved nothing, else 0.0; 0-dim, on the device."""
        return self._gate.skipped

    @property
    def searching_scale(self) -> bool:
        """Whether the last step was skipped only because fp16's loss scale was too high; it is lower now."""
        return self._gate.searching

    def _gradient_norm(self) -> Tensor | None:
        """The global norm where it is at hand; None where DeepSpeed computes one."""
        if self._reduction is not None and not self._optimizer.compute_grad_norm:
            return self._reduction.norm()
        if not isinstance(self._optimizer, torch.optim.Optimizer):
            return None
        norms = torch._foreach_norm([p.grad for p in self.module.parameters() if p.grad is not None])
        total: Tensor = torch.stack(norms).norm()
        return total

    @property
    def on_disk(self) -> bool:
        """Whether the optimizer's state is in files, which a snapshot reads."""
        return self._state.on_disk

    def snapshot(self) -> Snapshot:
        """This rank's share of weights, optimizer state and averages, as views of live memory; no communication.

        What every rank holds is shared out, so that together they write everything once.
        """
        rank, size, found = self._ds.global_rank, self._ds.world_size, []
        for group in self._state.groups:
            with self._state.loaded(group):
                tensors = self._state.tensors(group)
                if self._average is not None:
                    tensors["ema"] = self._average.of(group)
                held = pieces(group, tensors)
                found += [_clone(piece) for piece in held] if self._state.on_disk else held
                if group.replicated:
                    found[-len(held) :] = [_part(piece, rank, size) for piece in held]
        found += [_part(piece, rank, size) if replicated else piece for piece, replicated in self._frozen_pieces()]
        found += self._buffer_pieces() if rank == 0 else []
        scalars = {
            "optimizer_steps": self._state.steps(),
            "loss_scale": {name: getattr(scaler, name) for scaler, name in self._scaling()},
            "counters": {name: getattr(self._ds, name) for name in _COUNTERS},
            "ema_updates": self._average.updates if self._average is not None else 0,
        }
        return Snapshot([piece for piece in found if piece.values.numel()], scalars, self._shapes)

    def restore(self, reader: Reader) -> None:
        """Take over a saved state, whatever world size and stage it was saved at; every rank, together.

        Raises:
            CheckpointError: it lacks something of this model, or holds a tensor of another size.
        """
        with torch.no_grad():  # before the rest: stage 3 gathers small parameters again once those that train are restored
            for piece, _ in self._frozen_pieces():
                reader.fill(piece)
        self._state.restore(reader)
        with torch.no_grad():
            for piece in self._buffer_pieces():
                reader.fill(piece)
            if self._average is not None:
                self._average.restore(reader)
        for scaler, name in self._scaling():
            setattr(scaler, name, reader.scalars["loss_scale"].get(name, getattr(scaler, name)))
        for name in _COUNTERS:
            setattr(self._ds, name, reader.scalars["counters"][name])

    def _frozen_pieces(self) -> list[tuple[Piece, bool]]:
        """Parameters that are not trained, and whether every rank holds the same of them."""
        found = []
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                continue
            if hasattr(parameter, "ds_id"):  # stage 3: this rank's part, the last ones padded
                part = parameter.partition_numel()
                start = min(part * self._ds.global_rank, parameter.ds_numel)
                values = parameter.ds_tensor.detach().view(-1)[: min(part, parameter.ds_numel - start)]
                found.append((Piece("frozen", name, self._shapes[name], start, values), False))
            else:
                found.append((Piece("frozen", name, self._shapes[name], 0, parameter.detach().view(-1)), True))
        return found

    def _buffer_pieces(self) -> list[Piece]:
        buffers = dict(self.module.named_buffers())
        return [Piece("buffer", name, self._shapes[name], 0, buffers[name].view(-1)) for name in self._buffers]

    def _scaling(self) -> list[tuple[Any, str]]:
        """Where fp16 keeps its loss scale and what it counts to adapt it."""
        wrapper = self._optimizer
        scaler = getattr(wrapper, "loss_scale_config", None) or getattr(wrapper, "loss_scaler", None)
        return [(scaler, name) for name in _LOSS_SCALE if hasattr(scaler, name)]

    def consolidated(self, *, averaged: bool = False) -> dict[str, Tensor]:
        """The whole model's weights by name, fp32 (buffers as they are), on the CPU of rank 0 (empty elsewhere).

        Every rank, together. A checkpoint puts the weights together from files instead, without this traffic.

        Args:
            averaged: the averages (``engine.ema_decay``) of the trainable weights instead.
        """
        kinds = ("ema", "frozen", "buffer") if averaged else MODEL_KINDS
        mine = [dataclasses.replace(p, values=p.values.cpu()) for p in self.snapshot().pieces if p.kind in kinds]
        gathered: list[list[Piece]] = [[] for _ in range(self._ds.world_size)]
        main = self._ds.global_rank == 0
        torch_dist.gather_object(mine, gathered if main else None)
        weights: dict[str, Tensor] = {}
        for piece in (piece for part in gathered for piece in part):
            dtype = piece.values.dtype if piece.kind == "buffer" else torch.float32
            whole = weights.setdefault(piece.name, torch.empty(piece.shape, dtype=dtype))
            whole.view(-1)[piece.start : piece.stop] = piece.values
        return {name: weights[name] for name in self._shapes if name in weights}


def _part(piece: Piece, rank: int, world_size: int) -> Piece:
    """What ``rank`` saves of a piece that every rank holds."""
    start, stop = share(piece.values.numel(), rank, world_size)
    return dataclasses.replace(piece, start=piece.start + start, values=piece.values[start:stop])


def _clone(piece: Piece) -> Piece:
    return dataclasses.replace(piece, values=piece.values.clone())


def _check_disk(offload: str) -> None:
    """Refuse to keep state in files where DeepSpeed could not build its operator for that.

    Raises:
        ConfigError: it needs the libaio library with its headers.
    """
    if offload not in ("none", "cpu") and not deepspeed.ops.op_builder.AsyncIOBuilder().is_compatible(verbose=False):
        raise ConfigError(
            f"engine.offload = {offload}: DeepSpeed's operator for disks cannot be built here; install libaio and its headers "
            f"(apt install libaio-dev) and a C++ compiler, or use engine.offload = cpu"
        )


def _quiet() -> None:
    """Keep DeepSpeed's configuration dump out of the log, and its optional shared-memory extension from being compiled.

    That extension serves inference only; building it would need a C++ compiler and 20 s at a first run on the CPU.
    """
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger")
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
