"""The command line: immediate help without torch, exit codes, one-line errors."""

from __future__ import annotations

import doctest
import importlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.__main__ import main

NO_TORCH = """
import sys
from data_prep.__main__ import main
codes = [main(argv) for argv in {commands!r}]
heavy = sorted(name for name in sys.modules if name.split(".")[0] in ("torch", "torchvision", "open_clip", {more}))
print("HEAVY", heavy)
sys.exit(max(codes, default=0))
"""


def loaded(commands: list[list[str]], more: str = '"numpy"') -> str:
    """What one process has imported after these commands."""
    script = NO_TORCH.format(commands=commands, more=more)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_importing_the_command_loads_nothing_heavy() -> None:
    assert loaded([]) == "HEAVY []"


def test_no_command_loads_torch(tmp_path: Path, table: Callable[..., Path]) -> None:
    out, page = str(tmp_path / "out"), str(tmp_path / "page.html")
    copies = [str(tmp_path / name) for name in ("clean", "parts", "large", "some", "both")]
    commands = [["build", str(table(2)), out], ["index", out], ["verify", out], ["ls", out], ["cat", out, "000000000"]]
    commands += [["stats", out, "--picture", page + ".png"], ["preview", out, page], ["repair", out, copies[0]]]
    commands += [["split", out, copies[1], "--near", "1"], ["reshard", out, copies[2]], ["subset", out, copies[3]]]
    assert loaded([*commands, ["mix", f"{out}=1", copies[4]], ["recipe"]], more='"deepspeed"') == "HEAVY []"


COMMANDS = "build index verify repair ls cat stats preview split reshard subset mix recipe"


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS.split())])
def test_every_command_has_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    assert f"usage: unisphere shards {' '.join(command)}".strip() in capsys.readouterr().out


def test_an_error_is_one_line_with_its_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(tmp_path / "nowhere.csv"), str(tmp_path / "out")]) == 3
    error = capsys.readouterr().err
    assert error.startswith("error: source ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("workers", ["1", "2"])
def test_progress_has_a_rate_and_a_remaining_time(
    tmp_path: Path, table: Callable[..., Path], capsys: pytest.CaptureFixture[str], workers: str
) -> None:
    out = str(tmp_path / "out")
    assert main(["build", str(table(5)), out, "--shard-size", "2", "--workers", workers]) == 0
    assert re.search(r"rows: 100%.* 5\.00/5\.00 \[\d\d:\d\d<\d\d:\d\d, +[\d.k]+ ?(row/s|s/row)", capsys.readouterr().err)


def test_a_wrong_number_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["build", "a", "b", "--workers", "0"])
    assert caught.value.code == 2
    assert "argument --workers: must be at least 1, got 0" in capsys.readouterr().err


def test_a_full_disk_is_a_plain_error(table: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(table(1)), "/dev/full/out"]) == 3
    assert "error: cannot write /dev/full/out/.build" in capsys.readouterr().err


@pytest.mark.parametrize(
    "module",
    [
        "data_prep.commit",
        "data_prep.duplicates",
        "data_prep.encode",
        "data_prep.manifest",
        "data_prep.pack",
        "data_prep.rows",
        "data_prep.tables",
        "data_prep.recipes.emoji",
        "data_prep.recipes.emoji_bundle",
        "data_prep.walk",
        "data_prep.inputs",
        "data_prep.output",
        "data_prep.split",
        "data_prep.mix",
        "data_prep.recipes.iconpack",
        "data_prep.recipes.openclipart",
        "data_prep.recipes.store",
        "data_prep.recipes.tuxpaint",
        "pipeline.data.tar",
    ],
)
def test_the_examples_in_the_docstrings_are_true(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0
    assert result.failed == 0
