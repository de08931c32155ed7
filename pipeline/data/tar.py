"""Tar bytes: the one reader and the one writer of tar headers in the project.

A shard is a plain tar file. Three jobs need to know where its samples lie, so they share this module: the shard tools
write shards and index them, the verifier reads single samples back, and the training loader fetches the byte range of
one sample.

    >>> import io
    >>> shard = member_bytes("0001.jpg", b"jpeg") + member_bytes("0001.txt", b"a dog") + END_OF_ARCHIVE
    >>> [(span.key, span.offset, span.size) for span in iter_samples(io.BytesIO(shard))]
    [('0001', 0, 2048)]
    >>> parse_sample(shard[0:2048])
    {'jpg': b'jpeg', 'txt': b'a dog'}

Layout of a tar: every member is one 512-byte header followed by its data, padded with zeros to a multiple of 512. A
long name comes as an extra member just before (GNU type ``L``, or pax type ``x`` with a ``path`` record). Two zero
blocks end the archive. Only regular files are ever returned: links, devices and directories have no use in a shard and
are stepped over.

Grouping follows webdataset: the key is the path up to the first dot of the base name; neighbours with one key are one
sample.

Why not ``tarfile``: it takes a file cut exactly between two members for complete, and it cannot say where a member's
long-name header began, which a byte range needs.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from pipeline.errors import DataError, TruncatedTar

BLOCK = 512
END_OF_ARCHIVE = bytes(2 * BLOCK)
ZERO_BLOCK = bytes(BLOCK)
# Long-name and pax headers are read into memory; a real one is far smaller, a corrupt size field is far larger.
MAX_NAME_HEADER_BYTES = 1 << 20
CHUNK_BYTES = 1 << 20
CHECKSUM_FIELD = slice(148, 156)
REGULAR_TYPES = b"07\0"


class ByteStream(Protocol):
    """All that is asked of a tar: to be read forwards."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes; empty only at the end."""


@dataclass(frozen=True)
class TarMember:
    """A regular file in a tar. All numbers are bytes from the start of the tar."""

    name: str
    offset: int  # of its first header block, a long-name header included
    data_offset: int
    size: int  # of the data, without padding
    data: bytes = b""  # only where the reader asked for it

    @property
    def end(self) -> int:
        """Where the next member's first header begins."""
        return self.data_offset + padded(self.size)


@dataclass(frozen=True)
class SampleSpan:
    """Where one sample lies in its tar: ``[offset, offset + size)`` holds all of its members and no other sample's."""

    key: str
    offset: int
    size: int
    extensions: tuple[str, ...]  # lower case, in file order


def padded(size: int) -> int:
    """``size`` rounded up to whole blocks.

    >>> padded(0), padded(1), padded(512)
    (0, 512, 512)
    """
    return -(-size // BLOCK) * BLOCK


def group_key(name: str) -> tuple[str, str] | None:
    """Split a member name into webdataset's key and extension; None for names that belong to no sample.

    The extension is lower-cased. Names without a dot, hidden files and ``__meta__`` entries belong to no sample.

    >>> group_key("a.b/0001.seg.PNG")
    ('a.b/0001', 'seg.png')
    """
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    first = name.split("/", 1)[0]
    is_meta = len(first) > 4 and first.startswith("__") and first.endswith("__")
    if not stem or not dot or is_meta:
        return None
    return folder + slash + stem, extension.lower()


def scan(stream: ByteStream, where: str = "tar", *, whole: bool = True, keep_bytes: int = -1) -> Iterator[TarMember]:
    """Yield the regular files of a tar in file order; with their data where that takes at most ``keep_bytes``.

    ``stream`` is only ever read forwards, and to its end, so that a caller can hash it on the way. ``where`` names the
    tar in messages. ``whole=False`` is for a slice of a tar, which has no end-of-archive mark.

    Raises TruncatedTar when the stream ends inside a member or without an end mark, and DataError when a block is not a
    tar header or when data follows the end mark. Both name the byte offset.
    """
    offset = 0
    start = None  # offset of a long-name header that belongs to the next member
    long_name = None
    while block := _read_exactly(stream, BLOCK):
        if len(block) < BLOCK:
            raise TruncatedTar(f"{where}: truncated inside the header at byte {offset:,}: {len(block)} of {BLOCK} bytes")
        if block == ZERO_BLOCK:
            _expect_only_zeros(stream, where, offset + BLOCK)
            return
        name, size, kind = parse_header(block, where, offset)
        member = TarMember(long_name or name, offset if start is None else start, offset + BLOCK, size)
        if kind in b"LKxg":
            start = member.offset if kind in b"LKx" else start
            body = _read_name_header(stream, member, where)
            if kind in b"Lx":
                long_name = _name_from(kind, body) or long_name
        else:
            if member.size <= keep_bytes:
                member = replace(member, data=_data(stream, member, where))
            else:
                _skip_data(stream, member, where)
            if kind in REGULAR_TYPES and not member.name.endswith("/"):
                yield member
            start = long_name = None
        offset = member.end
    if whole or start is not None:  # a name header without its member is a cut, in a slice too
        cause = f"it ends at byte {offset:,} without an end-of-archive mark" if offset else "it is empty (0 bytes)"
        raise TruncatedTar(f"{where}: truncated: {cause}; copy or build the shard again")


def iter_samples(stream: ByteStream, where: str = "tar", *, whole: bool = True) -> Iterator[SampleSpan]:
    """Yield the samples of a tar in file order: neighbouring members with one key. Memory does not grow with the tar.

    Raises what ``scan`` raises, and DataError when one sample holds the same extension twice.
    """
    key, offset, end = None, 0, 0
    extensions: list[str] = []
    for member in scan(stream, where, whole=whole):
        split = group_key(member.name)
        if split is None:
            continue
        if split[0] != key:
            if key is not None:
                yield SampleSpan(key, offset, end - offset, tuple(extensions))
            key, offset, extensions = split[0], member.offset, []
        if split[1] in extensions:
            raise DataError(f"{where}: key {key!r} has a second {split[1]!r} member at byte {member.offset:,}")
        extensions.append(split[1])
        end = member.end
    if key is not None:
        yield SampleSpan(key, offset, end - offset, tuple(extensions))


def read_samples(stream: ByteStream, where: str = "tar", *, max_bytes: int) -> Iterator[tuple[str, dict[str, bytes] | None]]:
    """Yield key and members of each sample of a tar that is read forwards; None for more than ``max_bytes``, headers included.

    Raises what ``scan`` raises; what was yielded before is whole.
    """
    key: str | None = None
    members: dict[str, bytes] = {}
    num_bytes = 0
    for member in scan(stream, where, keep_bytes=max_bytes):
        split = group_key(member.name)
        if split is None:
            continue
        if split[0] != key:
            if key is not None:
                yield key, members if num_bytes <= max_bytes else None
            key, members, num_bytes = split[0], {}, 0
        num_bytes += BLOCK + member.size
        members[split[1]] = member.data if num_bytes <= max_bytes else b""
    if key is not None:
        yield key, members if num_bytes <= max_bytes else None


def parse_sample(buffer: bytes, where: str = "sample") -> dict[str, bytes]:
    """The members of one sample, extension -> bytes, from the byte range that a ``SampleSpan`` names.

    Raises TruncatedTar or DataError when ``buffer`` is not whole tar members, and DataError when it holds no sample or
    more than one: then the range or the index it came from is wrong.
    """
    members: dict[str, bytes] = {}
    keys: list[str] = []
    for member in scan(io.BytesIO(buffer), where, whole=False):
        split = group_key(member.name)
        if split is None:
            continue
        if split[0] not in keys:
            keys.append(split[0])
        members[split[1]] = buffer[member.data_offset : member.data_offset + member.size]
    if len(keys) != 1:
        found = f"{len(buffer):,} bytes hold {len(keys)} samples {keys[:3]} instead of 1"
        raise DataError(f"{where}: {found}; index the shard again")
    return members


def parse_header(block: bytes, where: str = "tar", offset: int = 0) -> tuple[str, int, bytes]:
    """(name, data size in bytes, one-byte type) of a header block. Knows ustar, GNU and the older v7 headers.

    Raises DataError when the block is not a tar header; ``offset`` is where it lies and only used in the message.
    """
    try:
        stored_sum = int(block[CHECKSUM_FIELD].strip(b" \0") or b"-1", 8)
        size = _number(block[124:136])
    except ValueError:
        stored_sum, size = -1, 0
    actual_sum = sum(block) - sum(block[CHECKSUM_FIELD]) + 8 * ord(" ")
    kind = block[156:157]
    if stored_sum != actual_sum or size < 0:
        gzipped = block[:2] == b"\x1f\x8b"
        hint = "it is compressed; shards are plain tars" if gzipped else "the file is damaged or not a tar"
        raise DataError(f"{where}: no tar header at byte {offset:,} (bytes begin {block[:8]!r}): {hint}")
    if kind == b"S":
        raise DataError(f"{where}: sparse member at byte {offset:,}; write the shard again, tar without -S")
    name = block[:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    # Links, devices and directories carry no data whatever their size field says.
    size = 0 if kind in b"123456" else size
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "surrogateescape"), size, kind


def member_bytes(name: str, data: bytes) -> bytes:
    """One regular file as tar bytes: a ustar header (mode 0644, owner 0, time 0), the data and its padding.

    Nothing of the machine or the moment enters, so equal members are equal bytes. Raises DataError when ``name`` is
    longer than the header's 100 bytes or ``data`` does not fit its size field (8 GiB).
    """
    encoded = name.encode("utf-8")
    if not 0 < len(encoded) <= 100 or len(data) >= 8**11:
        limits = "name 1 to 100 bytes, data below 8 GiB"
        raise DataError(f"member {name[:120]!r} with {len(data):,} bytes does not fit a ustar header ({limits})")
    mode, zero = b"0000644\0", b"0000000\0"
    before_sum = encoded.ljust(100, b"\0") + mode + zero + zero + b"%011o\0" % len(data) + b"00000000000\0"
    after_sum = b"0" + bytes(100) + b"ustar\x0000" + bytes(64) + zero + zero + bytes(167)
    checksum = sum(before_sum) + 8 * ord(" ") + sum(after_sum)
    head = before_sum + b"%06o\0 " % checksum + after_sum
    assert len(head) == BLOCK, f"a tar header of {len(head)} bytes"
    return head + data + bytes(padded(len(data)) - len(data))


def _number(field: bytes) -> int:
    """A numeric header field: octal digits, or base 256 when its top bit is set (GNU, for sizes from 8 GiB)."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    return int(field.strip(b" \0") or b"0", 8)


def _name_from(kind: bytes, body: bytes) -> str | None:
    """The member name that a GNU ``L`` or pax ``x`` header's body announces; None if a pax header holds no path."""
    if kind == b"L":
        return body.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
    while body:
        length, _, _ = body.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(body):
            break
        record, body = body[len(length) + 1 : int(length) - 1], body[int(length) :]
        if record.startswith(b"path="):
            return record[5:].decode("utf-8", "surrogateescape")
    return None


def _read_exactly(stream: ByteStream, size: int) -> bytes:
    """``size`` bytes, or fewer at the end of the stream. A network stream may return less than asked before its end."""
    data = stream.read(size)
    while 0 < len(data) < size:
        more = stream.read(size - len(data))
        if not more:
            break
        data += more
    return data


def _read_name_header(stream: ByteStream, member: TarMember, where: str) -> bytes:
    """The data of a long-name or pax header. Raises DataError when it is absurdly long, TruncatedTar when it is cut."""
    if member.size > MAX_NAME_HEADER_BYTES:
        raise DataError(f"{where}: damaged: the name header at byte {member.offset:,} claims {member.size:,} bytes")
    body = _read_exactly(stream, padded(member.size))
    if len(body) < padded(member.size):
        raise TruncatedTar(f"{where}: truncated inside the name header at byte {member.offset:,}; copy the shard again")
    return body[: member.size]


def _data(stream: ByteStream, member: TarMember, where: str) -> bytes:
    """A member's data. Raises TruncatedTar when the stream ends before its padding does."""
    body = _read_exactly(stream, padded(member.size))
    if len(body) < padded(member.size):
        raise _cut(member, where, member.data_offset + len(body))
    return body[: member.size]


def _cut(member: TarMember, where: str, end: int) -> TruncatedTar:
    return TruncatedTar(
        f"{where}: truncated inside member {member.name!r}: its data should reach byte {member.end:,} "
        f"but the file ends at byte {end:,}; copy or build the shard again"
    )


def _skip_data(stream: ByteStream, member: TarMember, where: str) -> None:
    """Read past a member's data and padding. Raises TruncatedTar when the stream ends before them."""
    left = padded(member.size)
    while left:
        chunk = stream.read(min(left, CHUNK_BYTES))
        if not chunk:
            raise _cut(member, where, member.end - left)
        left -= len(chunk)


def _expect_only_zeros(stream: ByteStream, where: str, offset: int) -> None:
    """Read to the end of the stream. Raises DataError when anything but padding follows the end-of-archive mark."""
    while chunk := stream.read(CHUNK_BYTES):
        stripped = chunk.lstrip(b"\0")
        if stripped:
            raise DataError(
                f"{where}: data follows the end-of-archive mark at byte {offset + len(chunk) - len(stripped):,}; "
                "readers stop at the mark, so tars joined with `cat` lose samples: give each part as its own shard"
            )
        offset += len(chunk)
