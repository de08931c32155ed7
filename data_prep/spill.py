"""Sets and tables larger than memory: a temporary SQLite database that spills to disk, in a bounded cache.

    with scratch("CREATE TABLE seen (key TEXT PRIMARY KEY) WITHOUT ROWID") as database:
        is_new = database.execute("INSERT OR IGNORE INTO seen VALUES (?)", ("a",)).rowcount == 1

The file has no name and is gone with the process, however that ends. It lies where SQLite keeps temporary files
(``SQLITE_TMPDIR``, ``/var/tmp``, ``/tmp``), and takes about 60 bytes per entry.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager

from pipeline.errors import DataError

CACHE_KIB = 32 * 1024


@contextmanager
def scratch(*schema: str) -> Iterator[sqlite3.Connection]:
    """A temporary database with these tables, in one transaction that is never committed.

    Raises DataError when SQLite fails, as it does when the temporary folder is full.
    """
    try:
        with closing(sqlite3.connect("", isolation_level=None, check_same_thread=False)) as database:
            database.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            database.execute("PRAGMA journal_mode = OFF")
            database.execute("PRAGMA synchronous = OFF")
            for statement in schema:
                database.execute(statement)
            database.execute("BEGIN")
            yield database
    except sqlite3.Error as error:
        raise DataError(f"temporary database: {error}; set SQLITE_TMPDIR to a folder with room") from error
