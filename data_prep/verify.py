"""Compare shards with their manifest, and read every sample as training will.

    findings = verify(["shards/cc3m"], workers=4)
    findings.counts                # Counter({"shard-sha256": 1, "image-undecodable": 1})
    findings.examples              # {"shard-sha256": ["cc3m-000007.tar: ..."], ...}
    findings.exit_code             # 15: that of the gravest kind, see ``data_prep.findings``

Where a folder has a manifest its shards are held against it: presence, size, SHA-256, count, index. Every tar is read
once, forwards, whatever it claims to be; a shard that fails one check still goes through the others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.dimensions import HEAD_BYTES, dimensions
from data_prep.files import HashingReader
from data_prep.findings import Findings
from data_prep.inputs import exists, find_tars, is_remote, join, open_stream, read_bytes, size_of, split_path
from data_prep.lint import Checked, Rules, checked
from data_prep.manifest import MANIFEST, SIZES, ShardLine, index_line, parse_manifest
from data_prep.pool import over_shards
from pipeline.errors import DataError

Lines = dict[str, ShardLine]


@dataclass(frozen=True)
class Job:
    """One shard to check. ``line``: what its manifest says, None for a tar that no manifest describes."""

    path: str
    num_bytes: int
    line: ShardLine | None
    rules: Rules


def verify(specs: Sequence[str], *, workers: int = 1, rules: Rules | None = None) -> Findings:
    """Check the shards of folders, tars and URLs. Raises DataError when there is nothing to check."""
    rules = rules or Rules()
    findings = Findings()
    manifests = {folder: _manifest(folder, findings) for folder in _folders(specs)}
    jobs: list[Job] = []
    for path in _tars(specs, manifests):
        folder = split_path(path)[0]
        if folder not in manifests:
            manifests[folder] = _manifest(folder, findings)
        line = next((lines[path] for lines in manifests.values() if lines and path in lines), None)
        if line is None and manifests[folder] is not None:
            findings.add("shard-unlisted", f"{path} is in no line of the manifest, so that training does not read it")
        jobs.append(Job(path, size_of(path), line, rules))
    for folder in _folders(specs):  # whole folders only: where single tars were named, the others are not asked for
        for path in manifests[folder] or ():
            if not exists(path):
                findings.add("shard-missing", f"{path} is in the manifest of {folder} but not there")
    for part in over_shards(check_shard, jobs, workers=workers, weights=[job.num_bytes for job in jobs], desc="verify"):
        findings.merge(part)
    return findings


def _folders(specs: Sequence[str]) -> list[str]:
    """Every folder with a manifest in or below the local folders among ``specs``, and remote ones given by name."""
    found: dict[str, None] = {}
    for spec in specs:
        if not is_remote(spec) and Path(spec).is_dir():
            found.update(dict.fromkeys(sorted(str(path.parent) for path in Path(spec).absolute().rglob(MANIFEST))))
        elif is_remote(spec) and not spec.endswith(".tar"):
            found[spec.rstrip("/")] = None
    return list(found)


def _manifest(folder: str, findings: Findings) -> Lines | None:
    """Path of a shard -> its line; None without a manifest or with a broken one. Checks ``sizes.json`` beside it."""
    path = join(folder, MANIFEST)
    if not exists(path):
        return None
    try:
        lines = {join(folder, line.shard): line for line in parse_manifest(read_bytes(path), path)}
    except DataError as error:
        findings.add("manifest-invalid", str(error))
        return None
    try:
        sizes = json.loads(read_bytes(join(folder, SIZES)))
    except (DataError, ValueError) as error:
        findings.add("sizes-wrong", f"{join(folder, SIZES)} cannot be read: {error}")
        return lines
    if sizes != {line.shard: line.count for line in lines.values()}:
        findings.add("sizes-wrong", f"{join(folder, SIZES)} names other shards or counts than the manifest")
    return lines


def _tars(specs: Sequence[str], manifests: Mapping[str, Lines | None]) -> list[str]:
    """The tars to check: those found, and those that a manifest describes elsewhere or on a server that lists nothing."""
    named = {path: None for folder, lines in manifests.items() for path in lines or () if _is_elsewhere(path, folder)}
    try:
        found = find_tars(specs)
    except DataError:
        if all(lines is None for lines in manifests.values()):
            raise
        found = []
    return list(dict.fromkeys((*found, *filter(exists, named))))


def _is_elsewhere(path: str, folder: str) -> bool:
    return is_remote(path) or split_path(path)[0] != folder


def check_shard(job: Job) -> Findings:
    """Everything about one shard. A shard that cannot be read is a finding too."""
    findings = Findings(num_shards=1)
    line = job.line
    if line is not None and job.num_bytes != line.bytes:
        findings.add("shard-size", f"{job.path} has {job.num_bytes:,} bytes, the manifest says {line.bytes:,}")
    try:
        index = _IndexLines(join(split_path(job.path)[0], line.index)) if line else None
        with open_stream(job.path) as raw:
            reader = HashingReader(raw)
            for item in checked(reader, job.rules):
                if isinstance(item, Checked):
                    findings.num_samples += 1
                    for finding in item.findings:
                        findings.add(finding.kind, f"{job.path}: {finding.detail}")
                    if index is not None:
                        index.compare(item)
                else:
                    findings.add(item.kind, f"{job.path}: {item.detail}")
            while reader.read(1 << 20):  # behind a fault that ended the walk, for the checksum
                pass
    except (DataError, OSError) as error:
        findings.add("shard-unreadable", f"{job.path}: {error}")
        return findings
    if line is None:
        return findings
    if reader.hexdigest() != line.sha256:
        digests = f"{reader.hexdigest()[:12]}..., the manifest says {line.sha256[:12]}..."
        findings.add("shard-sha256", f"{job.path} has SHA-256 {digests}")
    if findings.num_samples != line.count:
        findings.add("count-wrong", f"{job.path} holds {findings.num_samples:,} samples, the manifest says {line.count:,}")
    if index is not None and not index.is_right():
        findings.add("index-wrong", f"{index.path} does not describe {line.shard}{index.why}; run `unisphere shards index`")
    return findings


class _IndexLines:
    """The stored index beside the samples as they come, line by line: it may be as long as the shard is large."""

    def __init__(self, path: str) -> None:
        self.path, self.why = path, ""
        try:
            self._lines = open_stream(path)
        except DataError as error:
            self.why = f" ({error})"

    def compare(self, sample: Checked) -> None:
        """Hold the next line against this sample. An index without widths and heights is right too."""
        if self.why:
            return
        image = sample.group.image
        span = sample.group.span
        line = self._lines.readline(1 << 20)
        if image is not None and image.size and not image.data:  # too large to be held: its sides were not looked at
            line = re.sub(rb',"width":\d+,"height":\d+', b"", line)
        if line not in (index_line(span, dimensions(image.data[:HEAD_BYTES]) if image else None), index_line(span)):
            self.why = f" (sample {span.key[:80]!r} at byte {span.offset:,})"
            self._lines.close()

    def is_right(self) -> bool:
        """Whether every line fitted and none is left."""
        if not self.why:
            self.why = " (it has more lines)" if self._lines.readline(1) else ""
            self._lines.close()
        return not self.why
