"""Other projects' tools as outside judges: runs a script in the environment that ``make peers`` builds.

    printed = run_peer("import sys, webdataset; print(sum(1 for _ in webdataset.WebDataset(sys.argv[1])))", str(shard))
    assert int(printed) == 100                    # another project's reader finds the samples that ours wrote

The peers live in ``.venv-peers`` and run as processes, since they need other versions of things than the project does; they
see the project's own packages too. What a judge found comes back as what it printed.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / ".venv-peers" / "bin" / "python"


def peer_command(name: str) -> str:
    """Path of a command that a peer installed, ``img2dataset`` say. Raises where it is not there."""
    path = PYTHON.with_name(name)
    assert path.exists(), f"no {path.relative_to(ROOT)}; build the environment of the peers with: make peers"
    return str(path)


def run_peer(code: str, *arguments: str, timeout_seconds: float = 120) -> str:
    """What a Python script prints to stdout when it runs beside the peers, in the project's root with one thread.

    Args:
        code: the script's text.
        arguments: its ``sys.argv[1:]``.

    Raises:
        AssertionError: it failed; the message is what it wrote to stderr.
    """
    done = subprocess.run(
        [peer_command("python"), "-c", code, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
    )
    assert done.returncode == 0, f"the peer's script failed with exit code {done.returncode}:\n{done.stderr}"
    return done.stdout
