"""Pretraining: ``unisphere train CONFIG [key.sub=value ...]``, under python, torchrun, deepspeed, or srun.

The story of a run is ``train`` below: set up, one loop, tear down. What a step does to the weights is visible in the loop;
what it computes with is built before it. Heavy imports wait until the command line has been understood, so that ``--help``
and ``--print-config`` answer at once.

Everything random or scheduled is a function of the step, never of what happened before it: that is why a resumed run
continues the same sequence of losses, and why a checkpoint holds so little besides tensors.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pipeline import config
from pipeline.cli import guarded
from pipeline.config import ModelConfig, RunConfig, TrainConfig
from pipeline.errors import CheckpointError, NumericsError, Stopped
from pipeline.schedule import is_time, lr_at
from pipeline.watching import signals
from pipeline.watching.pace import Pace

if TYPE_CHECKING:
    import torch

    from pipeline.checkpoint import TrainState
    from pipeline.data.batches import Batch
    from pipeline.dist import World
    from pipeline.engine.engine import Engine
    from pipeline.features import Inputs
    from pipeline.models.clip import ClipModel


PASSED_OVER = "passed_over"
"""Note of a checkpoint: batches left out when the run went back. Step ``s`` reads the data of place ``s + passed_over``."""


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
    parser.add_argument("--profile", action="store_true", help="train a few steps only, and write where their time goes")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # added by the deepspeed launcher; LOCAL_RANK says the same
    args = parser.parse_args(argv)
    cfg = config.load(args.config, args.overrides)
    if args.print_config:
        print(config.dump(cfg), end="")
        return 0
    signals.listen()  # before the seconds that importing takes
    from pipeline.dist import World

    world = World.from_env(os.environ)
    if cfg.eval.captioned:
        from pipeline.eval import captioning

        captioning.require_scores()  # now, and not at the first evaluation
    if args.profile:
        from pipeline.watching import profile

        profile.run(cfg, world, train)
    else:
        train(cfg, world)
    return 0


def train(cfg: RunConfig, world: World, pace: Pace | None = None) -> None:
    """One run, from its newest checkpoint or from the start, to ``cfg.train.steps``; every rank calls it.

    Args:
        cfg: the run.
        world: this process's place among the ranks.
        pace: what times the phases of a step; a profile brings its own.

    Raises:
        PipelineError: anything that a user can act on, on every rank; ``Stopped`` where it was asked to stop, and has saved.
    """
    import torch

    from pipeline import checkpoint, dist, logs, provenance
    from pipeline.data.drops import DropBudget
    from pipeline.data.views import VIEW_PARAMS
    from pipeline.engine.engine import Engine
    from pipeline.engine.micro_batches import MicroBatches
    from pipeline.eval.evaluate import evaluate_checkpoint
    from pipeline.losses.objective import Objective, gradient_norms
    from pipeline.models import clip, draws
    from pipeline.watching import figures, starts
    from pipeline.watching.numbers import NumbersWatch
    from pipeline.watching.pulse import Pulse
    from pipeline.watching.speed import Speedometer
    from pipeline.watching.watchdog import Watchdog, meet

    # ---- setup ----
    wish = signals.StopWish(stop_at(cfg, world))
    signals.listen()
    device = dist.pick_device(world.local_rank)
    logger = logs.get_logger(world)
    logger.info(world.table())
    sizes = step_sizes(cfg.train, world)
    meet(world, device, cfg.engine)
    pace = pace or Pace()
    with Watchdog(world, cfg.engine, pace.where):
        torch.manual_seed(cfg.seed)  # the same initial weights on every rank
        objective = Objective(cfg.objective, seed=cfg.seed, total_steps=cfg.train.steps)
        objective.check(clip.domains(len(cfg.augment.views), cfg.model))
        model = clip.build(cfg.model, cfg.objective, objective.scalars(), num_view_params=len(VIEW_PARAMS))
        draws.announce(model)
        speed = Speedometer(cfg, world, device, model, len(VIEW_PARAMS))
        engine = Engine(model, cfg.optim, cfg.engine, world=world, device=device, **sizes)
        micro = MicroBatches(engine, cfg.train.micro_batches)
        logger.info("%s, ZeRO stage %d, %s (%s)", device, cfg.engine.zero_stage, engine.precision, engine.precision_reason)
        generation = checkpoint.Generation.claim(cfg.run_dir, world)
        saver = checkpoint.Saver(cfg.checkpoint, cfg.run_dir, engine, world=world, generation=generation)
        settings = checkpoint.pinned_settings(cfg, world, engine.precision)
        state = checkpoint.resume(cfg, engine, settings, world=world) or checkpoint.TrainState(0, 0, settings)
        starts.begin(cfg.run_dir, state.step, world, limit=cfg.train.max_starts_without_progress)
        provenance.write(cfg, world, engine.ds_config)
        feed = Feed(functools.partial(batches_after, cfg, world, model), state)
        log = logs.MetricsLog(cfg, world, state.step)
        drops, pulse, clock = DropBudget(), Pulse(device), signals.SaveWish(cfg.checkpoint)
        numbers = NumbersWatch(cfg.numbers, state.notes)

        # ---- the loop ----
        engine.train()
        for batch in pace.waiting_for(iter(feed)):
            step = state.step
            pace.enter("forward", step)
            features = micro.forward(inputs_of(batch, cfg.model, device), seed=step_seed(cfg.seed, step))
            pace.enter("loss", step)
            losses = objective(features, step=step, epoch=batch.epoch)
            mean_loss = pulse.share(losses.total, stop=wish.reason != "", save=clock.due)
            logged = is_time(step + 1, every=cfg.log.every_steps, total_steps=cfg.train.steps)
            term_norms = gradient_norms(losses, features) if logged and cfg.log.term_gradients else {}
            pace.enter("backward", step)
            micro.backward(losses.total)
            pace.enter("optimizer", step)
            lr = learning_rate(cfg, step)
            grad_norm = engine.step(lr, cfg.numbers.max_grad_norm, veto=~mean_loss.isfinite())
            pulse.close(step + 1, grad_norm, engine.skipped, searching=engine.searching_scale)
            pace.enter("log", step)
            state = dataclasses.replace(state, step=step + 1, samples=state.samples + cfg.train.global_batch_size)
            saving = is_time(state.step, every=cfg.checkpoint.every_steps, total_steps=cfg.train.steps)
            drops.add(len(batch.keys), batch.drops, batch.sources)
            log.advance()
            beats = pulse.read(latest=logged or saving)
            if numbers.must_go_back(beats):
                saver.wait()
                state = go_back(cfg, engine, settings, state, world)
                feed.seek(state)
                pulse.forget()
                log.go_back(state.step)
                continue
            stopping = any(beat.stop for beat in beats)
            if logged:
                generation.agree(world)  # a newer start writes this log now
                seen = dist.all_gather_object((drops, figures.keys_digest(batch.keys)))
                all_drops = DropBudget.merged([rank_drops for rank_drops, _ in seen])
                record = {"loss": beats[-1].loss, "lr": lr, "grad_norm": beats[-1].grad_norm, "samples": state.samples}
                record |= figures.loss_figures(losses, features, term_norms) | figures.drop_figures(all_drops, cfg)
                record |= numbers.figures() | saver.metrics() | speed.lap(pace, state.step)
                log.record(state.step, record, keys=sum(digest for _, digest in seen) % 2**64)
                all_drops.check(cfg.data.max_bad_fraction)
            saver.poll()
            if saving or stopping or any(beat.save and clock.counts(beat.step) for beat in beats):
                pace.enter("save", state.step)
                clock.granted(state.step)
                saver.begin(dataclasses.replace(state, notes={**state.notes, **numbers.notes()}))
            if saving and is_evaluated(cfg, state.step):
                pace.enter("evaluate", state.step)
                saver.wait()
                if not saver.last_error and (folder := checkpoint.newest(cfg.run_dir)) is not None:
                    saver.note(state.step, figures.eval_figures(evaluate_checkpoint(folder, cfg.eval, world, device)))
            if stopping:
                break
        # ---- teardown ----
        pace.enter("save", state.step)
        saver.close()
        log.close()
        starts.end(cfg.run_dir, state.step, world, "done" if state.step == cfg.train.steps else "stopped")
        dist.shutdown()
    if saver.last_error:
        raise CheckpointError(saver.last_error)
    if state.step < cfg.train.steps:
        raise Stopped(f"{wish.reason or 'another rank'}, after step {state.step}; saved, start again to continue")
    logger.info("done: %d steps, %d pairs, in %s", state.step, state.samples, cfg.run_dir)


def step_seed(seed: int, step: int) -> int:
    """What dropout draws from in a step, equal on all ranks; different for every seed and step."""
    import numpy as np

    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0])


def stop_at(cfg: RunConfig, world: World) -> float | None:
    """Unix time at which to save and stop, counted from now; None where there is no limit."""
    return signals.deadline(time.time(), cfg.train.time_limit_minutes, world.ends_at, cfg.checkpoint.seconds_before_limit)


def step_sizes(train: TrainConfig, world: World) -> dict[str, int]:
    """How a step is cut: pairs per rank and forward pass, and forward passes."""
    per_pass = config.micro_batch_size(train.global_batch_size, world.size, train.micro_batches)
    return {"micro_batch_size": per_pass, "micro_batches": train.micro_batches}


def learning_rate(cfg: RunConfig, step: int) -> float:
    """The rate of the step that follows ``step`` completed ones."""
    optim = cfg.optim
    return lr_at(step, peak=optim.lr, warmup_steps=optim.warmup_steps, total_steps=cfg.train.steps, floor=optim.min_lr)


class Feed:
    """Batches that can be started again at another place, while they are iterated."""

    def __init__(self, start: Callable[[TrainState], Iterator[Batch]], state: TrainState) -> None:
        """``start`` gives the batches from a state on."""
        self._start = start
        self.seek(state)

    def seek(self, state: TrainState) -> None:
        """The next batch is the one that follows ``state``."""
        self._batches = self._start(state)

    def __iter__(self) -> Iterator[Batch]:
        """All batches to the end of the run."""
        while (batch := next(self._batches, None)) is not None:
            yield batch


def batches_after(cfg: RunConfig, world: World, model: ClipModel, state: TrainState) -> Iterator[Batch]:
    """This rank's batches from a state to the end of the run."""
    from pipeline.data import tokenizer
    from pipeline.data.loader import train_batches
    from pipeline.models import towers
    from pipeline.models.text import ignores_padding

    passed_over = state.notes.get(PASSED_OVER, 0)
    return train_batches(
        cfg.data,
        cfg.augment,
        image_size=model.image_size,
        tokenizer=tokenizer.build(towers.architecture(cfg.model), trim=ignores_padding(model.text)),
        world_rank=world.rank,
        world_size=world.size,
        global_batch_size=cfg.train.global_batch_size,
        seed=cfg.seed,
        start_step=state.step + passed_over,
        total_steps=cfg.train.steps + passed_over,
    )


def inputs_of(batch: Batch, model: ModelConfig, device: torch.device) -> Inputs:
    """A batch on the device, its pixels normalised."""
    from pipeline.data.augment import normalise
    from pipeline.features import Inputs

    batch = batch.to(device)
    image_VBCHW = normalise(batch.image_VBCHW, model.image_mean, model.image_std)
    return Inputs(image_VBCHW, batch.tokens_BL, batch.group_B, batch.view_params_VBK, batch.length_B)


def go_back(cfg: RunConfig, engine: Engine, settings: dict[str, Any], lost: TrainState, world: World) -> TrainState:
    """Return to this run's last checkpoint; every rank, together. The batches since then are passed over.

    Raises:
        NumericsError: there is none yet.
    """
    from pipeline import checkpoint

    state = checkpoint.resume(cfg, engine, settings, world=world)
    if state is None:
        raise NumericsError(
            f"loss or gradients were not finite in {cfg.numbers.max_skips_in_a_row} steps in a row up to step {lost.step}, and "
            f"there is no checkpoint yet to go back to; the weights were not changed. Usual causes: a learning rate that is "
            f"too high (optim.lr), or too short a warm-up (optim.warmup_steps)"
        )
    passed_over = lost.notes.get(PASSED_OVER, 0) + lost.step - state.step
    return dataclasses.replace(state, notes={**state.notes, PASSED_OVER: passed_over})


def is_evaluated(cfg: RunConfig, step: int) -> bool:
    """Whether the checkpoint of ``step`` completed steps is evaluated by the training itself."""
    if step == cfg.train.steps:
        return cfg.eval.sets != () and cfg.eval.at_end
    return cfg.eval.sets != () and is_time(step, every=cfg.eval.every_steps, total_steps=cfg.train.steps)


if __name__ == "__main__":
    raise SystemExit(guarded(main))
