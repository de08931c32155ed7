"""When a job requeues itself, and when it must not."""

from __future__ import annotations

import pytest

from pipeline.errors import (
    EXIT_REQUEUE,
    CheckpointError,
    ConfigError,
    DataError,
    NoProgress,
    NumericsError,
    RankLost,
    Superseded,
)
from slurm.verdict import verdict


@pytest.mark.parametrize(
    ("code", "told_to_end", "restarts", "action", "why"),
    [
        (0, False, 0, "done", "complete"),
        (0, True, 3, "done", "complete"),
        (EXIT_REQUEUE, False, 0, "requeue", "asked to stop, and saved"),
        (EXIT_REQUEUE, False, 99, "requeue", "asked to stop, and saved"),
        (EXIT_REQUEUE, False, 100, "stop", "requeued 100 times already"),
        (EXIT_REQUEUE, True, 0, "stop", "Slurm ended this job"),
        (RankLost.exit_code, False, 0, "requeue", "a rank was lost"),
        (137, False, 1, "requeue", "a rank was lost"),
        (139, False, 1, "requeue", "a rank was lost"),
        (143, False, 0, "stop", "failed with exit code 143"),
        (NoProgress.exit_code, False, 2, "stop", "no progress"),
        (Superseded.exit_code, False, 0, "stop", "a later start of this run has taken over"),
        (ConfigError.exit_code, False, 0, "stop", "would not cure"),
        (DataError.exit_code, False, 0, "stop", "would not cure"),
        (NumericsError.exit_code, False, 0, "stop", "would not cure"),
        (CheckpointError.exit_code, False, 0, "stop", "would not cure"),
        (1, False, 0, "stop", "would not cure"),
    ],
)
def test_what_becomes_of_a_job(code: int, told_to_end: bool, restarts: int, action: str, why: str) -> None:
    found = verdict(code, told_to_end=told_to_end, restarts=restarts, max_restarts=100)
    assert found.action == action
    assert why in found.why
    assert found.exit_code == code
