"""The command line: immediate help without torch, exit codes, one-line errors."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.__main__ import main

NO_TORCH = """
import sys
from data_prep.__main__ import main
code = main({argv!r}) if {argv!r} else 0
heavy = sorted(name for name in sys.modules if name.split(".")[0] in ("torch", "torchvision", "open_clip", {more}))
print("HEAVY", heavy)
sys.exit(code)
"""


def loaded(argv: list[str], more: str = '"numpy"') -> str:
    script = NO_TORCH.format(argv=argv, more=more)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_importing_the_command_loads_nothing_heavy() -> None:
    assert loaded([]) == "HEAVY []"


def test_no_command_loads_torch(tmp_path: Path, table: Callable[..., Path]) -> None:
    out = str(tmp_path / "out")
    for argv in (["build", str(table(2)), out], ["index", out], ["verify", out], ["ls", out]):
        assert loaded(argv, more='"deepspeed"') == "HEAVY []"


@pytest.mark.parametrize("command", [[], ["build"], ["index"], ["verify"], ["ls"]])
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
        "data_prep.manifest",
        "data_prep.rows",
        "data_prep.recipes.emoji",
        "data_prep.recipes.emoji_bundle",
        "pipeline.data.tar",
    ],
)
def test_the_examples_in_the_docstrings_are_true(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0
    assert result.failed == 0
