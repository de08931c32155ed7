"""The ``unisphere`` command: what it lists, what it loads, how it fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.errors import BudgetExceeded, ConfigError, PipelineError

REPOSITORY = Path(__file__).parents[1]

# Runs one command line in a fresh interpreter, then tells its exit code and which heavy libraries it had loaded.
PROBE = """
import json, sys
from pipeline.cli import main
try:
    code = main(json.loads(sys.argv[1]))
except SystemExit as end:
    code = end.code
loaded = sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "deepspeed", "open_clip", "tensorboard"})
print(json.dumps({"code": code, "loaded": loaded}), file=sys.stderr)
"""


def _probe(*arguments: str) -> tuple[int, list[str], str]:
    """Exit code, heavy libraries, and standard output of ``unisphere`` with these arguments."""
    command = [sys.executable, "-c", PROBE, json.dumps(arguments)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    result = json.loads(done.stderr.splitlines()[-1])
    return result["code"], result["loaded"], done.stdout


@pytest.mark.parametrize("command", [*cli.COMMANDS, None])
def test_help_answers_without_loading_torch(command: str | None) -> None:
    code, loaded, text = _probe(*([command] if command else []), "--help")
    assert code == 0
    assert loaded == []
    assert text.startswith(f"usage: unisphere {command or 'COMMAND'} ")


def test_the_probe_can_see_torch() -> None:
    command = [sys.executable, "-c", "import torch\n" + PROBE, '["--help"]']
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert json.loads(done.stderr.splitlines()[-1])["loaded"] == ["torch"]


def test_help_lists_every_subcommand_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, command in cli.COMMANDS.items():
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert line.endswith(command.summary)
        assert len(line) <= 120
    assert len(cli.COMMANDS) >= 7


def test_no_command_shows_the_usage_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert capsys.readouterr().err.startswith("usage: unisphere COMMAND")


@pytest.mark.parametrize(
    ("typed", "hint"),
    [("trian", "did you mean 'train'?"), ("exprot", "did you mean 'export'?"), ("zzz", "the commands are: shards, ")],
)
def test_an_unknown_command_names_the_nearest(typed: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([typed]) == 2
    assert capsys.readouterr().err.startswith(f"error: unknown command '{typed}'; {hint}")


@pytest.mark.parametrize("error", [PipelineError("plain"), ConfigError("optim.lr: no"), BudgetExceeded("too many")])
def test_an_error_of_ours_becomes_one_line_and_its_exit_code(error: PipelineError, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise error

    assert cli.guarded(fail) == error.exit_code != 0
    assert capsys.readouterr().err == f"error: {error}\n"


def test_ctrl_c_is_130_and_defects_keep_their_traceback() -> None:
    def interrupt() -> int:
        raise KeyboardInterrupt

    def defect() -> int:
        raise ZeroDivisionError("a defect")

    assert cli.guarded(interrupt) == 130
    assert cli.guarded(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError, match="a defect"):
        cli.guarded(defect)


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    code = "from pipeline import cli\nraise SystemExit(cli.guarded(lambda: print('line\\n' * 100_000) or 0))"
    command = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert command.stdout is not None and command.stderr is not None
    assert command.stdout.readline() == "line\n"
    command.stdout.close()
    assert (command.stderr.read(), command.wait()) == ("", 0)


def test_another_broken_connection_keeps_its_traceback() -> None:
    def fail() -> int:
        raise BrokenPipeError("a socket")

    with pytest.raises(BrokenPipeError, match="a socket"):
        cli.guarded(fail)


def test_a_missing_config_file_is_exit_code_2_and_names_the_file() -> None:
    command = [sys.executable, "-m", "pipeline", "train", "configs/no_such_file.yaml"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == ConfigError.exit_code == 2
    assert done.stderr.startswith("error: config file configs/no_such_file.yaml does not exist")
    assert "Traceback" not in done.stderr


def test_the_version_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("unisphere ")
