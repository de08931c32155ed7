"""Slurm's programs as stand-ins that write down what they were given, for tests that need no cluster."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path
from typing import Any

_PROGRAM = """#!{python}
import json, os, sys
from pathlib import Path
folder, name = Path({folder!r}), {name!r}
env = {{key: value for key, value in os.environ.items() if key != "PATH"}}
with (folder / "calls.jsonl").open("a") as file:
    file.write(json.dumps({{"program": name, "argv": sys.argv[1:], "env": env, "cwd": os.getcwd()}}) + "\\n")
for answer in json.loads((folder / "answers.json").read_text()):
    if answer["program"] == name and all(word in sys.argv for word in answer["with"]):
        exec(answer["do"])
        print(answer["prints"], end="")
        sys.exit(answer["code"])
"""


class StandIns:
    """``bin/srun``, ``bin/scontrol``, ... in a folder; each answers as told, else with nothing and exit code 0."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._answers = folder, []  # type: tuple[Path, list[dict[str, Any]]]
        (folder / "bin").mkdir(parents=True)
        for name in ("srun", "scontrol", "sbatch", "scancel"):
            path = folder / "bin" / name
            path.write_text(_PROGRAM.format(python=sys.executable, folder=str(folder), name=name))
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        self._write()

    def answer(self, program: str, *having: str, prints: str = "", code: int = 0, do: str = "") -> None:
        """How ``program`` answers when these words are among its arguments; ``do`` is Python that it runs before.

        What was said last counts.
        """
        self._answers.insert(0, {"program": program, "with": having, "prints": prints, "code": code, "do": do})
        self._write()

    def calls(self, program: str) -> list[dict[str, Any]]:
        """Every call so far: argv, env, cwd."""
        path = self.folder / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [call for call in map(json.loads, lines) if call["program"] == program]

    def _write(self) -> None:
        (self.folder / "answers.json").write_text(json.dumps(self._answers))
