"""Rebuilding the bundle, as far as it needs no network: the join of the styles, the drawings, the archives."""

from __future__ import annotations

import json
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from data_prep.recipes import emoji_bundle as bundle
from pipeline.errors import DataError

GROUPS = {"groups": {"3": "animals"}, "subgroups": {"34": "mammal"}}


def icons(style: str, chars: dict[str, str], **aliases: dict[str, object]) -> bundle.IconSet:
    drawings = {name: {"body": f"<{style}/>"} for name in chars.values()}
    return bundle.IconSet(style, {"icons": drawings, "aliases": aliases, "width": 32, "height": 32}, chars)


def entry(hexcode: str, label: str) -> dict[str, object]:
    return {"hexcode": hexcode, "label": label, "tags": ["pet"], "group": 3, "subgroup": 34}


def test_styles_are_joined_by_code_point_not_by_name() -> None:
    sets = {
        "noto": icons("noto", {"1F431": "cat-face", "1F199": "up-sign", "1F53C": "up", "1F436": "dog-face"}),
        "twemoji": icons("twemoji", {"1F431": "kitty", "1F199": "up-sign", "1F53C": "up"}),
        "fluent": icons("fluent", {"1F431": "cat-face", "1F199": "up", "1F53C": "triangle"}),
    }
    emoji = [
        entry("1F53C", "upwards"),
        entry("1F199", "UP!"),
        entry("1F431", "cat"),
        entry("1F436", "dog"),
        entry("1", "x"),
    ]
    concepts = bundle.shared_concepts(sets, emoji, GROUPS)
    assert [(one.name, one.label) for one in concepts] == [("cat-face", "cat"), ("up", "upwards"), ("up-sign", "UP!")]
    assert concepts[0] == bundle.Concept("cat-face", "cat", ["pet"], "animals", "mammal", "1F431")


def test_a_mirrored_alias_is_a_drawing_and_a_hidden_icon_is_not() -> None:
    right = {"parent": "hand-left", "hFlip": True}
    fluent = icons("fluent", {"1F448": "hand-left", "1F917": "old"}, **{"hand-right": right})
    fluent.icons["icons"]["old"]["hidden"] = True
    drawing = bundle.find_drawing(fluent, "1F449", "hand-right")
    assert drawing is not None
    assert (drawing["body"], drawing["hFlip"], drawing["width"]) == ("<fluent/>", True, 32)
    assert 'translate(32 0) scale(-1 1)"><fluent/></g>' in bundle.to_svg(drawing)
    assert bundle.find_drawing(fluent, "1F917", "hugging-face") is None
    assert bundle.find_drawing(fluent, "1F000", "nowhere") is None


def test_a_drawing_keeps_its_own_box() -> None:
    svg = bundle.to_svg({"body": "<b/>", "left": 1, "top": 2, "width": 36, "height": 25.22})
    assert 'width="64" height="64" viewBox="1 2 36 25.22"><b/></svg>' in svg
    with pytest.raises(DataError, match="asks for rotate=1"):
        bundle.to_svg({"body": "", "left": 0, "top": 0, "width": 1, "height": 1, "rotate": 1})


def test_archives_of_equal_files_are_equal_bytes(tmp_path: Path) -> None:
    bundle.write_zip(tmp_path / "a.zip", {"x": b"1", "y": b"2"})
    bundle.write_zip(tmp_path / "b.zip", {"y": b"2", "x": b"1"})
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert [info.compress_type for info in archive.infolist()] == [zipfile.ZIP_STORED] * 2


def fake_npm(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")


def test_packages_are_fetched_by_pinned_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "icons.json").write_text(json.dumps({"icons": 1}))
    with tarfile.open(tmp_path / "p.tgz", "w:gz") as archive:
        archive.add(tmp_path / "icons.json", "package/icons.json")
    fake_npm(tmp_path / "bin", f'test "$3" = "@x/y@1.0" && cp {tmp_path}/p.tgz y.tgz && echo y.tgz', monkeypatch)
    (tmp_path / "down").mkdir()
    assert bundle.fetch("@x/y", "1.0", ["icons.json"], tmp_path / "down") == [{"icons": 1}]
    with pytest.raises(DataError, match=r"@x/y@1\.0 holds no chars\.json"):
        bundle.fetch("@x/y", "1.0", ["chars.json"], tmp_path / "down")


def test_a_failing_or_absent_npm_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_npm(tmp_path / "bin", "echo no such package >&2; exit 3", monkeypatch)
    with pytest.raises(DataError, match=r"`npm pack --silent x@1` failed with exit code 3: no such package"):
        bundle.fetch("x", "1", [], tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="npm was not found on PATH"):
        bundle.fetch("x", "1", [], tmp_path)


def test_a_rendered_drawing_is_small_and_on_white() -> None:
    import io

    from PIL import Image

    body = '<circle cx="16" cy="16" r="8" fill="#ff0000"/>'
    data = bundle.render({"body": body, "left": 0, "top": 0, "width": 32, "height": 32})
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size) == ("WEBP", (64, 64))
        pixels = image.convert("RGB")
    assert pixels.getpixel((0, 0)) == (255, 255, 255)
    assert pixels.getpixel((32, 32)) == (255, 0, 0)
    colours = pixels.getcolors()
    assert colours is not None
    assert len(colours) <= bundle.COLOURS
