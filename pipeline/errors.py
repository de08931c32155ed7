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
    │   └── Superseded            a newer start of the run owns its folder; this one must not write any more
    ├── ExportError               a model cannot be written in the asked-for format
    ├── RankLost                  another rank died, failed, or stands still, so that this one cannot go on
    ├── NoProgress                the run was started again and again and died each time before it saved anything new
    └── Stopped                   no failure: the run was asked to stop, has saved, and wants to be started again

Command lines catch ``PipelineError`` only: they print ``error: <message>`` and exit with ``exit_code``. Anything else is a
defect of the project and keeps its traceback. Exit codes of a training:

    0    done                                       6    an export failed
    1    a defect (with its traceback)              7    another rank is lost: start again from the last checkpoint
    2    configuration or launch                    8    no progress: a person must look before it is started again
    3    data                                       9    superseded: a newer start of the run owns its folder
    4    numbers                                    75   stopped and saved (``EXIT_REQUEUE``): start again to continue
    5    checkpoint                                 130  Ctrl-C; 128 + n  killed by signal n

A batch script requeues on 75, may on 7 (the run itself notices when that leads nowhere), and must not on the others.
"""

from __future__ import annotations

EXIT_REQUEUE = 75
"""What a training exits with that saved and wants to be started again; ``EX_TEMPFAIL`` of sysexits.h. Batch scripts read it."""


class PipelineError(Exception):
    """Base of all errors that a user can act on. ``exit_code`` is what a command line exits with."""

    exit_code = 1
    label = "error"
    """What a command line prints before the message."""


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


class Superseded(CheckpointError):
    """A newer start of the same run has claimed its folder; this one stops writing and leaves."""

    exit_code = 9


class ExportError(PipelineError):
    """A model cannot be written in the asked-for format."""

    exit_code = 6


class RankLost(PipelineError):
    """Another rank died, failed, or does not move on; the message names it."""

    exit_code = 7


class NoProgress(PipelineError):
    """Successive starts of a run died without saving anything new; starting it again would loop."""

    exit_code = 8


class Stopped(PipelineError):
    """The run was asked to stop (a signal, a time limit), saved, and can be started again to continue."""

    exit_code = EXIT_REQUEUE
    label = "stopped"
