"""Which hosts are held to be unfit, from what they wrote."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from slurm.hosts import examine, unfit

GOOD = {"name": "torch", "status": "ok", "value": "2"}
FULL = {"name": "shared memory", "status": "fail", "value": "0.01 GiB free"}
ALONE = {"name": "collective", "status": "fail", "value": "rank 0 of 2 failed in the rendezvous"}


def write(folder: Path, host: str, *checks: dict[str, str]) -> None:
    (folder / f"{host}.json").write_text(json.dumps(checks))


def test_all_fit(tmp_path: Path) -> None:
    for host in ("n1", "n2"):
        write(tmp_path, host, GOOD)
    assert unfit(["n1", "n2"], tmp_path) == {}


def test_a_fault_of_one_host_explains_the_others_failed_collective(tmp_path: Path) -> None:
    write(tmp_path, "n1", GOOD, ALONE)
    write(tmp_path, "n2", GOOD, FULL, ALONE)
    assert unfit(["n1", "n2"], tmp_path) == {"n2": "shared memory: 0.01 GiB free"}
    write(tmp_path, "n2", GOOD, ALONE)
    assert list(unfit(["n1", "n2"], tmp_path)) == ["n1", "n2"], "nobody else to blame"


def test_a_silent_host_is_unfit(tmp_path: Path) -> None:
    write(tmp_path, "n1", ALONE)
    assert unfit(["n1", "n2"], tmp_path) == {"n2": "the doctor did not finish there within 60 s"}


@pytest.mark.parametrize("hosts", [["n1"], ["n1", "n2", "n3"]])
def test_one_doctor_per_host(tmp_path: Path, hosts: list[str]) -> None:
    def srun(options: Sequence[str], command: Sequence[str]) -> int:
        assert f"--ntasks={len(hosts)}" in options
        assert "--ntasks-per-node=1" in options
        assert "--kill-on-bad-exit=0" in options, "a host that fails must not silence the others"
        assert list(command[:3]) == ["python", "-m", "pipeline.doctor"]
        write(Path(command[-1]), "n1", GOOD)
        return 1

    bad = examine(srun, ["python"], hosts, tmp_path / "found")
    assert list(bad) == hosts[1:]
