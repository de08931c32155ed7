"""The cluster that the tests marked ``slurm`` share: three hosts, started once, with a small disk that fills up."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Cluster, missing


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Hosts n1, n2, n3; ``cluster.folder.parent / "small"`` is a file system of 8 MB that all of them see."""
    if why := missing():
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("cluster")
    small = folder / "small"
    small.mkdir()
    # Before the hosts start: they inherit the machine's mounts.
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "small", str(small)], check=True)
    try:
        with Cluster(folder / "slurm", nodes=3) as running:
            yield running
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)
