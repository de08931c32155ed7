"""What DeepSpeed's stages cost on the host: a step of this project's engine beside a step of plain DDP on the same model.

    python benchmarks/engine.py --rounds 5

Two gloo processes of one thread each train the smoke run's model; the variants take turns within each round, in the same
processes. Every variant computes the same: forward of both towers, InfoNCE over gathered embeddings, backward, gradients
averaged, clipped to 1, AdamW. The figure is CPU time of a process per step (median of rounds, larger of the two ranks), which
other programs on the machine disturb least. DDP is torch's own, with ``clip_grad_norm_`` and fused AdamW; the engine's steps
include what the training loop adds: gradients at the embeddings, the agreement over ranks, the gate before the update.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

BATCH, WARM_UP = 32, 3


def main() -> int:
    """Start two ranks, print rank 0's table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="steps of each variant in a round")
    parser.add_argument("--rank", type=int, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank is not None:
        return work(args.rank, args.port, args.rounds, args.steps)
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, __file__, "--rounds", str(args.rounds), "--steps", str(args.steps), "--port", str(port)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    # Keep freed memory, as a GPU's allocator does: otherwise buckets of gradients are faulted in again at every step.
    env |= {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(4 << 30)}
    ranks = [subprocess.Popen([*command, "--rank", str(rank)], env=env) for rank in (0, 1)]
    return max(process.wait() for process in ranks)


def work(rank: int, port: int, rounds: int, steps: int) -> int:
    """One rank: every variant in turn, each round."""
    import torch

    from pipeline import dist
    from pipeline.dist import World

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
    world = World(rank, 2, rank, 2, "env://", f"127.0.0.1:{port}")
    dist.init(world, torch.device("cpu"), 120)
    variants: dict[str, Callable[[int], None]] = {"DDP": ddp()}
    variants |= {f"ZeRO stage {stage}": engine(world, stage) for stage in (0, 1, 2, 3)}
    for step_of in variants.values():
        for step in range(WARM_UP):
            step_of(step)
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        for name, step_of in variants.items():
            dist.barrier()
            start = time.process_time()
            for step in range(steps):
                step_of(number * steps + step)
            spent = torch.tensor([(time.process_time() - start) / steps])
            taken[name].append(max(dist.all_gather_rows(spent).tolist()))
    if rank == 0:
        reference = statistics.median(taken["DDP"])
        print(f"{'variant':14} {'CPU ms per step':>16} {'of DDP':>8} {'rounds from .. to':>20}")
        for name, seconds in taken.items():
            ratios = sorted(mine / ddp_s for mine, ddp_s in zip(seconds, taken["DDP"], strict=True))
            median = statistics.median(seconds)
            print(f"{name:14} {1000 * median:16.1f} {median / reference:8.3f} {ratios[0]:11.3f} .. {ratios[-1]:.3f}")
    dist.shutdown()
    return 0


def model_and_batch() -> tuple[Callable[[], object], Callable[[int], object]]:
    """How to build the smoke run's model, and a step's inputs for a rank."""
    import torch

    from pipeline import config
    from pipeline.features import Inputs
    from pipeline.models import clip

    cfg = config.load(Path(__file__).parent.parent / "configs" / "emoji_smoke.yaml")

    def build() -> object:
        torch.manual_seed(0)
        return clip.build(cfg.model, cfg.objective)

    def inputs(step: int) -> object:
        draw = torch.Generator().manual_seed(step)
        size, length = cfg.model.inline["vision_cfg"]["image_size"], cfg.model.inline["text_cfg"]["context_length"]
        tokens = torch.randint(1, 1000, (BATCH, length), generator=draw)
        tokens[:, -1] = 49407  # the end token, where the text tower is read
        return Inputs(
            torch.randn(1, BATCH, 3, size, size, generator=draw), tokens, torch.arange(BATCH), torch.zeros(1, BATCH, 0)
        )

    return build, inputs


def ddp() -> Callable[[int], None]:
    """A step of torch's own DDP."""
    import torch

    from pipeline.config import OptimConfig
    from pipeline.engine.parameters import parameter_groups

    build, inputs = model_and_batch()
    model, optim = build(), OptimConfig()
    groups = [{"params": g["params"], "weight_decay": g["weight_decay"]} for g in parameter_groups(model, optim)]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=True)
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    loss_of = objective()

    def step_of(step: int) -> None:
        loss = loss_of(wrapped(*inputs(step)), step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step_of


def engine(world: object, stage: int) -> Callable[[int], None]:
    """A step of the training loop's engine, with what the loop does around it for faults and numbers."""
    import torch

    from pipeline.config import EngineConfig, OptimConfig
    from pipeline.engine.engine import Engine
    from pipeline.engine.micro_batches import MicroBatches
    from pipeline.pulse import Pulse

    build, inputs = model_and_batch()
    device = torch.device("cpu")
    runner = Engine(build(), OptimConfig(), EngineConfig(zero_stage=stage), world=world, device=device, micro_batch_size=BATCH)
    micro, pulse, loss_of = MicroBatches(runner, 1), Pulse(device), objective()

    def step_of(step: int) -> None:
        loss = loss_of(micro.forward(inputs(step), seed=step), step)
        mean = pulse.share(loss, stop=False)
        micro.backward(loss)
        norm = runner.step(1e-3, veto=~mean.isfinite())
        pulse.close(step + 1, norm, runner.skipped)
        pulse.read()

    return step_of


def objective() -> Callable[[object, int], object]:
    """InfoNCE over all ranks' embeddings."""
    from pipeline.config import ObjectiveConfig
    from pipeline.losses import Objective

    terms = Objective(ObjectiveConfig(), seed=0, total_steps=10**6)
    return lambda features, step: terms(features, step=step).total


if __name__ == "__main__":
    raise SystemExit(main())
