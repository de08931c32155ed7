"""Rows of tables: CSV, TSV, JSON lines, Parquet; local or anywhere that fsspec reads. One row per record, in order.

    for row in table_rows("s3://bucket/pairs.csv"):
        ...

A record that cannot be parsed is a row with a ``problem``. Memory holds one record (Parquet: see there): a line of more
than ``MAX_LINE_BYTES`` is read past and counted, however long it is.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from data_prep import parquet
from data_prep.inputs import is_remote, open_stream
from data_prep.rows import CAPTION_FIELDS, IMAGE_FIELDS, BadRow, Row, from_fields
from pipeline.errors import DataError

SEPARATORS = {".csv": ",", ".tsv": "\t"}
TABLES = (*SEPARATORS, ".jsonl", ".parquet")
MAX_LINE_BYTES = 1 << 24  # far above a usable caption, so that a long one is counted as such


def table_rows(path: str) -> Iterator[Row]:
    """The rows of a table whose name ends in one of ``TABLES``. Raises DataError when it cannot be read."""
    suffix = suffix_of(path)
    rows = _json_rows(path) if suffix == ".jsonl" else _parquet_rows(path) if suffix == ".parquet" else _csv_rows(path)
    try:
        yield from rows
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}; when it can, run the same command again") from error


def column_names(path: str) -> list[str] | None:
    """The columns of a table; None for JSON lines, where every record names its own.

    Raises DataError when an image or a caption column is missing or the table cannot be read.
    """
    suffix = suffix_of(path)
    if suffix == ".jsonl":
        return None
    if suffix == ".parquet":
        names = parquet.column_names(path)
    else:
        with open_stream(path) as stream:
            names = next(csv.reader(BoundedLines(stream), delimiter=SEPARATORS[suffix]), [])
    for wanted in (IMAGE_FIELDS, CAPTION_FIELDS):
        if not set(wanted) & set(names):
            raise DataError(
                f"{path}: the header names no {wanted[0]} column; it has {names[:20]}, one of {', '.join(wanted)} is needed"
            )
    return names


def suffix_of(path: str) -> str:
    """The name's ending in lower case, without a URL's query.

    >>> suffix_of("https://host/pairs.CSV?version=2")
    '.csv'
    """
    return Path(path.partition("?")[0] if is_remote(path) else path).suffix.lower()


def folder_of(path: str) -> Path | str:
    """What the image names of a table are relative to."""
    return path.rpartition("/")[0] if is_remote(path) else Path(path).parent


class BoundedLines:
    """The lines of a stream as text, bytes that are not UTF-8 as lone surrogates; of a long line only its beginning.

    ``cut`` says whether the last line was longer than ``MAX_LINE_BYTES``.
    """

    def __init__(self, stream: BinaryIO) -> None:
        # fsspec's files are raw enough for a buffer, which gives them a readline that knows a limit.
        self._stream = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(cast(Any, stream), 1 << 20)
        self._encoding = "utf-8-sig"
        self.cut = False

    def __iter__(self) -> BoundedLines:
        return self

    def __next__(self) -> str:
        line = self._stream.readline(MAX_LINE_BYTES)
        if not line:
            raise StopIteration
        rest = line
        while not rest.endswith(b"\n") and len(rest) == MAX_LINE_BYTES:
            rest = self._stream.readline(MAX_LINE_BYTES)
            self.cut = True
        text = line.decode(self._encoding, "surrogateescape")
        self._encoding = "utf-8"
        return text

    def take_cut(self) -> bool:
        """Whether a line was cut since the last call."""
        was, self.cut = self.cut, False
        return was


def _too_long(where: str) -> BadRow:
    return BadRow("caption-too-long", f"{where} has more than {MAX_LINE_BYTES:,} bytes")


def _json_rows(path: str) -> Iterator[Row]:
    number, base = 0, folder_of(path)
    with open_stream(path) as stream:
        lines = BoundedLines(stream)
        for line_number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                if lines.take_cut():
                    raise _too_long(f"line {line_number}")
                fields = json.loads(line)
                if not isinstance(fields, dict):
                    raise ValueError(f"expected an object, got {type(fields).__name__}")
                yield from_fields(number, fields, base)
            except (ValueError, RecursionError) as error:
                yield Row(number, problem=BadRow("row-invalid", f"not a JSON object: {error}; {line[:60]!r}"))
            except BadRow as problem:
                yield Row(number, problem=problem)
            number += 1


def _csv_rows(path: str) -> Iterator[Row]:
    """A record with too many or too few fields is a row with a problem; a blank line is none."""
    number, base = 0, folder_of(path)
    csv.field_size_limit(MAX_LINE_BYTES)
    with open_stream(path) as stream:
        lines = BoundedLines(stream)
        reader = csv.reader(lines, delimiter=SEPARATORS[suffix_of(path)])
        header = next(reader)
        while True:
            try:
                values = next(reader, None)
                if values is None:
                    return
                if not values:  # the csv module's word for a blank line
                    continue
                if lines.take_cut():
                    raise _too_long(f"line {reader.line_num}")
                if len(values) != len(header):
                    raise BadRow("row-invalid", f"{len(values)} fields at line {reader.line_num}, the header has {len(header)}")
                row = from_fields(number, dict(zip(header, values, strict=True)), base)
            except csv.Error as error:
                lines.take_cut()
                row = Row(number, problem=BadRow("row-invalid", f"line {reader.line_num}: {error}"))
            except BadRow as problem:
                row = Row(number, problem=problem)
            yield row
            number += 1


def _parquet_rows(path: str) -> Iterator[Row]:
    base = folder_of(path)
    for number, fields in enumerate(parquet.records(path)):
        yield Row(number, problem=fields) if isinstance(fields, BadRow) else from_fields(number, fields, base)
