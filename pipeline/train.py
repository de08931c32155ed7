"""Pretraining: ``unisphere train CONFIG [key.sub=value ...]``, under python, torchrun, deepspeed, or srun.

The story of a run is ``train`` below: set up, one loop, tear down. What a step does to the weights is visible in the loop;
what it computes with is built before it. Heavy imports wait until the command line has been understood, so that ``--help``
and ``--print-config`` answer at once.

Everything random or scheduled is a function of the step, never of what happened before it: that is why a resumed run
continues the same sequence of losses, and why a checkpoint holds so little besides tensors.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from pipeline import config
from pipeline.cli import guarded
from pipeline.config import RunConfig
from pipeline.errors import NumericsError
from pipeline.schedule import is_time, lr_at

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.dist import World

T = TypeVar("T")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, then train."""
    parser = argparse.ArgumentParser(prog="unisphere train", description="Pretrain a CLIP model from WebDataset shards.")
    parser.add_argument("config", help="YAML file of the run, see configs/")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key.sub=value",
        help="settings that replace the file's; or a file, as configs/objectives/cua.yaml",
    )
    parser.add_argument("--print-config", action="store_true", help="show the resolved configuration and stop")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # added by the deepspeed launcher; LOCAL_RANK says the same
    args = parser.parse_args(argv)
    cfg = config.load(args.config, args.overrides)
    if args.print_config:
        print(config.dump(cfg), end="")
        return 0
    from pipeline.dist import World

    train(cfg, World.from_env(os.environ))
    return 0


def train(cfg: RunConfig, world: World) -> None:
    """One run, from its newest checkpoint or from the start, to ``cfg.train.steps``; every rank calls it.

    Args:
        cfg: the run.
        world: this process's place among the ranks.

    Raises:
        PipelineError: anything that a user can act on, on every rank.
    """
    import torch

    from pipeline import checkpoint, dist, logs, provenance
    from pipeline.data import tokenizer
    from pipeline.data.augment import normalise
    from pipeline.data.drops import DropBudget
    from pipeline.data.loader import train_batches
    from pipeline.engine.engine import Engine
    from pipeline.engine.micro_batches import MicroBatches
    from pipeline.eval.evaluate import evaluate_checkpoint
    from pipeline.features import Inputs
    from pipeline.losses import Objective
    from pipeline.losses.objective import gradient_norms
    from pipeline.models import clip, towers

    # ---- setup ----
    device = dist.pick_device(world.local_rank)
    logger = logs.get_logger(world)
    logger.info(world.table())
    micro_batch_size = config.micro_batch_size(cfg.train.global_batch_size, world.size, cfg.train.micro_batches)
    dist.init(world, device, cfg.engine.collective_timeout_seconds)
    torch.manual_seed(cfg.seed)  # the same initial weights on every rank
    objective = Objective(cfg.objective, seed=cfg.seed, total_steps=cfg.train.steps)
    objective.check(clip.domains(1))
    model = clip.build(cfg.model, cfg.objective, objective.scalars())
    engine = Engine(
        model,
        cfg.optim,
        cfg.engine,
        world=world,
        device=device,
        micro_batch_size=micro_batch_size,
        micro_batches=cfg.train.micro_batches,
    )
    micro = MicroBatches(engine, cfg.train.micro_batches)
    logger.info("device %s, %s (%s), ZeRO stage %d", device, engine.precision, engine.precision_reason, cfg.engine.zero_stage)

    settings = checkpoint.pinned_settings(cfg, world, engine.precision)
    state = checkpoint.resume(cfg, engine, settings) or checkpoint.TrainState(step=0, samples=0, settings=settings)
    if world.is_main:
        provenance.write(cfg, world, engine.ds_config)
    batches = train_batches(
        cfg.data,
        cfg.augment,
        image_size=model.image_size,
        tokenizer=tokenizer.build(towers.architecture(cfg.model)),
        world_rank=world.rank,
        world_size=world.size,
        global_batch_size=cfg.train.global_batch_size,
        seed=cfg.seed,
        start_step=state.step,
        total_steps=cfg.train.steps,
    )
    log = logs.MetricsLog(cfg, world, state.step)
    drops, pace = DropBudget(), Pace()

    # ---- the loop ----
    engine.train()
    for batch in pace.waiting_for(batches):
        step = state.step
        batch = batch.to(device)
        image_VBCHW = normalise(batch.image_VBCHW, cfg.model.image_mean, cfg.model.image_std)
        inputs = Inputs(image_VBCHW, batch.tokens_BL, batch.group_B, batch.view_params_VBK)
        seed = step_seed(cfg.seed, step, world.rank)
        features = micro.forward(inputs, seed=seed)
        losses = objective(features, step=step, epoch=batch.epoch)
        mean_loss = dist.all_reduce_mean(losses.total.detach())
        check_finite(mean_loss, "loss", step)
        logged = is_time(step + 1, every=cfg.log.every_steps, total_steps=cfg.train.steps)
        term_norms = gradient_norms(losses, features) if logged and cfg.log.term_gradients else {}
        micro.backward(losses.total)
        lr = learning_rate(cfg, step)
        grad_norm = engine.step(lr)

        state = checkpoint.TrainState(step + 1, state.samples + cfg.train.global_batch_size, settings)
        drops.add(len(batch.keys), batch.drops)
        log.advance()
        if logged:
            all_drops = DropBudget.merged(dist.all_gather_object(drops))
            log.record(
                state.step,
                {
                    "loss": mean_loss.item(),
                    "lr": lr,
                    "logit_scale": features.scalars["scale"].item(),
                    "grad_norm": grad_norm,
                    **{f"loss/{name}": dist.all_reduce_mean(loss.detach()).item() for name, loss in losses.terms.items()},
                    **{f"weight/{name}": weight for name, weight in losses.weights.items()},
                    **{f"grad_norm/{name}": norm for name, norm in term_norms.items()},
                    **{name: value.item() for name, value in features.scalars.items() if name != "scale"},
                    "samples": state.samples,
                    "dropped": all_drops.num_dropped,
                    **pace.lap(cfg.train.global_batch_size),
                },
            )
            all_drops.check(cfg.data.max_bad_fraction)
        if is_time(state.step, every=cfg.checkpoint.every_steps, total_steps=cfg.train.steps):
            folder = checkpoint.save(cfg.run_dir, engine, state, world=world, keep_last=cfg.checkpoint.keep_last)
            if cfg.eval.sets and is_time(state.step, every=cfg.eval.every_steps, total_steps=cfg.train.steps):
                evaluate_checkpoint(folder, cfg.eval, world, device)
                pace.restart()

    # ---- teardown ----
    log.close()
    logger.info("done: %d steps, %d pairs, in %s", state.step, state.samples, cfg.run_dir)
    dist.shutdown()


def step_seed(seed: int, step: int, rank: int) -> int:
    """What torch's generator starts a step from; different for every seed, step, and rank."""
    import numpy as np

    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0])


def learning_rate(cfg: RunConfig, step: int) -> float:
    """The rate of the step that follows ``step`` completed ones."""
    optim = cfg.optim
    return lr_at(step, peak=optim.lr, warmup_steps=optim.warmup_steps, total_steps=cfg.train.steps, floor=optim.min_lr)


def check_finite(value: Tensor, what: str, step: int) -> None:
    """Stop before the optimizer moves; ``value`` is already reduced, so that every rank decides alike.

    Raises:
        NumericsError: the value is NaN or infinite.
    """
    if not bool(value.isfinite()):
        raise NumericsError(
            f"{what} is {value.item()} at step {step + 1}; the weights were not changed. Usual causes: a learning rate that is "
            f"too high (optim.lr), too short a warm-up (optim.warmup_steps), or fp16 where bf16 would do (engine.precision)"
        )


class Pace:
    """Where the time goes between two log records: seconds waiting for data, and seconds in all."""

    def __init__(self) -> None:
        self.restart()

    def waiting_for(self, batches: Iterator[T]) -> Iterator[T]:
        """Yield the batches, measuring how long each one is waited for."""
        asked = time.perf_counter()
        for batch in batches:
            self._waited += time.perf_counter() - asked
            self._steps += 1
            yield batch
            asked = time.perf_counter()

    def lap(self, samples_per_step: int) -> dict[str, float]:
        """Samples per second over all ranks, and the share of time spent waiting for data, since the last call."""
        seconds = time.perf_counter() - self._start
        result = {
            "samples_per_second": self._steps * samples_per_step / seconds,
            "data_wait_share": self._waited / seconds,
        }
        self.restart()
        return result

    def restart(self) -> None:
        """Leave what happened since the last call, an evaluation for example, out of the measurement."""
        self._start, self._waited, self._steps = time.perf_counter(), 0.0, 0


if __name__ == "__main__":
    raise SystemExit(guarded(main))
