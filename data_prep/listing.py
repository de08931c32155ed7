"""What ``ls`` and ``cat`` show: shards with their counts, samples with their sizes, one sample as JSON or as a tar.

    list(shard_rows(["shards"]))       # [{"shard": "shards/a-000000.tar", "samples": 1000, "bytes": 52428800}, ...]
    list(sample_rows(["a.tar"]))       # [{"shard": "a.tar", "key": "0001", "bytes": 2048, "width": 64, ..., "members": [...]}]
    find_sample(["a.tar"], "0001.txt") # (Stored(...), "txt")

Shards that a manifest describes are listed from it, others are read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from data_prep.dimensions import HEAD_BYTES, dimensions
from data_prep.findings import Findings
from data_prep.grouping import Group, groups
from data_prep.inputs import exists, find_tars, join, open_stream, read_bytes, size_of, split_path
from data_prep.manifest import MANIFEST, ShardLine, parse_manifest
from data_prep.output import tar_key
from data_prep.reader import Stored, read_shard
from data_prep.walk import walk
from pipeline.data.tar import END_OF_ARCHIVE, group_key, member_bytes
from pipeline.errors import DataError

Row = dict[str, Any]


def shard_rows(specs: Sequence[str]) -> Iterator[Row]:
    """One row per shard: its path (below a single folder), samples, bytes. Raises DataError for none, or a damaged one."""
    manifests: dict[str, dict[str, ShardLine]] = {}
    root = os.path.abspath(specs[0]) + "/" if len(specs) == 1 else ""
    for path in find_tars(specs):
        folder, name = split_path(path)
        if folder not in manifests:
            place = join(folder, MANIFEST)
            lines = parse_manifest(read_bytes(place), place) if exists(place) else []
            manifests[folder] = {line.shard: line for line in lines}
        line = manifests[folder].get(name)
        count = line.count if line else sum(1 for _ in read_shard(path, Findings()))
        yield {"shard": path.removeprefix(root), "samples": count, "bytes": line.bytes if line else size_of(path)}


def table(rows: Sequence[Row]) -> str:
    """Rows of ``shard_rows`` as text, with their sum."""
    total = {"samples": sum(row["samples"] for row in rows), "bytes": sum(row["bytes"] for row in rows)}
    lines: list[Row] = [*rows, {"shard": f"{len(rows)} shards", **total}]
    width = max(len(row["shard"]) for row in lines)
    head = f"{'shard':<{width}}  {'samples':>12}  {'bytes':>18}"
    return "\n".join([head] + [f"{row['shard']:<{width}}  {row['samples']:>12,}  {row['bytes']:>18,}" for row in lines])


def sample_rows(specs: Sequence[str]) -> Iterator[Row]:
    """One row per sample. What is wrong with a tar is left to ``verify``: its readable samples are listed."""
    for path in find_tars(specs):
        with open_stream(path) as stream:
            for item in groups(walk(stream, lambda name, size: HEAD_BYTES)):
                if isinstance(item, Group):
                    image = item.image
                    sides = dimensions(image.data) if image else None
                    size = {"width": sides[0], "height": sides[1]} if sides else {}
                    num_bytes = sum(entry.size for entry in item.members.values())
                    yield {"shard": path, "key": item.key, "bytes": num_bytes, **size, "members": list(item.extensions)}


def find_sample(specs: Sequence[str], what: str) -> tuple[Stored, str | None]:
    """The first sample called ``what`` and None, or the one that has the member ``what`` and its extension.

    Raises DataError when there is none; it names the nearest keys.
    """
    split = group_key(what)
    keys: list[str] = []
    for path in find_tars(specs):
        for sample in read_shard(path, Findings()):
            if sample.key == what:
                return sample, None
            if split is not None and sample.key == split[0]:
                if split[1] not in sample.members:
                    members = ", ".join(f".{name}" for name in sample.members)
                    raise DataError(f"sample {sample.key!r} has no member .{split[1]}; it has {members}")
                return sample, split[1]
            if len(keys) < 5:
                keys.append(sample.key)
    raise DataError(f"no sample is called {what!r}; the first are {', '.join(keys) or 'none'}")


def as_json(sample: Stored) -> str:
    """A sample for people and for ``jq``: sizes of its members, captions, and the json member."""
    sides = dimensions(sample.image[:HEAD_BYTES])
    shown = {
        "shard": sample.shard,
        "key": sample.key,
        "members": {name: len(data) for name, data in sample.members.items()},
        **({"width": sides[0], "height": sides[1]} if sides else {}),
        "captions": sample.captions,
        "json": sample.meta,
    }
    return json.dumps(shown, indent=1)


def as_tar(sample: Stored) -> bytes:
    """A tar that holds this sample alone."""
    key = tar_key(sample.key, sample.members)
    members = (member_bytes(f"{key}.{name}", data) for name, data in sample.members.items())
    return b"".join(members) + END_OF_ARCHIVE
