"""Duplicates and images that must stay out: found, decided by input order alone, and the same whoever packed what."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.build import build
from data_prep.duplicates import find_drops
from data_prep.hashes import perceptual
from data_prep.pack import Kept, Packed
from data_prep.pictures import examine
from data_prep.settings import Settings
from data_prep.sources import open_source
from pipeline.data.samples import ShardSet
from pipeline.errors import DataError
from tests.data_prep.test_build import contents, rejects


def scene(seed: int, side: int = 192) -> Image.Image:
    """A random picture with structure at every scale, as photographs have; two seeds look nothing alike."""
    rng = np.random.default_rng(seed)
    sums = np.zeros((side, side, 3))
    for cells in (3, 6, 12, 24, 48):
        small = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8)).resize(
            (side, side), Image.Resampling.BICUBIC
        )
        sums += (np.asarray(small, float) - 128) * 2 / cells**0.7
    return Image.fromarray(np.clip(sums + 128, 0, 255).astype(np.uint8))


def saved(image: Image.Image, path: Path, **options: object) -> str:
    image.save(path, **options)
    return path.name


def table_of(folder: Path, names: list[str], splits: list[str] | None = None) -> str:
    lines = [{"image": name, "caption": f"row {row}", "split": splits[row] if splits else ""} for row, name in enumerate(names)]
    (folder / "set.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder / "set.jsonl")


def code_of(data: bytes) -> int:
    grey = examine(data, want_grey=True).grey_HW
    assert grey is not None
    return perceptual(grey)


def as_bytes(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_the_first_of_equal_images_stays_and_the_others_name_it(tmp_path: Path) -> None:
    names = [saved(scene(seed), tmp_path / f"{row}.png") for row, seed in enumerate([1, 2, 1, 3, 2, 1])]
    settings = Settings(shard_size=2, duplicates="exact")
    report = build(open_source(table_of(tmp_path, names)), tmp_path / "out", settings=settings)
    assert (report.accepted, report.rejected) == (3, {"duplicate-exact": 3})
    assert [(reject["row"], reject["detail"]) for reject in rejects(tmp_path / "out")] == [
        (2, "same bytes as row 0"),
        (4, "same bytes as row 1"),
        (5, "same bytes as row 0"),
    ]
    samples = ShardSet.open(str(tmp_path / "out"))
    assert [samples.read(number).captions for number in range(3)] == [("row 0",), ("row 1",), ("row 3",)]


def test_rows_are_compared_over_all_splits_in_input_order(tmp_path: Path) -> None:
    names = [saved(scene(seed), tmp_path / f"{row}.png") for row, seed in enumerate([1, 1, 2, 2])]
    source = open_source(table_of(tmp_path, names, ["val", "train", "train", "val"]))
    report = build(source, tmp_path / "out", settings=Settings(duplicates="exact"))
    assert [(reject["row"], reject["split"]) for reject in rejects(tmp_path / "out")] == [(1, "train"), (3, "val")]
    assert {split: sizes["samples"] for split, sizes in report.splits.items()} == {"train": 1, "val": 1}


def test_without_the_option_nothing_is_dropped(tmp_path: Path) -> None:
    names = [saved(scene(1), tmp_path / f"{row}.png") for row in range(3)]
    assert build(open_source(table_of(tmp_path, names)), tmp_path / "out").accepted == 3


def test_the_answer_does_not_depend_on_workers_or_shards(tmp_path: Path) -> None:
    rng = random.Random(3)
    names = [saved(scene(rng.randrange(12)), tmp_path / f"{row}.png") for row in range(30)]
    source, kept = open_source(table_of(tmp_path, names)), {}
    for shard_size, workers in ((4, 1), (4, 2), (30, 1)):
        out = tmp_path / f"out-{shard_size}-{workers}"
        build(source, out, settings=Settings(shard_size, duplicates="near"), workers=workers)
        samples = ShardSet.open(str(out))
        kept[out] = [samples.read(number).captions[0] for number in range(len(samples))]
    assert len(set(map(tuple, kept.values()))) == 1
    assert contents(tmp_path / "out-4-1") == contents(tmp_path / "out-4-2")


def near_copies(image: Image.Image) -> list[bytes]:
    """What people do to a picture: smaller, larger, saved badly, another format, brighter."""
    side = image.width
    return [
        as_bytes(image.resize((side * 2 // 3,) * 2, Image.Resampling.LANCZOS)),
        as_bytes(image.resize((side * 2,) * 2, Image.Resampling.BICUBIC), "JPEG", quality=80),
        as_bytes(image, "JPEG", quality=50),
        as_bytes(image, "WEBP", quality=60),
        as_bytes(image.point(lambda level: level * 0.9 + 10)),
    ]


def test_near_copies_are_found_and_others_are_not() -> None:
    """On 10 pictures: at least 95 % of 50 copies, and no pair of different pictures."""
    codes = {seed: code_of(as_bytes(scene(seed))) for seed in range(10)}
    found = total = 0
    for seed, code in codes.items():
        for copy in near_copies(scene(seed)):
            found += (code_of(copy) ^ code).bit_count() <= Settings.near_distance
            total += 1
    assert total == 50
    assert found >= 0.95 * total, f"{found} of {total}"
    pairs = [(a ^ b).bit_count() for x, a in codes.items() for y, b in codes.items() if x < y]
    assert min(pairs) > 7


def test_near_duplicates_go_and_flat_pictures_are_no_duplicates(tmp_path: Path) -> None:
    names = [saved(scene(1), tmp_path / "0.png"), saved(scene(1), tmp_path / "1.jpg", quality=70)]
    names += [saved(Image.new("RGB", (96, 96), (shade, 0, 0)), tmp_path / f"{shade}.png") for shade in (10, 200)]
    build(open_source(table_of(tmp_path, names)), tmp_path / "out", settings=Settings(duplicates="near"))
    (reject,) = rejects(tmp_path / "out")
    assert (reject["row"], reject["cause"]) == (1, "duplicate-near")
    assert reject["detail"].endswith("of 64 bits from row 0")


def planted(codes: list[int | None]) -> dict[str, list[Packed]]:
    kept = [Kept(row, str(row), "", 512, None, f"{row:064x}", code) for row, code in enumerate(codes)]
    return {"": [Packed("", 0, "", 0, "", tuple(kept), (), {})]}


@pytest.mark.parametrize("distance", range(8))
def test_near_search_equals_comparing_everything(distance: int) -> None:
    """Against the plain double loop, on codes around few centres, so that many pairs lie at every distance."""
    rng = random.Random(distance)
    centres = [rng.getrandbits(64) | 1 for _ in range(12)]
    codes = [rng.choice(centres) ^ sum(1 << bit for bit in rng.sample(range(64), rng.randrange(9))) for _ in range(300)]
    stay: list[int] = []
    gone = []
    for row, code in enumerate(codes):
        if any((code ^ codes[other]).bit_count() <= distance for other in stay):
            gone.append(row)
        else:
            stay.append(row)
    with find_drops(planted(list(codes)), Settings(duplicates="near", near_distance=distance)) as drops:
        assert sorted(drops.of("", 0)) == gone
    assert 20 < len(gone) < 280 or distance == 0


def test_excluded_images_never_appear(tmp_path: Path) -> None:
    (tmp_path / "eval").mkdir()
    (tmp_path / "train").mkdir()
    evaluation = [saved(scene(seed), tmp_path / "eval" / f"{seed}.png") for seed in (1, 2)]
    near = Settings(duplicates="near")
    build(open_source(table_of(tmp_path / "eval", evaluation)), tmp_path / "eval-out", settings=near)
    training = [saved(scene(seed), tmp_path / "train" / f"{seed}.png") for seed in (1, 3, 4)]
    training.append(saved(scene(2).resize((64, 64)), tmp_path / "train" / "small-2.jpg", quality=80))
    source, hashes = open_source(table_of(tmp_path / "train", training)), str(tmp_path / "eval-out" / "hashes.jsonl")
    exact = build(source, tmp_path / "exact", settings=Settings(), exclude=[hashes])
    assert (exact.accepted, exact.rejected) == (3, {"image-excluded": 1})
    both = build(source, tmp_path / "near", settings=near, exclude=[hashes])
    assert (both.accepted, both.rejected) == (2, {"image-excluded": 2})


def test_plain_sums_exclude_too_and_nonsense_is_named(tmp_path: Path) -> None:
    import hashlib

    names = [saved(scene(seed), tmp_path / f"{seed}.png") for seed in (1, 2)]
    digest = hashlib.sha256((tmp_path / "1.png").read_bytes()).hexdigest()
    (tmp_path / "sums.txt").write_text(f"{digest}  1.png\n")
    source = open_source(table_of(tmp_path, names))
    report = build(source, tmp_path / "out", exclude=[str(tmp_path / "sums.txt")])
    assert report.rejected == {"image-excluded": 1}
    (tmp_path / "sums.txt").write_text(f"{digest}\n")
    with pytest.raises(DataError, match="holds a dataset built from other rows or settings"):
        build(source, tmp_path / "out", exclude=[str(tmp_path / "sums.txt")])
    (tmp_path / "sums.txt").write_text(f"{digest}\nhello\n")
    with pytest.raises(DataError, match="sums.txt, line 2: 'hello' is no SHA-256; expected a line of hashes.jsonl, or 64 hex"):
        build(source, tmp_path / "other", exclude=[str(tmp_path / "sums.txt")])
