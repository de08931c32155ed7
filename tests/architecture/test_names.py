"""Nothing in the repository names the machine or the package registry that it happened to be written with."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping

from tests.architecture.guards import REPOSITORY

# Written in pieces, so that this file does not name them either.
REGISTRIES = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("registry", "npmjs", "org"),
        ("yarnpkg", "com"),
        ("download", "pytorch", "org"),
        ("conda", "anaconda", "org"),
        ("pypi", "nvidia", "com"),
    )
)
MACHINE_PATHS = re.compile(r"(?<![\w.$}*-])/(?:" + "|".join(["wor" + "k", "far" + "m", "roo" + "t", "tmp/w"]) + r")/\w")


def foreign_names(texts: Mapping[str, str]) -> list[str]:
    """One line per registry host or machine path, with its place."""
    found = []
    for path, text in texts.items():
        for number, line in enumerate(text.splitlines(), start=1):
            found += [f"{path}:{number}: names the registry {host}" for host in REGISTRIES if host in line]
            found += [f"{path}:{number}: names the machine's path {match.group()}" for match in MACHINE_PATHS.finditer(line)]
    return found


def repository_texts() -> dict[str, str]:
    """Every text file that git tracks or would track."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.split("\0")
    texts = {}
    for name in filter(None, names):
        path = REPOSITORY / name
        content = path.read_bytes() if path.is_file() else b""
        if b"\0" not in content:
            texts[name] = content.decode("utf-8", errors="replace")
    return texts


def test_the_repository_names_no_registry_and_no_machine() -> None:
    texts = repository_texts()
    assert len(texts) >= 100
    assert {"pyproject.toml", "constraints.txt", "Makefile"} <= set(texts)
    assert foreign_names(texts) == []


def test_foreign_names_are_found() -> None:
    host = REGISTRIES[0]
    texts = {
        "a.txt": f"ok\n--index-url https://{host}/simple",
        "b.py": "x = '/" + "work/data'",
        "c.md": "see docs/work/x",
    }
    assert foreign_names(texts) == [
        f"a.txt:2: names the registry {host}",
        "b.py:1: names the machine's path /wor" + "k/d",
    ]
