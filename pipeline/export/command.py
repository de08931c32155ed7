"""The command ``unisphere export``: its arguments, and what it prints."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import ConfigError, PipelineError
from pipeline.export.assemble import export, newest_checkpoints


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``unisphere export``; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="unisphere export",
        description="Write a trained model as a folder that open_clip loads; with --hf and --onnx also transformers and "
        "onnxruntime. Works on the CPU, on checkpoints of any number of processes and ZeRO stage, without a network.",
    )
    parser.add_argument("source", type=Path, help="run folder (newest checkpoint) or checkpoint folder")
    parser.add_argument("out", type=Path, help="folder to write; new, empty, or an earlier export, which is replaced")
    formats = parser.add_argument_group("formats beside open_clip's, in the same folder")
    formats.add_argument(
        "--hf",
        action="store_true",
        help="Hugging Face: CLIPModel, or VisionTextDualEncoderModel for a Hugging Face text tower; refused, with the reason, "
        "where the architecture has no counterpart",
    )
    formats.add_argument(
        "--onnx", action="store_true", help='image.onnx and text.onnx with normalised embeddings (needs the extra "onnx")'
    )
    formats.add_argument(
        "--hub",
        metavar="OWNER/NAME",
        help="the hub repository that the folder will be uploaded to; its name goes into the card and the configuration",
    )
    weights = parser.add_argument_group("which weights")
    weights.add_argument(
        "--mix",
        action="append",
        default=[],
        metavar="WEIGHTS=SHARE",
        help="take this share of every weight from a run, checkpoint, or weights file, and the rest from SOURCE; repeatable",
    )
    weights.add_argument("--last", type=int, metavar="N", help="the mean of the run's newest N checkpoints")
    weights.add_argument("--averaged", action="store_true", help="the moving average of the weights (engine.ema_decay)")
    args = parser.parse_args(argv)
    try:
        source, mix = args.source, [_share(text) for text in args.mix]
        if args.last is not None:
            if mix or args.averaged:
                raise ConfigError("--last: a mean of checkpoints already; leave out --mix and --averaged")
            source, mix = newest_checkpoints(source, args.last)
        report = export(source, args.out, mix, averaged=args.averaged, hugging_face=args.hf, onnx=args.onnx, hub=args.hub)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(
        f"exported {report['run']} at step {report['step']} to {args.out}: {report['parameters']:,} parameters, "
        f"features within {report['max_feature_difference']:.1e}, {len(report['dropped_tensors'])} tensors dropped"
    )
    for name, reader in (("hugging_face", "transformers"), ("onnx", "onnxruntime")):
        if found := report[name]:
            off = found["max_feature_difference"]
            checked = f"features within {off:.1e}" if off is not None else f"not checked: {reader} is not installed"
            print(f"also for {reader}: {found['summary']}, {checked}")
    return 0


def _share(text: str) -> tuple[Path, float]:
    path, _, share = text.rpartition("=")
    try:
        return Path(path), float(share)
    except ValueError:
        raise ConfigError(f"--mix {text}: expected WEIGHTS=SHARE, for example start.safetensors=0.5") from None
