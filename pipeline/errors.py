"""Every error this project raises on purpose, drawn as a tree.

    PipelineError                 something a user can act on; the message says what, with which values, and what to do
    ├── ConfigError               a setting is unknown, of the wrong type, or impossible with another one
    ├── LaunchError               the launch environment is contradictory (ranks, world size, rendezvous)
    ├── DataError                 a dataset, shard, image, or caption cannot be used
    │   ├── TruncatedTar          a shard ends before its last member or end-of-archive mark
    │   ├── BadSample             one sample cannot be used (``data/drops.py``; counted, and replaced while training)
    │   └── BudgetExceeded        more samples were dropped than the configured budget allows
    ├── NumericsError             a loss, gradient or embedding is not finite
    ├── CheckpointError           a checkpoint is missing, incomplete, or belongs to another run
    └── ExportError               a model cannot be written in the asked-for format

Command lines catch ``PipelineError`` only: they print ``error: <message>`` and exit with ``exit_code``. Anything else is a
defect of the project and keeps its traceback.
"""

from __future__ import annotations


class PipelineError(Exception):
    """Base of all errors that a user can act on. ``exit_code`` is what a command line exits with."""

    exit_code = 1


class ConfigError(PipelineError):
    """A setting is unknown, of the wrong type, out of range, or impossible in combination with another one."""

    exit_code = 2


class LaunchError(PipelineError):
    """The launch environment (torchrun, Slurm, a shell export) describes an impossible or contradictory world."""

    exit_code = 2


class DataError(PipelineError):
    """A dataset, shard, image, or caption cannot be used."""

    exit_code = 3


class TruncatedTar(DataError):
    """A tar file ends inside a member, or without its end-of-archive mark."""


class BudgetExceeded(DataError):
    """More samples were dropped than ``data.max_bad_fraction`` allows."""


class NumericsError(PipelineError):
    """A loss, gradient, or embedding is not finite, so that a training step would destroy the weights."""

    exit_code = 4


class CheckpointError(PipelineError):
    """A checkpoint is missing, incomplete, or belongs to a run with other settings."""

    exit_code = 5


class ExportError(PipelineError):
    """A model cannot be written in the asked-for format."""

    exit_code = 6
