"""Bytes on a disk that must survive a crash: hashes, fsync, atomic replacement, and safetensors files written from one buffer.

A safetensors file is eight bytes of header length, a JSON header that says where each tensor lies, and the tensors back to
back. The library writes one from a dict of tensors and copies them on the way; here the bytes that the device was copied to
are the bytes that are written, and their hash is taken in the same pass.

    layout = Layout.of({"w": (torch.float32, (2, 3))})
    entry = write(path, [layout.header, memory])          # Entry(bytes=..., sha256=...)
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_CHUNK = 1 << 24


@dataclass(frozen=True)
class Entry:
    """A file as it was when it was written."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Layout:
    """Where each tensor of a safetensors file lies."""

    header: bytes
    places: dict[str, tuple[int, int]]
    """First byte and one past the last, within the body; in the order of the body."""
    size: int
    """Bytes of the body."""

    @staticmethod
    def of(tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> Layout:
        """Lay tensors back to back, wide types first, so that each begins at a multiple of its element size."""
        described: dict[str, Any] = {}
        places, at = {}, 0
        for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: -item[1][0].itemsize):
            stop = at + math.prod(shape) * dtype.itemsize
            described[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [at, stop]}
            places[name], at = (at, stop), stop
        text = json.dumps(described, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return Layout(len(text).to_bytes(8, "little") + text, places, at)


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, without a copy."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


def write(path: Path, parts: Iterable[bytes | memoryview]) -> Entry:
    """Write parts one after the other and wait until the disk has them; returns size and hash.

    Large writes and hashes leave Python's lock to other threads.
    """
    digest, size = hashlib.sha256(), 0
    with open(path, "wb", buffering=0) as file:
        for part in parts:
            for start in range(0, len(part), _CHUNK):
                chunk = memoryview(part)[start : start + _CHUNK]
                digest.update(chunk)
                written = 0
                while written < len(chunk):
                    written += file.write(chunk[written:])
                size += len(chunk)
        os.fsync(file.fileno())
    return Entry(size, digest.hexdigest())


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> Entry:
    """Write a small file and wait for the disk."""
    return write(path, [text.encode()])


def replace_text(path: Path, text: str) -> None:
    """Replace a small file as a whole: readers see the old content or the new one, also after a crash."""
    temporary = path.with_name(f".{path.name}.writing")
    write_text(temporary, text)
    os.replace(temporary, path)
    sync(path.parent)


def sync(folder: Path) -> None:
    """Make the names in a folder survive a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
