"""What is particular to one cluster: partition, account, modules, interconnect variables, container. A value, pure functions.

    site = load_site("configs/slurm/lab.yaml")
    site.sbatch["account"]                       # options of every job submitted with this file
    site.wrap(("python", "-m", "pipeline.train"))  # the same command inside modules and container

Nothing of a site file is ever pasted into a shell: commands are lists of words, and where a shell is needed (``module`` is a
shell function) the words reach it as arguments.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline import strict

_WITH_MODULES = 'count=$1; shift; module load "${@:1:count}"; shift "$count"; exec "$@"'


@dataclass(frozen=True)
class Container:
    """An image that the ranks run in. Code, data and run folder are bound at the paths they have outside."""

    runtime: Literal["apptainer", "pyxis"]
    image: str
    mounts: tuple[str, ...] = ()
    """Further folders, as the runtime writes them: ``/outside:/inside``."""


@dataclass(frozen=True)
class Site:
    """One cluster; every field may stay empty."""

    sbatch: dict[str, str] = field(default_factory=dict)
    """Options of every submitted job: ``partition``, ``account``, ``qos``, ``constraint``, ..."""
    modules: tuple[str, ...] = ()
    """Loaded before each process, with the site's ``module`` command."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables of every process: ``NCCL_SOCKET_IFNAME``, ``NCCL_IB_HCA``, ``FI_PROVIDER``, ..."""
    python: str | None = None
    """Interpreter of the ranks, such as ``/opt/venv/bin/python`` of an image; default: the one that submits."""
    container: Container | None = None

    def wrap(self, command: tuple[str, ...], bound: tuple[str, ...] = ()) -> tuple[str, ...]:
        """``command`` with the modules loaded and, under apptainer, inside the container with the folders ``bound``."""
        if self.container is not None and self.container.runtime == "apptainer":
            binds = [word for mount in (*bound, *self.container.mounts) for word in ("--bind", mount)]
            command = ("apptainer", "exec", "--nv", *binds, self.container.image, *command)
        if self.modules:
            return ("bash", "-lc", _WITH_MODULES, "bash", str(len(self.modules)), *self.modules, *command)
        return command

    def srun_options(self, bound: tuple[str, ...] = ()) -> tuple[str, ...]:
        """What srun itself has to know: pyxis is a plugin of srun."""
        if self.container is None or self.container.runtime != "pyxis":
            return ()
        mounts = ",".join([*(f"{folder}:{folder}" for folder in bound), *self.container.mounts])
        return (f"--container-image={self.container.image}", f"--container-mounts={mounts}")


def load_site(path: str | Path | None) -> Site:
    """Read a site file; None is a cluster without particulars.

    Raises:
        ConfigError: the file is missing, not YAML, or has a key or a type that the fields above do not have.
    """
    if path is None:
        return Site()
    tree = strict.read_yaml(path)
    for group in ("sbatch", "environment"):  # numbers and the like are written without quotes; they are words here
        if isinstance(tree.get(group), dict):
            tree[group] = {str(key): str(value) for key, value in tree[group].items()}
    return strict.build(Site, tree)
