"""Records of Parquet files in bounded memory, whatever a file makes of its right to pack much into little.

    for record in records("pairs.parquet"):          # {"image": "a.jpg", "caption": "a cat"}, or a BadRow
        ...

A few kilobytes of Parquet can stand for gigabytes: a text that every row repeats is stored once, a page of one letter
compresses to nothing. So texts stay in the file's own dictionary until their row's turn, a row of more than
``MAX_RECORD_BYTES`` is counted and never built, and a row group of which one column says to be larger than
``MAX_COLUMN_BYTES`` is refused before it is read. Beside that, memory holds one batch of rows. (Texts in lists cannot be
kept in a dictionary by pyarrow: a batch of those is unpacked whole.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_prep.inputs import is_remote, open_stream
from data_prep.rows import BadRow
from pipeline.errors import DataError

BATCH_ROWS = 1024
BUFFER_BYTES = 1 << 20
MAX_RECORD_BYTES = 1 << 24
MAX_COLUMN_BYTES = 1 << 30
"""Of one column in one row group, unpacked; a million captions are a tenth of it."""

VALUE_BYTES = 8


def column_names(path: str) -> list[str]:
    """The columns of the file. Raises DataError when it cannot be read."""
    return list(_opened(path).schema_arrow.names)


def records(path: str, columns: list[str] | None = None) -> Iterator[dict[str, Any] | BadRow]:
    """The rows in order, of ``columns`` those that there are; too large a row is a BadRow (caption-too-long).

    Raises DataError when the file cannot be read or a row group is too large.
    """
    from pyarrow import ArrowException

    file = _opened(path)
    names = [name for name in file.schema_arrow.names if columns is None or name in columns]
    _refuse_large_groups(path, file.metadata, names)
    try:
        for batch in file.iter_batches(BATCH_ROWS, columns=names):
            if sum(map(_num_bytes, batch.columns)) <= MAX_RECORD_BYTES:
                yield from batch.to_pylist()
            else:
                yield from (_record(batch.slice(row, 1)) for row in range(batch.num_rows))
    except (ArrowException, OSError) as error:
        raise _unreadable(path, error) from error


def _opened(path: str) -> Any:
    """The file, its texts to be read as dictionaries."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DataError(f"{path}: reading Parquet needs pyarrow; pip install 'unisphere[parquet]'") from error
    try:
        file = parquet.ParquetFile(open_stream(path))
        leaves = [file.schema.column(number) for number in range(len(file.schema))]
        texts = [
            leaf.path
            for leaf in leaves
            if leaf.physical_type == "BYTE_ARRAY" and leaf.max_repetition_level == 0 and "." not in leaf.path
        ]
        # A remote file is asked for whole columns of a row group at once: reading several by turns would fetch much twice.
        buffer_bytes = 0 if is_remote(path) else BUFFER_BYTES
        return parquet.ParquetFile(open_stream(path), metadata=file.metadata, read_dictionary=texts, buffer_size=buffer_bytes)
    except (ArrowException, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: Exception) -> DataError:
    said = " ".join(str(error).split())
    return DataError(f"{path} cannot be read as Parquet: {said}; when it can, run the same command again")


def _refuse_large_groups(path: str, metadata: Any, names: list[str]) -> None:
    """Raise DataError for a row group of which one column is larger than ``MAX_COLUMN_BYTES`` by what the file says."""
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for place in range(group.num_columns):
            column = group.column(place)
            is_nested = column.num_values > group.num_rows
            num_bytes = max(column.total_uncompressed_size, column.num_values * VALUE_BYTES if is_nested else 0)
            if num_bytes > MAX_COLUMN_BYTES and column.path_in_schema.partition(".")[0] in names:
                raise DataError(
                    f"{path}: column {column.path_in_schema!r} has {num_bytes:,} bytes in row group {number} of "
                    f"{group.num_rows:,} rows, at most {MAX_COLUMN_BYTES:,} are read; write the table again with smaller row "
                    "groups, or without that column"
                )


def _num_bytes(array: Any) -> int:
    """Bytes of all values of an Arrow array written out one after another, in which each repeats what it shares."""
    from pyarrow import compute, types

    kind = array.type
    if types.is_dictionary(kind) and (types.is_string(kind.value_type) or types.is_binary(kind.value_type)):
        lengths = compute.binary_length(array.dictionary).cast("int64")
        return compute.sum(compute.take(lengths, array.indices)).as_py() or 0
    if types.is_nested(kind):
        parts = array.flatten()
        return sum(map(_num_bytes, parts)) if types.is_struct(kind) else _num_bytes(parts)
    return int(array.nbytes)


def _record(row: Any) -> dict[str, Any] | BadRow:
    """The one row of a batch. A problem does not repeat its text, which is the problem."""
    sizes = {name: _num_bytes(column) for name, column in zip(row.schema.names, row.columns, strict=True)}
    if sum(sizes.values()) > MAX_RECORD_BYTES:
        largest = max(sizes, key=lambda name: sizes[name])
        return BadRow("caption-too-long", f"column {largest!r} has {sizes[largest]:,} bytes, at most {MAX_RECORD_BYTES:,}")
    found: dict[str, Any] = row.to_pylist()[0]
    return found
