"""The command of this folder; see its docstring."""

from __future__ import annotations

import argparse

from tests import golden


def main() -> int:
    """Run, compare, print; 1 if anything differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description="Compare training with its golden losses.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="configurations without .yaml; none means all small ones")
    parser.add_argument("--explain", action="store_true", help="say what differs, from which step on, and what that suggests")
    parser.add_argument("--update", action="store_true", help="take what they give now as golden")
    args = parser.parse_args()
    failed = 0
    for name in args.names or golden.names():
        found = golden.compute(name)
        known = golden.path_of(name).exists()
        if known:
            expected = golden.read(name)
            step = golden.differing_step(expected, found)
            print(f"{name:40} {'equal' if step is None else f'differs from step {step} on'}", flush=True)
            if args.explain or step is not None:
                print("    " + golden.explain(expected, found).replace("\n", "\n    "), flush=True)
            failed += step is not None
        elif not args.update:
            print(f"{name:40} no golden losses yet; python -m tests.golden --update {name}", flush=True)
            failed += 1
        if args.update:
            golden.write(name, found)
            print(f"{name:40} written", flush=True)
    return 1 if failed and not args.update else 0


if __name__ == "__main__":
    raise SystemExit(main())
