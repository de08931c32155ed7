"""Parts share nothing: against brute force over all pairs, whatever the order of samples and shards."""

from __future__ import annotations

import json
import random
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from data_prep.__main__ import main
from data_prep.reader import Reader, Stored
from data_prep.split import component_labels, near_pairs, part_of, split
from data_prep.verify import verify
from pipeline.errors import DataError
from tests.data_prep.tars import sample, tar_of, write_set

HALVES = {"train": 0.5, "test": 0.5}


def stored(key: str, captions: tuple[str, ...] = (), image: bytes = b"", group: str | None = None) -> Stored:
    fields: dict[str, object] = {"captions": list(captions)} | ({"group": group} if group else {})
    return Stored("a.tar", key, {"png": image, "json": json.dumps(fields).encode()})


def random_samples(seed: int, count: int = 60) -> list[Stored]:
    """Samples whose captions, images and groups are drawn from few, so that many are connected."""
    draw = random.Random(seed)
    samples = []
    for number in range(count):
        captions = tuple(f"caption {draw.randrange(80)}" for _ in range(draw.randrange(3)))
        group = f"group {draw.randrange(40)}" if draw.random() < 0.3 else None
        samples.append(stored(f"{number:03d}", captions, b"image %d" % draw.randrange(70), group))
    return samples


def brute_components(samples: list[Stored]) -> list[frozenset[str]]:
    """Connected components by repeated merging of sets of things."""
    parts = [
        ({one.key}, {*one.captions, one.image, ("group", one.meta["group"]) if "group" in one.meta else one.image})
        for one in samples
    ]
    merged = True
    while merged:
        merged = False
        for first, second in combinations(parts, 2):
            if first[1] & second[1]:
                parts.remove(second)
                first[0].update(second[0])
                first[1].update(second[1])
                merged = True
                break
    return sorted((frozenset(keys) for keys, _ in parts), key=min)


@pytest.mark.parametrize("seed", range(5))
def test_components_are_those_of_brute_force(seed: int) -> None:
    samples = random_samples(seed)
    labels = component_labels(samples)
    found: dict[int, set[str]] = {}
    for one, label in zip(samples, labels, strict=True):
        found.setdefault(int(label), set()).add(one.key)
    assert sorted(map(frozenset, found.values()), key=min) == brute_components(samples)


def test_labels_do_not_depend_on_the_order() -> None:
    samples = random_samples(7)
    labels = dict(zip((one.key for one in samples), component_labels(samples), strict=True))
    random.Random(1).shuffle(samples)
    assert dict(zip((one.key for one in samples), component_labels(samples), strict=True)) == labels


def test_captions_are_compared_without_case_and_spacing() -> None:
    first, second = component_labels([stored("1", ("A  Cat ",), b"x"), stored("2", ("a cat",), b"y")])
    assert first == second


def test_the_group_way_looks_at_the_group_else_at_the_first_caption() -> None:
    samples = [
        stored("1", ("a", "shared"), b"1"),
        stored("2", ("b", "shared"), b"2"),
        stored("3", ("a", "else"), b"3"),
        stored("4", ("a",), b"4", "g"),
        stored("5", ("b",), b"5", "g"),
    ]
    one, two, three, four, five = component_labels(samples, all_captions=False)
    assert one == three
    assert four == five
    assert len({one, two, four}) == 3
    assert len(set(component_labels(samples))) == 1


def test_a_sample_with_nothing_to_compare_stays_alone() -> None:
    labels = component_labels([Stored("a.tar", str(number), {}) for number in range(3)])
    assert len(set(labels)) == 3


@pytest.mark.parametrize("distance", [1, 2, 3, 7])
def test_near_pairs_are_those_of_brute_force(distance: int) -> None:
    generator = np.random.Generator(np.random.Philox(distance))
    base = generator.integers(0, 2**64, 40, np.uint64, endpoint=False)
    flips = np.zeros(160, np.uint64)
    for place in range(160):
        for bit in generator.integers(0, 64, place % 10):
            flips[place] |= np.uint64(1) << np.uint64(bit)
    hashes = np.unique(np.concatenate([base, np.repeat(base, 4) ^ flips]))
    expected = {(int(a), int(b)) for a, b in combinations(hashes, 2) if int(a ^ b).bit_count() <= distance}
    assert {(int(a), int(b)) for a, b in near_pairs(hashes, distance)} == expected
    assert len(expected) > 10


def test_no_hashes_and_no_distance_have_no_pairs() -> None:
    assert len(near_pairs(np.empty(0, np.uint64), 3)) == 0
    assert len(near_pairs(np.arange(9, dtype=np.uint64), 0)) == 0


def test_near_images_stay_together(tmp_path: Path) -> None:
    from io import BytesIO

    from PIL import Image

    generator = np.random.Generator(np.random.Philox(5))
    samples = []
    for number in range(12):
        image = Image.fromarray(generator.integers(0, 256, (8, 8, 3), np.uint8)).resize((64, 64), Image.Resampling.BICUBIC)
        for kind, size in (("PNG", 64), ("JPEG", 48)):
            raw = BytesIO()
            image.resize((size, size)).save(raw, kind)
            name = f"{number:02d}{kind[0]}"
            samples.append({f"{name}.{kind.lower()}": raw.getvalue(), f"{name}.txt": f"text {name}".encode()})
    (tmp_path / "a.tar").write_bytes(tar_of(*samples))
    apart = split([str(tmp_path / "a.tar")], str(tmp_path / "apart"), HALVES)
    together = split([str(tmp_path / "a.tar")], str(tmp_path / "together"), HALVES, near=6)
    assert apart.num_components == 24
    assert together.num_components == 12
    for number in range(12):
        parts = [name for name in HALVES if any(key.startswith(f"{number:02d}") for key in keys(tmp_path / "together" / name))]
        assert len(parts) == 1


def keys(folder: Path) -> set[str]:
    return {one.key for one in Reader([str(folder)])}


def test_parts_hold_every_sample_once_and_verify(tmp_path: Path) -> None:
    samples = [sample(number, caption=f"thing {number % 40}") for number in range(120)]
    (tmp_path / "a.tar").write_bytes(tar_of(*samples[:70]))
    (tmp_path / "b.tar").write_bytes(tar_of(*samples[70:]))
    sources = [str(tmp_path / "a.tar"), str(tmp_path / "b.tar")]
    report = split(sources, str(tmp_path / "out"), {"train": 0.6, "val": 0.2, "test": 0.2}, shard_size=20)
    assert report.num_components == 40
    assert sum(report.parts.values()) == report.num_samples == 120
    captions = {
        name: {one.captions[0] for one in Reader([str(tmp_path / "out" / name)])} for name in report.parts if report.parts[name]
    }
    assert all(not first & second for first, second in combinations(captions.values(), 2))
    assert verify([str(tmp_path / "out")]).counts == {}
    again = split(sources[::-1], str(tmp_path / "again"), {"train": 0.6, "val": 0.2, "test": 0.2}, shard_size=7)
    assert again.parts == report.parts
    assert all(keys(tmp_path / "again" / name) == keys(tmp_path / "out" / name) for name in captions)


def test_fractions_are_met_over_many_labels() -> None:
    fractions = {"train": 0.8, "val": 0.15, "test": 0.05}
    parts = [part_of(label, fractions) for label in range(20_000)]
    for name, fraction in fractions.items():
        assert abs(parts.count(name) / 20_000 - fraction) < 0.01
    assert part_of(1, {"only": 1.0}) == "only"


def test_by_key_looks_at_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(*(sample(number, caption="same") for number in range(30))))
    assert main(["split", str(tmp_path / "a.tar"), str(tmp_path / "out"), "--by", "key", "--parts", "a=0.5,b=0.5"]) == 0
    assert 5 < len(keys(tmp_path / "out" / "a")) < 25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fractions": {"a": 0.5}}, "fractions must sum to 1"),
        ({"fractions": {"a": 1.5, "b": -0.5}}, "fractions must sum to 1"),
        ({"fractions": HALVES, "by": "luck"}, "by is one of content, group, key"),
        ({"fractions": HALVES, "near": 8}, "near 8 must lie in 0 to 7 bits"),
    ],
)
def test_impossible_splits_are_refused(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        split([str(write_set(tmp_path / "set"))], str(tmp_path / "out"), **options)  # type: ignore[arg-type]
