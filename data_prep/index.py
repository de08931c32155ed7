"""Adopt tars of any origin: find their samples, and write index, manifest and sizes beside them.

    adopt(["/mnt/foreign/shards"])                 # every .tar in or below; nothing in the tars is changed
    adopt(["a/x-000.tar"], skip_bad=True)          # this one; the other lines of a/manifest.jsonl stay
    adopt(["s3://bucket/laion"], workers=8)        # written into the bucket, each file in one request
    adopt(["https://host/set/{000..011}.tar"], out=Path("set"))      # what cannot be written to is described elsewhere

Each tar is read once, forwards, in bounded memory; checksum, sample positions and image sizes come from the same pass. A
tar that is cut, damaged, hostile, or without any sample that has an image and a text is bad. All tars are looked at
before anything is written, so that one run reports every bad one; with bad ones nothing is written unless ``skip_bad``.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from data_prep.dimensions import HEAD_BYTES, dimensions
from data_prep.files import HashingReader, atomic
from data_prep.grouping import TEXT_EXTENSIONS, Finding, groups
from data_prep.inputs import exists, filesystem, find_tars, is_remote, join, open_stream, read_bytes, size_of, split_path
from data_prep.manifest import (
    MANIFEST,
    OPEN_LM,
    SIZES,
    ShardLine,
    index_line,
    index_name,
    manifest_texts,
    open_lm_text,
    parse_manifest,
    write_manifest,
)
from data_prep.pool import over_shards
from data_prep.walk import walk
from pipeline.data.samples import IMAGE_EXTENSIONS
from pipeline.data.tar import group_key
from pipeline.errors import DataError

# Kinds that do not keep training from reading the rest of a tar; `verify` tells about them.
HARMLESS = ("member-link", "member-device", "member-stray")


@dataclass
class Adopted:
    """What ``adopt`` found."""

    num_shards: int = 0
    num_samples: int = 0
    num_bytes: int = 0
    num_incomplete: int = 0  # samples without an image or without a text; indexed, and counted again when training reads them
    bad: list[str] = field(default_factory=list)  # one message per bad tar
    written: bool = False


@dataclass(frozen=True)
class _Job:
    path: str
    index: str  # where to write its index


@dataclass(frozen=True)
class _Scanned:
    line: ShardLine | None  # None for a bad tar
    num_incomplete: int = 0
    error: str = ""


def adopt(specs: Sequence[str], *, skip_bad: bool = False, workers: int = 1, out: Path | None = None) -> Adopted:
    """Index the tars that ``specs`` mean and write their manifests, one per folder; with ``out`` a single one there.

    Raises DataError when a path does not exist, there is no tar, or a file cannot be written.
    """
    paths = find_tars(specs)
    if out is not None and len({split_path(path)[0] for path in paths}) > 1:
        raise DataError("the tars lie in several folders; with --out give those of one at a time")
    result = Adopted()
    folders: dict[str, dict[str, ShardLine]] = {}
    with _staging(str(out) if out is not None else split_path(paths[0])[0]) as staging:
        jobs = [_Job(path, os.path.join(staging, f"{number}.jsonl")) for number, path in enumerate(paths)]
        sizes = [_size(path) for path in paths]
        scanned = over_shards(_scan, jobs, workers=workers, weights=sizes, desc="index")
        for job, one in zip(jobs, scanned, strict=True):
            if one.line is None:
                result.bad.append(one.error)
                continue
            folders.setdefault(split_path(job.path)[0], {})[job.path] = one.line
            result.num_shards += 1
            result.num_samples += one.line.count
            result.num_bytes += one.line.bytes
            result.num_incomplete += one.num_incomplete
        result.written = bool(folders) and (skip_bad or not result.bad)
        if result.written:
            staged = {job.path: job.index for job in jobs}
            for folder, lines in folders.items():
                if out is not None:
                    folder, lines = str(out), {path: _elsewhere(line, path, out) for path, line in lines.items()}
                _publish(folder, lines, staged, out is not None or _is_whole(folder, specs))
    return result


def _staging(folder: str) -> tempfile.TemporaryDirectory[str]:
    """A hidden folder for indexes on the way, beside where they will lie; of remote ones, here."""
    if is_remote(folder):
        return tempfile.TemporaryDirectory(prefix="unisphere-index-")
    try:
        os.makedirs(folder, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=".index-", dir=folder)
    except OSError as error:
        raise DataError(f"cannot write into {folder}: {error}; describe these shards elsewhere with --out FOLDER") from error


def _size(path: str) -> int:
    """For the progress bar: 0 for what cannot be read, which ``_scan`` will say."""
    try:
        return size_of(path)
    except DataError:
        return 0


def _elsewhere(line: ShardLine, path: str, out: Path) -> ShardLine:
    """The line of a shard that does not lie beside its manifest: full names of the shard and of its index."""
    return replace(line, shard=path, index=str(out.absolute() / line.index))


def _is_whole(folder: str, specs: Sequence[str]) -> bool:
    """Whether all of the folder was named, so that lines of tars that were not found must go."""
    roots = [spec.rstrip("/") if is_remote(spec) else os.path.abspath(spec) for spec in specs]
    return any(folder == root or folder.startswith(root + "/") for root in roots)


def _scan(job: _Job) -> _Scanned:
    """Index one tar into ``job.index``; an error for one that is damaged or holds no complete sample."""
    num_complete = count = 0
    extensions: Counter[str] = Counter()
    try:
        with open_stream(job.path) as raw, open(job.index, "wb") as index:
            reader = HashingReader(raw)
            for item in groups(walk(reader, _image_heads)):
                if isinstance(item, Finding):
                    if item.kind not in HARMLESS:
                        return _Scanned(None, error=f"{job.path}: {item.detail} ({item.kind}); see `unisphere shards repair`")
                    continue
                image = item.image
                index.write(index_line(item.span, dimensions(image.data) if image else None))
                extensions.update(item.extensions)
                count += 1
                num_complete += item.is_complete
    except DataError as error:
        return _Scanned(None, error=str(error))
    except OSError as error:
        return _Scanned(None, error=f"{job.path} cannot be read: {error}")
    if not num_complete:
        return _Scanned(None, error=_no_sample(job.path, reader.num_bytes, extensions))
    name = split_path(job.path)[1]
    line = ShardLine(name, count, reader.num_bytes, reader.hexdigest(), index_name(name))
    return _Scanned(line, count - num_complete)


def _image_heads(name: str, size: int) -> int:
    split = group_key(name)
    return HEAD_BYTES if split is not None and split[1] in IMAGE_EXTENSIONS else 0


def _no_sample(path: str, num_bytes: int, extensions: Counter[str]) -> str:
    found = ", ".join(f".{name} ({number})" for name, number in extensions.most_common(8)) or "no file with an extension"
    return (
        f"{path}: no sample has both an image and a text in its {num_bytes:,} bytes; members found: {found}; "
        f"expected under one key, next to each other: an image (.{', .'.join(IMAGE_EXTENSIONS)}) "
        f"and a text (.{', .'.join(TEXT_EXTENSIONS)})"
    )


def _publish(folder: str, lines: dict[str, ShardLine], staged: dict[str, str], is_whole: bool) -> None:
    """Write the indexes of one folder, then ``sizes.json``, and its manifest last."""
    all_lines = ({} if is_whole else _other_lines(folder)) | {line.shard: line for line in lines.values()}
    if not is_remote(folder):
        for path, line in lines.items():
            with open(staged[path], "rb") as source, atomic(Path(folder) / line.index) as handle:
                while chunk := source.read(1 << 20):
                    handle.write(chunk)
        write_manifest(Path(folder), all_lines.values())
        return
    system, inner = filesystem(folder)
    sizes, manifest = manifest_texts(all_lines.values())
    try:
        for path, line in lines.items():
            system.put_file(staged[path], f"{inner}/{line.index}")
        system.pipe_file(f"{inner}/{SIZES}", sizes.encode())
        system.pipe_file(f"{inner}/{OPEN_LM}", open_lm_text(all_lines.values()).encode())
        system.pipe_file(f"{inner}/{MANIFEST}", manifest.encode())
    except Exception as error:  # each remote file system has exceptions of its own; read-only ones NotImplementedError
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"cannot write into {folder} ({reason}); describe these shards elsewhere with --out FOLDER") from error


def _other_lines(folder: str) -> dict[str, ShardLine]:
    """The lines of an existing manifest whose shards are still there."""
    path = join(folder, MANIFEST)
    if not exists(path):
        return {}
    return {line.shard: line for line in parse_manifest(read_bytes(path), path) if exists(join(folder, line.shard))}
