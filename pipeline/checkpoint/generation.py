"""Who may write to a run's folder: the start that claimed it last.

After a network cut a scheduler may start a run again while its old processes, cut off but alive, go on writing to the same
shared folder. So every start claims the next generation, a file that only one process can create, and every writer looks for a
newer claim before it makes something visible. The older one then refuses, says so, and leaves with an exit code of its own.

    generation = Generation.claim(run_dir, world)     # runs/NAME/generations/00003.json
    generation.check()                                # raises Superseded once 00004.json is there

What remains: a process that is stopped between ``check`` and the rename that follows it, for so long that another start claims
and saves in the meantime, can still put its own complete checkpoint of an older step beside the others. It cannot mix files
with another start's, because the folder it writes in carries its generation.
"""

from __future__ import annotations

import datetime
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from pipeline import dist
from pipeline.dist import World
from pipeline.errors import CheckpointError, Superseded


@dataclass(frozen=True)
class Generation:
    """One start of a run."""

    folder: Path | None
    """Where the claims lie; None claims nothing, for a single process that writes once."""
    number: int

    @staticmethod
    def claim(run_dir: Path, world: World) -> Generation:
        """Take the next number; every rank, together.

        Raises:
            CheckpointError: on every rank, if the run's folder cannot be written.
        """
        folder, number, failure = run_dir / "generations", 0, ""
        if world.is_main:
            try:
                number = _claim(folder)
            except OSError as error:
                failure = f"cannot claim {folder}: {error}; choose another runs_dir, or free some space"
        number, failure = dist.broadcast_object((number, failure))
        if failure:
            raise CheckpointError(failure)
        return Generation(folder, number)

    def agree(self, world: World) -> None:
        """``check`` on rank 0, with its outcome on every rank, which all call it.

        Raises:
            Superseded: on every rank.
        """
        failure = ""
        if world.is_main:
            try:
                self.check()
            except Superseded as error:
                failure = str(error)
        if failure := dist.broadcast_object(failure):
            raise Superseded(failure)

    def check(self) -> None:
        """Make sure that no newer start owns the folder; one listing of a small folder.

        Raises:
            Superseded: another start has claimed it.
        """
        if self.folder is not None and (newest := _newest(self.folder)) > self.number:
            raise Superseded(
                f"this is start {self.number} of {self.folder.parent}, but start {newest} has taken over "
                f"({_who(self.folder / _name(newest))}); nothing more is written from here"
            )


def _claim(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    number = _newest(folder) + 1
    while True:
        try:  # creation fails if the name exists: of two starts, one gets each number
            with open(folder / _name(number), "x", encoding="utf-8") as file:
                json.dump(about, file)
            return number
        except FileExistsError:
            number += 1


def _newest(folder: Path) -> int:
    return max((int(path.stem) for path in folder.glob("[0-9]*.json")), default=0)


def _name(number: int) -> str:
    return f"{number:05d}.json"


def _who(path: Path) -> str:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        return f"host {about['host']}, process {about['pid']}, {about['time']}"
    except (OSError, ValueError, KeyError):
        return "it did not say who it is"
