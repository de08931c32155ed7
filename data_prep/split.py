"""Training, validation and test parts that share no caption, no group and no image, not even a similar one.

    split(["shards/all"], "shards/parts", {"train": 0.9, "val": 0.05, "test": 0.05})
    # shards/parts/train/all-000000.tar ...  shards/parts/val/...  shards/parts/test/...

A sample stands for several things: each of its captions (but for case and spacing), the ``group`` of its json member, its
image's bytes, and with ``near`` every image that looks like it (64-bit perceptual hashes that differ in at most ``near``
bits). Samples that share one of them belong together, and so do those that are connected through others. Each such
component goes to one part, by a hash of the smallest hash in it: a pure function of what is in it, whatever the order,
number and names of the shards. Where samples share captions that only name a category ("a drawing of an animal"), components
grow large: ``by="group"`` looks at the group, else the first caption, as training does, and at the image. ``by="key"`` leaves
all that aside and hashes the key alone.

Shards are read twice. Memory: 16 bytes per caption and image.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from data_prep.lint import key_number
from data_prep.output import ShardWriter, new_folder
from data_prep.reader import Reader, Stored
from pipeline.data.samples import group_number
from pipeline.errors import DataError

Hashes = npt.NDArray[np.uint64]
WAYS = ("content", "group", "key")
MAX_NEAR = 7  # bits
BLOCK = 2048  # hashes compared with each other at a time


@dataclass
class Parts:
    """What a split did."""

    num_samples: int = 0
    num_components: int = 0
    largest_component: int = 0  # samples
    parts: dict[str, int] = field(default_factory=dict)  # name -> samples
    num_renamed: int = 0
    left_out: dict[str, int] = field(default_factory=dict)


def split(
    specs: Sequence[str],
    out: str,
    fractions: Mapping[str, float],
    *,
    by: str = "content",
    near: int | None = None,
    seed: int = 0,
    shard_size: int = 1000,
    force: bool = False,
) -> Parts:
    """Copy every sample into one of the parts, in the order of the shards.

    Raises DataError when the fractions do not sum to 1, there are no shards, or one is damaged.
    """
    if by not in WAYS or abs(sum(fractions.values()) - 1) > 1e-6 or min(fractions.values()) < 0:
        raise DataError(f"split by {by!r} into {dict(fractions)}: fractions must sum to 1, and by is one of {', '.join(WAYS)}")
    if near is not None and not 0 <= near <= MAX_NEAR:
        raise DataError(f"near {near} must lie in 0 to {MAX_NEAR} bits")
    reader = Reader(specs, "compare")
    labels = _key_labels(reader) if by == "key" else component_labels(reader, near, all_captions=by == "content")
    _, sizes = np.unique(labels, return_counts=True)
    report = Parts(len(labels), len(sizes), int(sizes.max(initial=0)), dict.fromkeys(fractions, 0))
    with new_folder(out, force=force) as folder:
        writers = {name: ShardWriter(folder / name, name, shard_size=shard_size) for name in fractions}
        for sample, label in zip(Reader(specs, "write"), labels, strict=True):
            writers[part_of(int(label), fractions, seed)].add(sample.key, sample.members)
        for name, writer in writers.items():
            writer.close()
            report.parts[name] = writer.num_samples
            report.num_renamed += writer.num_renamed
    report.left_out = dict(reader.left_out.counts)
    return report


def part_of(label: int, fractions: Mapping[str, float], seed: int = 0) -> str:
    """The part that a component's label belongs to: a pure function.

    >>> part_of(2, {"train": 0.5, "test": 0.5}), part_of(3, {"train": 0.5, "test": 0.5})
    ('test', 'train')
    """
    digest = hashlib.blake2b(f"{seed}:{label}".encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64
    for name, fraction in fractions.items():
        if place < fraction:
            return name
        place -= fraction
    return list(fractions)[-1]


def _key_labels(reader: Reader) -> Hashes:
    return np.array(array("Q", (key_number(sample.key) for sample in reader)), np.uint64)


def component_labels(samples: Iterable[Stored], near: int | None = None, *, all_captions: bool = True) -> Hashes:
    """One number per sample, equal exactly for samples that are connected."""
    rows, hashes, looks = array("q"), array("Q"), array("Q")
    num_samples = 0
    for sample in samples:
        group = sample.meta.get("group")
        captions = sample.captions if all_captions else sample.captions[:1] if group is None else ()
        found = {group_number("caption", text) for text in captions}
        if sample.image:
            found.add(_number("image", sample.image))
        if group is not None:
            found.add(group_number("group", str(group)))
        if near is not None and (look := _look(sample.image)):
            looks.append(look)
            found.add(_number("look", look.to_bytes(8, "big")))
        if not found:  # like no other
            found.add(key_number(sample.key) >> 1)
        rows.extend([num_samples] * len(found))
        hashes.extend(sorted(found))
        num_samples += 1
    all_rows, all_hashes = np.array(rows, np.int64), np.array(hashes, np.uint64)
    if looks:
        pairs = near_pairs(np.unique(np.array(looks, np.uint64)), near or 0)
        links = np.array([[_number("look", int(h).to_bytes(8, "big")) for h in pair] for pair in pairs], np.uint64)
        extra_rows = num_samples + np.repeat(np.arange(len(pairs)), 2)  # a link is a sample that nobody asks about
        all_rows, all_hashes = np.concatenate([all_rows, extra_rows]), np.concatenate([all_hashes, links.ravel()])
    return _connected(all_rows, all_hashes)[:num_samples]


def _number(kind: str, data: bytes) -> int:
    """63 bits of a hash."""
    return int.from_bytes(hashlib.blake2b(kind.encode() + b":" + data, digest_size=8).digest(), "big") >> 1


def _look(image: bytes) -> int:
    """The perceptual hash; 0 for an image that has no structure or cannot be decoded."""
    from data_prep.hashes import perceptual
    from data_prep.pictures import examine
    from data_prep.rows import BadRow

    try:
        grey_HW = examine(image, want_grey=True).grey_HW
    except BadRow:
        return 0
    return perceptual(grey_HW) if grey_HW is not None else 0


def near_pairs(hashes: Hashes, distance: int) -> npt.NDArray[np.uint64]:
    """All pairs ``[n, 2]`` of these distinct 64-bit hashes that differ in at most ``distance`` bits.

    Two such hashes agree wholly in one of ``distance + 1`` bands of bits, so only hashes with an equal band are compared.
    """
    found: list[npt.NDArray[np.uint64]] = [np.empty((0, 2), np.uint64)]
    edges = np.linspace(0, 64, distance + 2).astype(int)
    for low, high in zip(edges[:-1], edges[1:], strict=True) if distance else ():
        band = (hashes >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(band, kind="stable")
        starts = np.flatnonzero(np.diff(band[order], prepend=band[order][:1] + np.uint64(1)))
        for run in np.split(hashes[order], starts[1:]) if len(hashes) else ():
            found += [part for part in _pairs_in_run(run, distance) if len(part)]
    return np.unique(np.concatenate(found), axis=0)


def _pairs_in_run(run: Hashes, distance: int) -> Iterator[npt.NDArray[np.uint64]]:
    """Compare hashes of equal band with each other, some thousand at a time."""
    for low in range(0, len(run) if len(run) > 1 else 0, BLOCK):
        first = run[low : low + BLOCK]
        for other in range(low, len(run), BLOCK):
            second = run[other : other + BLOCK]
            near = np.bitwise_count(first[:, None] ^ second[None, :]) <= distance
            i, j = np.nonzero(near)
            pairs = np.stack([first[i], second[j]], axis=1)
            yield pairs[pairs[:, 0] < pairs[:, 1]] if other == low else np.sort(pairs, axis=1)


def _connected(rows: npt.NDArray[np.int64], hashes: Hashes) -> Hashes:
    """Per row, the smallest hash of its component: each round hands the smallest one on, until nothing changes."""
    distinct, place = np.unique(hashes, return_inverse=True)
    by_hash = distinct.copy()
    by_row = np.full(int(rows.max(initial=-1)) + 1, np.iinfo(np.uint64).max, np.uint64)
    while True:
        np.minimum.at(by_row, rows, by_hash[place])
        before = by_hash.copy()
        np.minimum.at(by_hash, place, by_row[rows])
        if np.array_equal(before, by_hash):
            return by_row
