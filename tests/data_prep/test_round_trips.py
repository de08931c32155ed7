"""What was built reads back with the tools of others: GNU tar, Python's tarfile, webdataset, open_clip, energon."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import webdataset

from data_prep.__main__ import main
from data_prep.build import build
from data_prep.settings import Settings, Transform
from data_prep.sources import open_source
from data_prep.verify import verify
from tests.peers import peer_command, run_peer

Table = Callable[..., Path]


@pytest.fixture
def shards(tmp_path: Path, table: Table) -> Path:
    """Three shards of resized JPEGs, seven samples."""
    settings = Settings(3, Transform(resize=16, mode="shortest", format="jpeg"))
    build(open_source(str(table(7))), tmp_path / "shards", settings=settings)
    return tmp_path / "shards"


def test_gnu_tar_unpacks_what_went_in(shards: Path, tmp_path: Path) -> None:
    tar = shutil.which("tar")
    assert tar is not None, "GNU tar is part of every Linux this project runs on"
    (tmp_path / "unpacked").mkdir()
    for shard in sorted(shards.glob("*.tar")):
        listed = subprocess.run([tar, "--list", "--verbose", "--file", str(shard)], capture_output=True, text=True, check=True)
        assert not listed.stderr
        subprocess.run([tar, "--extract", "--file", str(shard), "--directory", str(tmp_path / "unpacked")], check=True)
    assert len(list((tmp_path / "unpacked").iterdir())) == 21
    assert [(tmp_path / "unpacked" / f"00000000{n}.txt").read_text() for n in range(7)] == [f"picture {n}" for n in range(7)]


def test_python_reads_them_as_plain_ustar(shards: Path) -> None:
    for shard in shards.glob("*.tar"):
        assert shard.read_bytes()[257:265] == b"ustar\x0000"
        with tarfile.open(shard, "r:") as archive:
            assert all(info.isreg() and not info.pax_headers for info in archive)


def test_webdataset_reads_them(shards: Path) -> None:
    urls = str(shards / "pairs-{000000..000002}.tar")
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil").to_tuple("jpg", "txt", "json"))
    assert [(image.size, text, meta["shade"]) for image, text, meta in samples] == [
        ((16, 16), f"picture {number}", number) for number in range(7)
    ]


OPEN_CLIP = """
import sys
from types import SimpleNamespace
from open_clip_train.data import get_dataset_size, get_wds_dataset
folder = sys.argv[1]
pattern = folder + "/pairs-{000000..000002}.tar"
size, num_shards = get_dataset_size(pattern)
args = SimpleNamespace(
    train_data=pattern, val_data=pattern, dataset_resampled=False, train_num_samples=None, val_num_samples=None, seed=0,
    batch_size=2, workers=0, world_size=1, train_data_upsampling_factors=None, use_naflex=False, naflex=False, distill=False)
info = get_wds_dataset(args, lambda image: image.size[0], is_train=False, tokenizer=lambda text: [text])
found = [text for _, texts in info.dataloader for text in texts]
print(size, num_shards, *sorted(found), sep="|")
"""


@pytest.mark.slow
def test_open_clip_counts_and_reads_them(shards: Path) -> None:
    """Its own ``get_wds_dataset`` and its own reading of sizes.json, in the peers' environment."""
    printed = run_peer(OPEN_CLIP, str(shards)).strip().splitlines()[-1]
    assert printed.split("|") == ["7", "3", *(f"picture {number}" for number in range(7))]


ENERGON = """
import sys
from megatron.energon import WorkerConfig, get_loader, get_train_dataset
alone = WorkerConfig(rank=0, world_size=1, num_workers=0)
dataset = get_train_dataset(
    sys.argv[1], worker_config=alone, batch_size=1, shuffle_buffer_size=None, max_samples_per_sequence=None, repeat=False)
print(*sorted(f"{batch.__key__[0]} {tuple(batch.image.shape)} {batch.caption[0]}" for batch in get_loader(dataset)), sep="|")
"""


@pytest.mark.slow
def test_energon_prepares_and_reads_them(shards: Path) -> None:
    """Its ``prepare`` indexes the tars and its loader finds every sample; ours still finds nothing wrong with them."""
    command = [peer_command("energon"), "prepare", "--non-interactive", "--no-progress", "--num-workers", "1"]
    command += ["--split-parts", "train:pairs-{000000..000002}.tar", "--sample-type", "CaptioningSample"]
    subprocess.run(
        [*command, "--field-map", '{"image": "jpg", "caption": "txt"}', str(shards)], check=True, capture_output=True
    )
    found = run_peer(ENERGON, str(shards)).strip().splitlines()[-1].split("|")
    assert found == [f"00000000{number} (1, 3, 16, 16) picture {number}" for number in range(7)]
    assert verify([str(shards)]).counts == {}


def test_open_lm_finds_shards_and_counts(shards: Path) -> None:
    lines = [json.loads(line) for line in (shards / "open_lm.jsonl").read_text().splitlines()]
    assert lines == [{"shard": f"pairs-00000{n}", "num_sequences": count} for n, count in enumerate((3, 3, 1))]
    assert all((shards / f"{line['shard']}.tar").exists() for line in lines)


def test_the_options_reach_the_build(tmp_path: Path, table: Table, capsys: pytest.CaptureFixture[str]) -> None:
    path = table(6, [{"image": "0.png", "caption": "IMG_1234.jpg"}, {"image": "0.png", "captions": ["ok caption", "x"]}])
    command = [
        "build",
        str(path),
        str(tmp_path / "out"),
        "--name",
        "small",
        "--resize",
        "4",
        "--format",
        "webp",
        "--quality",
        "80",
    ]
    command += ["--drop-matching", "^IMG_", "--min-chars", "2", "--duplicates", "exact", "--min-side", "8", "--json"]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["rejected"] == {"caption-excluded": 1, "duplicate-exact": 1}
    with tarfile.open(tmp_path / "out" / "small-000000.tar") as archive:
        assert archive.getnames()[:3] == ["000000000.webp", "000000000.txt", "000000000.json"]


def test_what_was_left_out_of_rows_is_in_the_table(tmp_path: Path, table: Table, capsys: pytest.CaptureFixture[str]) -> None:
    path = table(1, [{"image": "0.png", "captions": ["ok caption", "x"]}])
    assert main(["build", str(path), str(tmp_path / "out"), "--min-chars", "2"]) == 0
    assert "caption-too-short                1  left out of accepted rows" in capsys.readouterr().out


def test_a_name_that_is_no_name_is_refused(tmp_path: Path, table: Table, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(table(1)), str(tmp_path / "out"), "--name", "../x"]) == 3
    assert "--name '../x' cannot begin the name of a shard" in capsys.readouterr().err
