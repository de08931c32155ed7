"""Handing URL lists to img2dataset: its arguments, what happens without it, and the real one on a local web server."""

from __future__ import annotations

import http.server
import json
import os
import stat
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from data_prep.__main__ import main
from data_prep.download import arguments, download
from pipeline.errors import DataError
from tests.data_prep.conftest import encode
from tests.peers import peer_command


def url_table(folder: Path, base: str = "https://host") -> Path:
    (folder / "urls.csv").write_text(
        f"url,caption,licence\n{base}/0.png,nought,CC0\n{base}/gone.png,gone,MIT\n{base}/2.png,two,CC0\n"
    )
    return folder / "urls.csv"


def test_columns_are_named_and_nothing_is_reencoded(tmp_path: Path) -> None:
    options = dict(argument.removeprefix("--").split("=", 1) for argument in arguments(str(url_table(tmp_path)), "out", 3))
    assert options["url_list"] == str(tmp_path / "urls.csv")
    assert (options["url_col"], options["caption_col"], options["input_format"]) == ("url", "caption", "csv")
    assert json.loads(options["save_additional_columns"]) == ["licence"]
    assert (options["resize_mode"], options["disable_all_reencoding"], options["processes_count"]) == ("no", "True", "3")


def test_without_img2dataset_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="needs the command img2dataset on the PATH.*: pipx install img2dataset"):
        download(str(url_table(tmp_path)), str(tmp_path / "out"), 1)


def test_a_source_that_is_no_table_of_urls_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--download needs a table of URLs"):
        arguments(str(tmp_path), "out", 1)


def test_a_download_that_fails_is_explained_and_sees_no_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in on the path writes down its arguments, one per line, and fails."""
    program = tmp_path / "bin" / "img2dataset"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > "{tmp_path}/seen"\nexit 7\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    evil = tmp_path / "$(touch pwned).csv"
    url_table(tmp_path).rename(evil)
    with pytest.raises(DataError, match="img2dataset ended with exit code 7; what it fetched is kept: run again"):
        download(str(evil), str(tmp_path / "out"), 1)
    assert f"--url_list={evil}" in (tmp_path / "seen").read_text().splitlines()
    assert not (tmp_path / "pwned").exists()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """Two pictures on a web server on a free port."""
    (tmp_path / "web").mkdir()
    for number in (0, 2):
        (tmp_path / "web" / f"{number}.png").write_bytes(encode(number))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "web")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_the_real_img2dataset(
    tmp_path: Path, web: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", f"{Path(peer_command('img2dataset')).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    command = ["build", str(url_table(tmp_path, web)), str(tmp_path / "out"), "--download", str(tmp_path / "fetched"), "--json"]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["num_rows"], report["accepted"], report["rejected"]) == (3, 2, {"download-failed": 1})
    assert (tmp_path / "out" / "urls-000000.tar").exists()
    assert (tmp_path / "out" / "source" / "00000.parquet").exists()
