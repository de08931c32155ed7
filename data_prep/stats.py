"""What shards hold: image sizes, aspect, bytes, caption lengths in tokens, duplicates, frequent words.

    report = stats(["shards/cc3m"], workers=4).as_dict()
    report["tokens"]["p95"], report["duplicates"]["images"]
    draw(report, Path("cc3m.png"))

Images are not decoded: their sizes stand in their first bytes. Two images are duplicates when their bytes are equal, two
captions when they are but for case and spacing, as training groups them. Distributions are exact; the lists of frequent
words and captions are exact up to ``MAX_TERMS`` distinct ones, beyond which rare ones are forgotten from time to time.
Memory: 16 bytes per sample, and those lists.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.dimensions import HEAD_BYTES, dimensions
from data_prep.findings import Findings
from data_prep.inputs import find_tars, size_of
from data_prep.pool import over_shards
from data_prep.reader import Stored, read_shard
from data_prep.tokens import CONTEXT_LENGTH, count_tokens
from pipeline.data.samples import IMAGE_EXTENSIONS, group_number

MAX_TERMS = 100_000
NUM_SHOWN = 30
QUANTILES = (("min", 0.0), ("p05", 0.05), ("p25", 0.25), ("median", 0.5), ("p75", 0.75), ("p95", 0.95), ("max", 1.0))
WORD = re.compile(r"[^\W\d_]{2,}")
FUNCTION_WORDS = frozenset(
    ("an", "and", "as", "at", "by", "for", "from", "in", "is", "it", "its", "of", "on", "or", "the", "to", "with")
)
DISTRIBUTIONS = ("width", "height", "aspect", "image_bytes", "tokens", "captions_per_sample")


@dataclass
class Stats:
    """Counts that can be added up over shards."""

    num_shards: int = 0
    num_samples: int = 0
    num_bytes: int = 0  # of the members
    num_without_image: int = 0
    num_without_caption: int = 0
    num_too_long: int = 0  # captions of more than ``CONTEXT_LENGTH`` tokens, which a text tower cuts
    members: Counter[str] = field(default_factory=Counter)
    values: dict[str, Counter[float]] = field(default_factory=lambda: {name: Counter() for name in DISTRIBUTIONS})
    words: Counter[str] = field(default_factory=Counter)
    captions: Counter[str] = field(default_factory=Counter)
    image_hashes: array[int] = field(default_factory=lambda: array("Q"))
    caption_hashes: array[int] = field(default_factory=lambda: array("Q"))
    left_out: Findings = field(default_factory=Findings)

    def add(self, sample: Stored) -> None:
        """Count one sample."""
        self.num_samples += 1
        self.members.update(sample.members.keys())
        self.num_bytes += sum(map(len, sample.members.values()))
        image = sample.image
        if image:
            self.values["image_bytes"][_rounded(len(image))] += 1
            self.image_hashes.append(int.from_bytes(hashlib.blake2b(image, digest_size=8).digest(), "big"))
        else:
            self.num_without_image += 1
        sides = dimensions(image[:HEAD_BYTES])
        if sides is not None:
            width, height = sides
            self.values["width"][width] += 1
            self.values["height"][height] += 1
            self.values["aspect"][round(width / height, 2)] += 1
        self._add_captions(sample.captions)

    def _add_captions(self, captions: Sequence[str]) -> None:
        self.values["captions_per_sample"][len(captions)] += 1
        if not captions:
            self.num_without_caption += 1
            return
        self.caption_hashes.append(group_number("caption", captions[0]))
        self.captions[" ".join(captions[0].lower().split())[:200]] += 1
        for caption in captions:
            num_tokens = count_tokens(caption)
            self.values["tokens"][num_tokens] += 1
            self.num_too_long += num_tokens > CONTEXT_LENGTH
            self.words.update(set(WORD.findall(caption.lower())) - FUNCTION_WORDS)
        _forget_rare(self.captions)
        _forget_rare(self.words)

    def merge(self, other: Stats) -> None:
        """Add another part's counts."""
        for name in ("num_shards", "num_samples", "num_bytes", "num_without_image", "num_without_caption", "num_too_long"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.members.update(other.members)
        for name, counts in other.values.items():
            self.values[name].update(counts)
        self.words.update(other.words)
        self.captions.update(other.captions)
        _forget_rare(self.captions)
        _forget_rare(self.words)
        self.image_hashes.extend(other.image_hashes)
        self.caption_hashes.extend(other.caption_hashes)
        self.left_out.merge(other.left_out)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: counts, seven quantiles of each distribution and its histogram, duplicates, frequent words."""
        images, captions = _repeats(self.image_hashes), _repeats(self.caption_hashes)
        counts = ("num_shards", "num_samples", "num_bytes", "num_without_image", "num_without_caption")
        return {
            **{name: getattr(self, name) for name in counts},
            "members": dict(sorted(self.members.items())),
            **{name: _summary(self.values[name]) for name in DISTRIBUTIONS},
            "num_captions_over_77_tokens": self.num_too_long,
            "duplicates": {"images": images, "first_captions": captions},
            "top_captions": [[text, count] for text, count in _top(self.captions) if count > 1],
            "top_words": [[text, count] for text, count in _top(self.words)],
            "left_out": dict(self.left_out.counts),
        }


def stats(specs: Sequence[str], *, workers: int = 1) -> Stats:
    """Count everything in the shards that ``specs`` mean. Raises DataError when there are none, or one is damaged."""
    paths = find_tars(specs)
    total = Stats()
    for part in over_shards(_of_shard, paths, workers=workers, weights=list(map(size_of, paths)), desc="stats"):
        total.merge(part)
    return total


def _of_shard(path: str) -> Stats:
    one = Stats(num_shards=1)
    for sample in read_shard(path, one.left_out):
        one.add(sample)
    return one


def _rounded(number: int) -> int:
    """Two leading digits, so that a distribution of sizes has some hundred values and not a million."""
    unit: int = 10 ** max(0, len(str(number)) - 2)
    return number // unit * unit


def _forget_rare(counts: Counter[str]) -> None:
    """Keep the ``MAX_TERMS`` most frequent once there are twice as many."""
    if len(counts) > 2 * MAX_TERMS:
        kept = counts.most_common(MAX_TERMS)
        counts.clear()
        counts.update(dict(kept))


def _top(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:NUM_SHOWN]


def _repeats(hashes: Iterable[int]) -> dict[str, int]:
    """How many distinct values there are, how many come more than once, and how often the most frequent one comes."""
    _, times = np.unique(np.array(hashes, np.uint64), return_counts=True)
    repeated = times[times > 1]
    most = int(times.max()) if len(times) else 0
    return {"distinct": len(times), "repeated": len(repeated), "surplus": int((repeated - 1).sum()), "most": most}


def _summary(counts: Counter[float]) -> dict[str, Any]:
    """Quantiles, mean and the histogram itself as [value, count] pairs."""
    if not counts:
        return {"count": 0}
    values = np.array(sorted(counts), np.float64)
    times = np.array([counts[value] for value in sorted(counts)], np.int64)
    up_to = np.cumsum(times)
    total = int(up_to[-1])
    places = {name: np.searchsorted(up_to, max(1, np.ceil(q * total))) for name, q in QUANTILES}
    quantiles = {name: _plain(float(values[place])) for name, place in places.items()}
    mean = round(float((values * times).sum() / total), 3)
    histogram = [[_plain(value), counts[value]] for value in sorted(counts)]
    return {"count": total, **quantiles, "mean": mean, "histogram": histogram}


def _plain(value: float) -> float:
    return int(value) if float(value).is_integer() else value


def formats(report: dict[str, Any]) -> str:
    """The image formats of a report as words: ``jpg 990, png 10``."""
    return ", ".join(f"{name} {count:,}" for name, count in report["members"].items() if name in IMAGE_EXTENSIONS)


def draw(report: dict[str, Any], path: Path) -> None:
    """A picture of six panels of a report's distributions. Raises DataError when it cannot be written."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from data_prep.files import atomic

    figure, axes = pyplot.subplots(2, 3, figsize=(13, 7.5), layout="constrained")
    titles = {"width": "width, px", "height": "height, px", "aspect": "width / height", "image_bytes": "image bytes"}
    titles |= {"tokens": "tokens per caption"}
    for axis, (name, title) in zip(axes.flat, titles.items(), strict=False):
        histogram = report[name].get("histogram", [])
        axis.set_title(f"{title}   (median {report[name].get('median', '-')})", loc="left", fontsize=10)
        if histogram:
            values, counts = zip(*histogram, strict=True)
            axis.hist(values, bins=min(60, max(1, len(values))), weights=counts, color="#3b6ea5")
            axis.set_yscale("log")
    words = report["top_words"][:18][::-1]
    axes.flat[5].barh([word.replace("$", r"\$") for word, _ in words], [count for _, count in words], color="#3b6ea5")
    axes.flat[5].set_title("captions that hold the word", loc="left", fontsize=10)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    repeats = report["duplicates"]["images"]["surplus"]
    figure.suptitle(f"{report['num_samples']:,} samples in {report['num_shards']:,} shards; {repeats:,} repeated images")
    with atomic(path) as handle:
        figure.savefig(handle, format=path.suffix.lstrip(".") or "png", dpi=110, metadata={"Software": None})
    pyplot.close(figure)
