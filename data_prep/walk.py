"""Every member of a tar of unknown origin, forwards, in bounded memory. Nothing is ever extracted.

Training reads through ``pipeline.data.tar.scan``, which stops at the first fault. The shard tools have to go on and tell
everything, so this walk reports what is wrong and looks for the next header behind it:

    for item in walk(stream, keep=lambda name, size: 64):
        match item:
            case Entry():  item.name, item.kind, item.offset, item.size, item.data     # data: its first 64 bytes
            case Fault():  item.kind, item.offset, item.detail                         # "tar-truncated-in-member", ...

What a hostile tar can ask for is bounded here: a size field is never an allocation (``keep`` decides, and reading ends
with the file), name headers together hold at most ``MAX_NAME_HEADER_BYTES``, and links, devices and names that climb
out of their folder are entries to be judged, never paths to be opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pipeline.data.tar import BLOCK, CHUNK_BYTES, MAX_NAME_HEADER_BYTES, ZERO_BLOCK, ByteStream, padded, parse_header
from pipeline.errors import DataError

KINDS = {b"1": "link", b"2": "link", b"3": "device", b"4": "device", b"6": "device", b"5": "folder"}
NAME_HEADERS = b"LKxg"
MAGIC = slice(257, 262)


@dataclass(frozen=True)
class Entry:
    """One member. ``kind``: file, link, device, folder or other. Numbers are bytes from the start of the tar."""

    name: str
    kind: str
    offset: int  # of its first header block, name headers included
    data_offset: int
    size: int
    data: bytes  # the first bytes, as many as ``keep`` asked for

    @property
    def end(self) -> int:
        """Where the next member begins."""
        return self.data_offset + padded(self.size)

    @property
    def escapes(self) -> bool:
        """Whether the name would lead out of the folder that the tar were unpacked in."""
        name = self.name.replace("\\", "/")
        return name.startswith("/") or name[1:3] == ":/" or "\0" in name or ".." in name.split("/")


@dataclass(frozen=True)
class Fault:
    """Where the tar itself is wrong; the kinds are those of ``data_prep.findings``."""

    kind: str
    offset: int
    detail: str


@dataclass
class _Names:
    """What the name headers before a member said."""

    offset: int | None = None
    path: str | None = None
    size: int | None = None
    num_bytes: int = 0
    faults: list[str] = field(default_factory=list)


def walk(stream: ByteStream, keep: Callable[[str, int], int] = lambda name, size: 0) -> Iterator[Entry | Fault]:
    """Yield every member and every fault of a tar in file order, and read ``stream`` to its end.

    ``keep(name, size)`` says how many of a file's bytes to hold in ``Entry.data``. After a fault the walk goes on at the
    next block that is a valid ustar header, also behind an end mark (tars joined with ``cat``).
    """
    offset, names, num_entries = 0, _Names(), 0
    while block := _exactly(stream, BLOCK):
        if len(block) < BLOCK:
            yield Fault("tar-truncated-in-member", offset, f"cut inside the header at byte {offset:,}")
            return
        if block == ZERO_BLOCK:
            skipped, block = _next_header(stream, zeros_only=True)
            if not block:
                return
            yield Fault("tar-data-after-end", offset, f"data at byte {offset + skipped:,} follows the end mark at {offset:,}")
            offset, names = offset + skipped, _Names()
        try:
            name, size, type_flag = parse_header(block, "", offset)
        except DataError as error:
            yield Fault("tar-damaged", offset, str(error).removeprefix(": "))
            skipped, block = _next_header(stream)
            offset, names = offset + skipped, _Names()
            if not block:
                return
            name, size, type_flag = parse_header(block, "", offset)
        if type_flag in NAME_HEADERS:
            cut = _read_name_header(stream, names, type_flag, size, offset)
        else:
            entry = _entry(stream, names, offset, (name, size, type_flag), keep)
            cut = entry is None
            if entry is not None:
                num_entries += 1
                for fault in names.faults:
                    yield Fault("tar-damaged", entry.offset, fault)
                yield entry
                names = _Names()
        if cut:
            reach = offset + BLOCK + padded(size)
            yield Fault("tar-truncated-in-member", offset, f"member {(names.path or name)[:80]!r} should reach byte {reach:,}")
            return
        offset += BLOCK + padded(size)
    cause = "it is empty (0 bytes)" if not offset else f"it ends at byte {offset:,} without an end mark"
    yield Fault("tar-truncated-at-boundary", offset, f"{cause}, after {num_entries:,} members")


def _entry(
    stream: ByteStream, names: _Names, offset: int, header: tuple[str, int, bytes], keep: Callable[[str, int], int]
) -> Entry | None:
    """The member whose header was just read, with its data read or skipped; None when the stream ends before."""
    name, size, type_flag = header
    name = names.path or name
    kind = KINDS.get(type_flag, "file" if type_flag in b"07\0" else "other")
    if kind == "file" and name.endswith("/"):  # how archives older than ustar write a folder
        kind = "folder"
    if names.size is not None and names.size != size:
        names.faults.append(f"a pax header gives member {name[:80]!r} {names.size:,} bytes, its own header {size:,}")
    wanted = min(keep(name, size), size) if kind == "file" else 0
    data = _exactly(stream, padded(wanted))
    if len(data) < padded(wanted) or not _skip(stream, padded(size) - padded(wanted)):
        return None
    start = offset if names.offset is None else names.offset
    return Entry(name, kind, start, offset + BLOCK, size, data[:wanted])


def _read_name_header(stream: ByteStream, names: _Names, type_flag: bytes, size: int, offset: int) -> bool:
    """Take in a GNU or pax name header. Returns whether the stream ended inside it."""
    names.num_bytes += size
    if type_flag != b"g" and names.offset is None:
        names.offset = offset
    if names.num_bytes > MAX_NAME_HEADER_BYTES:
        names.faults = [f"name headers claim {names.num_bytes:,} bytes, more than {MAX_NAME_HEADER_BYTES:,}"]
        return not _skip(stream, padded(size))
    body = _exactly(stream, padded(size))
    if len(body) < padded(size):
        return True
    if type_flag == b"L":
        names.path = body[:size].split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
    elif type_flag in b"xg":
        records = pax_records(body[:size])
        if type_flag == b"g":
            if records.keys() & {b"path", b"size"}:
                names.faults.append("a global pax header names a path or a size for all members, which no shard needs")
        else:
            path, number = records.get(b"path"), records.get(b"size", b"")
            names.path = names.path if path is None else path.decode("utf-8", "surrogateescape")
            names.size = int(number) if number.isdigit() and len(number) < 20 else None
    return False


def pax_records(body: bytes) -> dict[bytes, bytes]:
    """The records of a pax header as far as they are well formed.

    >>> pax_records(b"14 path=a.jpg\\n8 junk")
    {b'path': b'a.jpg'}
    """
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(body):
        length = body[at : at + 20].partition(b" ")[0]
        if not length.isdigit() or not len(length) + 1 < int(length) <= len(body) - at:
            break
        name, equals, value = body[at + len(length) + 1 : at + int(length) - 1].partition(b"=")
        if equals:
            records[name] = value
        at += int(length)
    return records


def _next_header(stream: ByteStream, *, zeros_only: bool = False) -> tuple[int, bytes]:
    """Bytes from the block just read to the next one that can be parsed, and that block; empty at the end of the stream.

    ``zeros_only``: the next block that is not zero, whatever it holds.
    """
    skipped = BLOCK
    while block := _exactly(stream, BLOCK):
        if zeros_only and block.strip(b"\0"):
            return skipped, block.ljust(BLOCK, b"\0")
        if not zeros_only and block[MAGIC] == b"ustar" and _is_header(block):
            return skipped, block
        skipped += len(block)
    return skipped, b""


def _is_header(block: bytes) -> bool:
    try:
        parse_header(block)
    except DataError:
        return False
    return True


def _exactly(stream: ByteStream, size: int) -> bytes:
    """``size`` bytes, or fewer at the end of the stream; a network stream hands them out in pieces."""
    pieces, left = [], size
    while left and (piece := stream.read(left)):
        pieces.append(piece)
        left -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _skip(stream: ByteStream, size: int) -> bool:
    """Read past ``size`` bytes. Returns whether they were all there."""
    while size:
        chunk = stream.read(min(size, CHUNK_BYTES))
        if not chunk:
            return False
        size -= len(chunk)
    return True
