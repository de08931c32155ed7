"""Small images, tables of them, and shards that the tests damage."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_prep.__main__ import main

Fields = dict[str, Any]


def encode(number: int = 0, kind: str = "PNG", side: int = 8) -> bytes:
    """An image of one colour that no other ``number`` has."""
    encoded = io.BytesIO()
    Image.new("RGB", (side, side), (number % 256, number // 256, 7)).save(encoded, kind)
    return encoded.getvalue()


@pytest.fixture
def picture() -> Callable[..., bytes]:
    return encode


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    """Write ``pairs.jsonl`` with ``num_good`` usable rows and then ``extra`` ones; returns its path."""

    def write(num_good: int = 5, extra: Sequence[Fields | bytes] = ()) -> Path:
        folder = tmp_path / "source"
        folder.mkdir(exist_ok=True)
        rows: list[Fields | bytes] = []
        for number in range(num_good):
            (folder / f"{number}.png").write_bytes(encode(number))
            rows.append({"image": f"{number}.png", "caption": f"picture {number}", "shade": number})
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in (*rows, *extra)]
        (folder / "pairs.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        return folder / "pairs.jsonl"

    return write


@pytest.fixture
def built(tmp_path: Path, table: Callable[..., Path]) -> Path:
    """A folder of three shards with two, two and one samples."""
    assert main(["build", str(table(5)), str(tmp_path / "built"), "--shard-size", "2"]) == 0
    return tmp_path / "built"
