"""URL lists are fetched by img2dataset; this hands over to it and reads what it leaves.

    source = download("laion.parquet", "downloads/", workers=16)      # then build from source as from any other

It is started with a list of arguments, never through a shell, and its images are left as they were sent: filtering and
resizing are the build's. It skips shards that an earlier run finished, so an interrupted download continues.

It is a command on the PATH and no dependency, because it asks for an older webdataset than the project has: an environment of
its own (``pipx install img2dataset``) keeps both.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

from data_prep.inputs import find_tars
from data_prep.rows import CAPTION_FIELDS, IMAGE_FIELDS, Source
from data_prep.sources import tar_source
from data_prep.tables import column_names, suffix_of
from pipeline.errors import DataError

FORMATS = {".csv": "csv", ".tsv": "tsv", ".parquet": "parquet", ".jsonl": "jsonl"}
THREADS_PER_PROCESS = 16


def download(table: str, folder: str, workers: int) -> Source:
    """Fetch the images of a table's URL column into ``folder``; the tars there as a source named after the table.

    Raises DataError when img2dataset is not installed or fails, or the table has no URL column.
    """
    program = shutil.which("img2dataset")
    if program is None:
        raise DataError(
            "--download needs the command img2dataset on the PATH, in an environment of its own: pipx install img2dataset"
        )
    command = [program, *arguments(table, folder, workers)]
    try:
        subprocess.run(command, check=True, stdout=2)  # stdout is for the report
    except subprocess.CalledProcessError as error:
        raise DataError(f"img2dataset ended with exit code {error.returncode}; what it fetched is kept: run again") from error
    stem = Path(table.partition("?")[0]).stem
    return replace(tar_source(stem, find_tars([folder])), root="")


def arguments(table: str, folder: str, workers: int) -> list[str]:
    """img2dataset's arguments for a table. Raises DataError when it has no column of URLs or of captions."""
    suffix = suffix_of(table)
    if suffix not in FORMATS:
        raise DataError(f"--download needs a table of URLs ({', '.join(FORMATS)}), got {table}")
    names = column_names(table) or ["url", "caption"]
    url = next((name for name in ("url", *IMAGE_FIELDS) if name in names), "url")
    caption = next(name for name in CAPTION_FIELDS if name in names)
    others = [name for name in names if name not in (url, caption)]
    options = {
        "url_list": table,
        "input_format": FORMATS[suffix],
        "url_col": url,
        "caption_col": caption,
        "output_folder": folder,
        "output_format": "webdataset",
        "resize_mode": "no",
        "disable_all_reencoding": "True",
        "processes_count": str(workers),
        "thread_count": str(THREADS_PER_PROCESS * workers),
        "incremental_mode": "incremental",
        "number_sample_per_shard": "10000",
    }
    if others:
        options["save_additional_columns"] = json.dumps(others)
    os.makedirs(folder, exist_ok=True)
    return [f"--{name}={value}" for name, value in options.items()]
