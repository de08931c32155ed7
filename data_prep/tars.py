"""Rows of existing tars: WebDataset shards of any origin, and the folders that img2dataset leaves.

    for row in tar_rows(["downloads/00000.tar"]):
        row.image                 # "range://1536-48211::downloads/00000.tar": the image is read when its turn comes

A tar is walked header by header in bounded memory; only its small texts are read here. What cannot be a sample is a row
with a problem: links and devices, names that climb out, members too large for the loader, and damage, after which the walk
goes on at the next header.

img2dataset writes a table beside each tar, ``00000.parquet`` with one record per URL, and ``00000_stats.json``. Records
that are not "success" are rows too (cause ``download-failed``), so that the report adds up to the URL list; both files
are kept with the build, in ``source/``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from data_prep import parquet
from data_prep.inputs import exists, open_stream
from data_prep.pictures import RANGE
from data_prep.rows import MAX_CAPTION_BYTES, BadRow, Row, from_members
from data_prep.tables import MAX_LINE_BYTES
from data_prep.walk import Entry, Fault, walk
from pipeline.data.samples import IMAGE_EXTENSIONS, MAX_MEMBER_BYTES
from pipeline.data.tar import group_key

TEXT_BYTES = {"txt": MAX_CAPTION_BYTES, "json": MAX_LINE_BYTES, "cls": 100}
COMPANIONS = (".parquet", "_stats.json")


def tar_rows(tars: Sequence[str], splits: Mapping[str, str]) -> Iterator[Row]:
    """The rows of all ``tars``, numbered through, in the split of their tar unless they name one themselves.

    Raises DataError when a tar cannot be opened or its disk fails.
    """
    number = 0
    for tar in tars:
        for row in _one_tar(tar):
            yield replace(row, number=number, split=row.split or splits.get(tar, ""))
            number += 1


def companions_of(tars: list[str]) -> tuple[str, ...]:
    """The files that img2dataset wrote beside ``tars``."""
    beside = (tar.removesuffix(".tar") + ending for tar in tars for ending in COMPANIONS)
    return tuple(path for path in beside if exists(path))


@dataclass
class _Sample:
    """Neighbouring members with one key, as far as they were seen."""

    key: str
    images: dict[str, tuple[int, int]] = field(default_factory=dict)  # extension -> offset, size
    texts: dict[str, bytes] = field(default_factory=dict)
    left_out: int = 0
    problem: BadRow | None = None

    def add(self, extension: str, entry: Entry) -> None:
        """Take in one member."""
        if extension in self.images or extension in self.texts:
            self.left_out += 1
        elif extension in IMAGE_EXTENSIONS:
            self.images[extension] = (entry.data_offset, entry.size)
        elif extension in TEXT_BYTES:
            self.texts[extension] = entry.data
            if entry.size > TEXT_BYTES[extension]:
                cause = "caption-too-long" if extension == "txt" else "row-invalid"
                detail = f"member .{extension} has {entry.size:,} bytes, at most {TEXT_BYTES[extension]:,}"
                self.problem = BadRow(cause, detail)
        else:
            self.left_out += 1

    def row(self, tar: str) -> Row:
        """The row that the members make."""
        chosen = next((extension for extension in IMAGE_EXTENSIONS if extension in self.images), None)
        if chosen is None:
            found = ", ".join("." + name for name in self.texts) or "none that is read"
            problem = BadRow("image-missing", f"{tar}: key {self.key[:80]!r} has no image; members: {found}")
            return Row(0, tar, key=self.key, problem=problem)
        offset, size = self.images[chosen]
        image = f"{RANGE}{offset}-{size}::{tar}"
        if size > MAX_MEMBER_BYTES:
            detail = f"member .{chosen} has {size:,} bytes, at most {MAX_MEMBER_BYTES:,} are read"
            self.problem = self.problem or BadRow("sample-too-large", detail)
        if self.problem is not None:
            return Row(0, image, key=self.key, problem=self.problem)
        left_out = self.left_out + len(self.images) - 1
        return from_members(0, image, self.key, self.texts, lines=False, left_out=left_out)


def _one_tar(tar: str) -> Iterator[Row]:
    sample: _Sample | None = None
    with open_stream(tar) as stream:
        for item in walk(stream, keep=_texts_only):
            names = group_key(item.name) if isinstance(item, Entry) and item.kind == "file" else None
            if sample is not None and (names is None or names[0] != sample.key):
                yield sample.row(tar)
                sample = None
            if isinstance(item, Fault):
                yield Row(0, tar, problem=BadRow("tar-corrupt", f"{tar}: {item.detail}"))
            elif item.kind not in ("file", "folder"):
                detail = f"{tar}: {item.name[:80]!r} at byte {item.offset:,} is a {item.kind}, which is never followed"
                yield Row(0, tar, problem=BadRow("link-not-followed", detail))
            elif names is not None:
                sample = sample or _Sample(names[0])
                sample.add(names[1], item)
            elif item.kind == "file":
                detail = f"{tar}: {item.name[:80]!r} has no key and extension and belongs to no sample"
                yield Row(0, tar, problem=BadRow("member-unknown", detail))
    if sample is not None:
        yield sample.row(tar)
    table = tar.removesuffix(".tar") + ".parquet"
    if exists(table):
        yield from _failed_downloads(table)


def _texts_only(name: str, size: int) -> int:
    names = group_key(name)
    limit = TEXT_BYTES.get(names[1], 0) if names else 0
    return size if size <= limit else 0


def _failed_downloads(table: str) -> Iterator[Row]:
    for record in parquet.records(table, ["key", "url", "status", "error_message"]):
        if isinstance(record, BadRow):
            yield Row(0, table, problem=record)
        elif record.get("status", "success") != "success":
            detail = f"{record.get('status')}: {record.get('error_message')}"
            yield Row(0, str(record.get("url")), key=str(record.get("key")), problem=BadRow("download-failed", detail))
