"""What a run folder records about where its numbers come from."""

from __future__ import annotations

import subprocess
from pathlib import Path

from pipeline import provenance
from pipeline.dist import World


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_git_state_tells_commit_and_changes(tmp_path: Path) -> None:
    assert provenance.git_state(tmp_path) is None
    git(tmp_path, "init")
    (tmp_path / "file").write_text("a")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "first")
    state = provenance.git_state(tmp_path)
    assert state is not None and len(state["commit"]) == 40 and state["changed"] is False
    (tmp_path / "file").write_text("b")
    changed = provenance.git_state(tmp_path)
    assert changed == {**state, "changed": True}


def test_description_names_versions_and_world_and_no_environment() -> None:
    described = provenance.describe(World(0, 2, 0, 2, "torchrun"))
    assert described["packages"]["torch"] == provenance.version("torch") is not None
    assert described["world"] == {"size": 2, "source": "torchrun"}
    assert set(described) == {"started", "host", "python", "packages", "devices", "world", "git"}
