"""What DeepSpeed's stages cost on the host: a step of this project's engine beside a step of plain DDP on the same model.

    python benchmarks/engine.py                              # the smoke run's model: small arithmetic, the worst case
    python benchmarks/engine.py --ranks 1                    # the same without anything to send: what the host alone does
    python benchmarks/engine.py --model ViT-S-32 --steps 1   # towers that people train

Gloo processes of one thread each; for each stage DDP and the engine take turns within each round, in the same processes. Both
compute the same: forward of both towers, InfoNCE over gathered embeddings, backward, gradients averaged, clipped to 1, AdamW.
The figure is CPU time of a process per step (median of rounds, the larger of the ranks), which other programs on the machine
disturb least. It counts what gloo does with bytes, in its own threads, too. DDP is torch's own, with ``clip_grad_norm_`` and
fused AdamW; the engine's steps include what the training loop adds: gradients at the embeddings, the agreement over ranks,
the gate before the update. ``--zero key=value`` gives DeepSpeed other settings than the engine would.
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
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import yaml

WARM_UP = 3


def main() -> int:
    """Start the ranks; rank 0 prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--model", default="smoke", help="smoke, or an architecture of open_clip")
    parser.add_argument("--batch", type=int, default=32, help="pairs per rank")
    parser.add_argument("--stages", default="0,1,2,3")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="steps of each variant in a round")
    parser.add_argument("--zero", nargs="*", default=[], metavar="key=value", help="of DeepSpeed's zero_optimization")
    parser.add_argument("--rank", type=int, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank is not None:
        return work(args)
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, __file__, *sys.argv[1:], "--port", str(port)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    # Keep freed memory, as a GPU's allocator does: otherwise buckets of gradients are faulted in again at every step.
    env |= {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(4 << 30)}
    ranks = [subprocess.Popen([*command, "--rank", str(rank)], env=env) for rank in range(args.ranks)]
    return max(process.wait() for process in ranks)


def work(args: argparse.Namespace) -> int:
    """One rank: each stage beside DDP, in turn."""
    import torch

    from pipeline import dist
    from pipeline.dist import World

    torch.set_num_threads(1)
    os.environ.update(RANK=str(args.rank), WORLD_SIZE=str(args.ranks), LOCAL_RANK=str(args.rank))
    world = World(args.rank, args.ranks, args.rank, args.ranks, "env://", f"127.0.0.1:{args.port}")
    dist.init(world, torch.device("cpu"), 120)
    zero = {key: yaml.safe_load(value) for key, _, value in (pair.partition("=") for pair in args.zero)}
    if world.is_main:
        print(f"{args.model}, {args.ranks} ranks, {args.batch} pairs each, {args.rounds} rounds of {args.steps} steps")
        print(f"{'variant':14} {'DDP, CPU ms':>12} {'ours, CPU ms':>13} {'of DDP':>8} {'rounds from .. to':>20}", flush=True)
    for stage in map(int, args.stages.split(",")):
        pair = ddp(args), engine(args, world, stage, zero)
        theirs, ours = compare(pair, args.rounds, args.steps)
        if world.is_main:
            ratios = sorted(mine / other for mine, other in zip(ours, theirs, strict=True))
            medians = f"{1000 * statistics.median(theirs):12.1f} {1000 * statistics.median(ours):13.1f}"
            spread = f"{ratios[0]:11.3f} .. {ratios[-1]:.3f}"
            print(f"ZeRO stage {stage:<3} {medians} {statistics.median(ratios):8.3f} {spread}", flush=True)
        del pair
    dist.shutdown()
    return 0


def compare(pair: tuple[Callable[[int], None], ...], rounds: int, steps: int) -> list[list[float]]:
    """CPU seconds per step of each, by round; the larger of the ranks."""
    import torch

    from pipeline import dist

    for step_of in pair:
        for step in range(WARM_UP):
            step_of(step)
    taken: list[list[float]] = [[] for _ in pair]
    for number in range(rounds):
        for step_of, seconds in zip(pair, taken, strict=True):
            dist.barrier()
            start = time.process_time()
            for step in range(steps):
                step_of(number * steps + step)
            spent = torch.tensor([(time.process_time() - start) / steps])
            seconds.append(max(dist.all_gather_rows(spent).tolist()))
    return taken


def model_and_batch(args: argparse.Namespace) -> tuple[Callable[[], Any], Callable[[int], Any]]:
    """How to build the model, and a step's inputs for a rank."""
    import torch

    from pipeline import config
    from pipeline.config import ModelConfig
    from pipeline.features import Inputs
    from pipeline.models import clip, towers

    cfg = config.load(Path(__file__).parent.parent / "configs" / "emoji_smoke.yaml")
    model = cfg.model if args.model == "smoke" else ModelConfig(architecture=args.model)
    shape = towers.architecture(model)
    size, length = shape["vision_cfg"]["image_size"], shape["text_cfg"]["context_length"]

    def build() -> Any:
        torch.manual_seed(0)
        return clip.build(model, cfg.objective)

    def inputs(step: int) -> Any:
        draw = torch.Generator().manual_seed(step)
        tokens = torch.randint(1, 1000, (args.batch, length), generator=draw)
        tokens[:, -1] = 49407  # the end token, where the text tower is read
        images = torch.randn(1, args.batch, 3, size, size, generator=draw)
        return Inputs(images, tokens, torch.arange(args.batch), torch.zeros(1, args.batch, 0))

    return build, inputs


def ddp(args: argparse.Namespace) -> Callable[[int], None]:
    """A step of torch's own DDP."""
    import torch

    from pipeline.config import OptimConfig
    from pipeline.engine.parameters import parameter_groups

    build, inputs = model_and_batch(args)
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


def engine(args: argparse.Namespace, world: Any, stage: int, zero: dict[str, Any]) -> Callable[[int], None]:
    """A step of the training loop's engine, with what the loop does around it for faults and numbers."""
    import torch

    from pipeline.config import EngineConfig, OptimConfig
    from pipeline.engine.engine import Engine
    from pipeline.engine.micro_batches import MicroBatches
    from pipeline.watching.pulse import Pulse

    build, inputs = model_and_batch(args)
    device = torch.device("cpu")
    settings = EngineConfig(zero_stage=stage, deepspeed={"zero_optimization": zero} if zero else {})
    runner = Engine(build(), OptimConfig(), settings, world=world, device=device, micro_batch_size=args.batch)
    micro, pulse, loss_of = MicroBatches(runner, 1), Pulse(device), objective()

    def step_of(step: int) -> None:
        loss = loss_of(micro.forward(inputs(step), seed=step), step)
        mean = pulse.share(loss, stop=False)
        micro.backward(loss)
        norm = runner.step(1e-3, veto=~mean.isfinite())
        pulse.close(step + 1, norm, runner.skipped)
        pulse.read()

    return step_of


def objective() -> Callable[[Any, int], Any]:
    """InfoNCE over all ranks' embeddings."""
    from pipeline.config import ObjectiveConfig
    from pipeline.losses import Objective

    terms = Objective(ObjectiveConfig(), seed=0, total_steps=10**6)
    return lambda features, step: terms(features, step=step).total


if __name__ == "__main__":
    raise SystemExit(main())
