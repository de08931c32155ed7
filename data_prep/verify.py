"""Compare a folder with its manifest, and read every sample as training will.

    findings = verify(Path("shards/cc3m"))
    findings.counts                # Counter({"shard-sha256": 1, "image-undecodable": 1})
    findings.examples              # {"shard-sha256": ["cc3m-000007.tar: ..."], ...}

Kinds about files: manifest-invalid, shard-missing, shard-size, shard-sha256, shard-damaged, shard-unlisted,
index-wrong, count-wrong, sizes-wrong. Kinds about samples: the causes of ``pipeline.data.drops``. A shard that fails
one check still goes through the others, as far as it can be read.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.files import HashingReader
from data_prep.manifest import SIZES, ShardLine, folders_below, index_line, read_manifest
from data_prep.pictures import extension
from data_prep.rows import BadRow
from pipeline.data.drops import BadSample
from pipeline.data.samples import ShardSet
from pipeline.data.shards import LocalFiles, Shard, ShardIndex
from pipeline.data.tar import SampleSpan, iter_samples, parse_sample
from pipeline.errors import DataError

EXAMPLES_PER_KIND = 3


@dataclass
class Findings:
    """What is wrong, counted by kind, with a few examples each; and how much was looked at."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    num_shards: int = 0
    num_samples: int = 0

    def add(self, kind: str, detail: str) -> None:
        """Count one finding."""
        self.counts[kind] += 1
        examples = self.examples.setdefault(kind, [])
        if len(examples) < EXAMPLES_PER_KIND:
            examples.append(detail)


def verify(root: Path) -> Findings:
    """Check every folder with a manifest at or below ``root``. Raises DataError when there is none."""
    from tqdm import tqdm

    findings = Findings()
    shards: list[tuple[Path, ShardLine]] = []
    for folder in folders_below(root):
        try:
            lines = read_manifest(folder)
        except DataError as error:
            findings.add("manifest-invalid", str(error))
            continue
        shards += [(folder, line) for line in lines]
        _check_folder(folder, lines, findings)
    with tqdm(total=sum(line.bytes for _, line in shards), unit="B", unit_scale=True, file=sys.stderr) as bar:
        for folder, line in shards:
            findings.num_shards += 1
            _check_shard(folder, line, findings)
            bar.update(line.bytes)
    return findings


def _check_folder(folder: Path, lines: list[ShardLine], findings: Findings) -> None:
    """What the folder holds beside its shards: tars that no line names, and open_clip's sizes."""
    for path in sorted(folder.glob("*.tar")):
        if path.name not in {line.shard for line in lines}:
            findings.add("shard-unlisted", f"{path} is in no line of the manifest, so that training does not read it")
    try:
        sizes = json.loads((folder / SIZES).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        findings.add("sizes-wrong", f"{folder / SIZES} cannot be read: {error}")
        return
    if sizes != {line.shard: line.count for line in lines}:
        findings.add("sizes-wrong", f"{folder / SIZES} names other shards or counts than the manifest")


def _check_shard(folder: Path, line: ShardLine, findings: Findings) -> None:
    path = folder / line.shard
    if not path.exists():
        findings.add("shard-missing", f"{path} is in the manifest but not in the folder")
        return
    if path.stat().st_size != line.bytes:
        findings.add("shard-size", f"{path} has {path.stat().st_size:,} bytes, the manifest says {line.bytes:,}")
    spans: list[SampleSpan] = []
    with open(path, "rb") as raw:
        reader = HashingReader(raw)
        try:
            spans.extend(iter_samples(reader, str(path)))
        except DataError as error:
            findings.add("shard-damaged", str(error))
        while reader.read(1 << 20):  # what follows the damage, for the checksum
            pass
    if reader.hexdigest() != line.sha256:
        findings.add(
            "shard-sha256", f"{path} has SHA-256 {reader.hexdigest()[:12]}..., the manifest says {line.sha256[:12]}..."
        )
    if len(spans) != line.count:
        findings.add("count-wrong", f"{path} holds {len(spans)} samples, the manifest says {line.count}")
    try:
        stored = (folder / line.index).read_bytes()
    except OSError as error:
        findings.add("index-wrong", f"{folder / line.index} cannot be read: {error.strerror}")
    else:
        if stored != b"".join(map(index_line, spans)):
            findings.add("index-wrong", f"{folder / line.index} does not describe {line.shard}; run `unisphere shards index`")
    findings.num_samples += len(spans)
    for kind, detail in _bad_samples(path, spans):
        findings.add(kind, f"{path}: {detail}")


def _check_text(path: Path, span: SampleSpan) -> None:
    """Raise BadRow when the text member is not UTF-8; training would not notice where the json member has captions."""
    with open(path, "rb") as raw:
        raw.seek(span.offset)
        text = parse_sample(raw.read(span.size)).get("txt", b"")
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRow("caption-not-utf8", f"text member: {error}") from error


def _bad_samples(path: Path, spans: list[SampleSpan]) -> Iterator[tuple[str, str]]:
    """(cause, detail) of every sample that the loader or the image decoder refuses."""
    import numpy as np

    offset = np.array([span.offset for span in spans], np.int64)
    size = np.array([span.size for span in spans], np.int64)
    index = ShardIndex(tuple(span.key for span in spans), offset, size)
    samples = ShardSet([Shard(str(path), len(spans), path.stat().st_size, index)], LocalFiles(), evaluation=True)
    for i, span in enumerate(spans):
        try:
            extension(samples.read(i).image)
            _check_text(path, span)
        except BadSample as bad:
            yield bad.drop.cause, f"sample {span.key!r}: {bad.drop.detail}"
        except BadRow as bad:
            yield bad.cause, f"sample {span.key!r}: {bad.detail}"
