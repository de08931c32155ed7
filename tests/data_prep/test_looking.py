"""The tools that look into shards: ls, cat, stats, preview, and what they are made of."""

from __future__ import annotations

import html.parser
import io
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from data_prep.__main__ import main
from data_prep.dimensions import HEAD_BYTES, dimensions
from data_prep.index import adopt
from data_prep.preview import preview
from data_prep.stats import Stats, stats
from data_prep.tokens import count_tokens
from tests.data_prep.tars import sample, tar_of, write_set

TEXTS = (
    "a dog on a red sofa",
    "Don't  you'll I'D we've",
    "naïve café 東京 \U0001f600\U0001f600",
    "aaa aaaa aaaaa antidisestablishmentarianism",
    "&amp;amp; &lt;b&gt; 3.14 1234",
    "<start_of_text> photo <end_of_text>",
    "x" * 200,
    "",
)


def encoded(kind: str, size: tuple[int, int], **options: object) -> bytes:
    raw = io.BytesIO()
    Image.new("RGB", size, (9, 99, 199)).save(raw, kind, **options)
    return raw.getvalue()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"icc_profile": b"x" * 40_000, "comment": b"y" * 9000}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": b"Exif\0\0"}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
    ],
)
def test_sizes_stand_in_the_first_bytes(kind: str, options: dict[str, object]) -> None:
    assert dimensions(encoded(kind, (321, 45), **options)[:HEAD_BYTES]) == (321, 45)


@pytest.mark.parametrize(
    "raw", [b"", b"\xff\xd8", b"\xff\xd8\xff\xe0\0\0" * 9, b"RIFF1234WEBP", b"GIF89a", b"text", b"\x89PNG\r\n\x1a\n"]
)
def test_what_is_no_picture_has_no_size(raw: bytes) -> None:
    assert dimensions(raw) is None


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_a_picture_cut_anywhere_is_no_error(kind: str) -> None:
    raw = encoded(kind, (20, 10))
    assert {dimensions(raw[:length]) for length in range(len(raw))} <= {None, (20, 10)}


def test_tokens_are_counted_as_clip_counts_them() -> None:
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    for text in TEXTS:
        assert count_tokens(text) == len(tokenizer.encode(text)) + 2, text


def test_an_absurd_word_does_not_take_forever() -> None:
    assert count_tokens("z" * 100_000) == 25_002


def test_the_look_into_a_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_set(tmp_path / "set" / "train")
    adopt([str(tmp_path / "set" / "train" / "0.tar")])
    capsys.readouterr()
    assert main(["ls", str(tmp_path / "set")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["shard", "samples", "bytes"]
    assert [line[:2] for line in lines[1:3]] == [["train/0.tar", "3"], ["train/1.tar", "3"]]
    num_bytes = sum(path.stat().st_size for path in (tmp_path / "set").rglob("*.tar"))
    assert lines[3] == ["2", "shards", "6", f"{num_bytes:,}"]
    assert main(["ls", "--samples", "--json", str(tmp_path / "set")]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert (first["key"], first["width"], first["members"]) == ("0000", 8, ["png", "txt"])


def test_one_sample_and_one_member_are_written_out(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    folder = str(write_set(tmp_path / "set"))
    assert main(["cat", folder, "0004"]) == 0
    assert json.loads(capfdbinary.readouterr().out)["captions"] == ["picture 4"]
    assert main(["cat", folder, "0004.png"]) == 0
    assert capfdbinary.readouterr().out == sample(4)["0004.png"]
    assert main(["cat", folder, "0004", "--tar"]) == 0
    with tarfile.open(fileobj=io.BytesIO(capfdbinary.readouterr().out)) as archive:
        assert archive.getnames() == ["0004.png", "0004.txt"]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("0004.json", "sample '0004' has no member .json; it has .png, .txt"),
        ("9", "no sample is called '9'; the first are 0000"),
    ],
)
def test_what_is_not_there_is_said(tmp_path: Path, what: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cat", str(write_set(tmp_path / "set")), what]) == 3
    assert message in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", num_shards=1, num_samples=2000)
    command = f"{sys.executable} -m data_prep ls -s {folder} | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "0000" in done.stdout


def varied(folder: Path) -> Path:
    folder.mkdir()
    samples = [sample(1, "a cat"), sample(2, "A  Cat"), sample(3, "a dog"), {"4.png": sample(3)["0003.png"], "4.txt": b"a dog"}]
    wide = {"5.jpg": encoded("JPEG", (30, 10)), "5.json": json.dumps({"captions": ["x " * 90, "y"]}).encode()}
    (folder / "a.tar").write_bytes(tar_of(*samples, wide, {"6.txt": b"alone"}, {"7.cls": b"1", "7.png": sample(7)["0007.png"]}))
    return folder


def test_statistics_are_exact(tmp_path: Path) -> None:
    report = stats([str(varied(tmp_path / "set"))]).as_dict()
    assert (report["num_samples"], report["num_without_image"], report["num_without_caption"]) == (7, 1, 1)
    assert report["members"] == {"cls": 1, "jpg": 1, "json": 1, "png": 5, "txt": 5}
    assert report["width"]["histogram"] == [[8, 5], [30, 1]]
    assert (report["aspect"]["median"], report["aspect"]["max"]) == (1, 3)
    assert report["num_captions_over_77_tokens"] == 1
    assert report["captions_per_sample"]["histogram"] == [[0, 1], [1, 5], [2, 1]]
    assert report["duplicates"]["images"] == {"distinct": 5, "repeated": 1, "surplus": 1, "most": 2}
    assert report["duplicates"]["first_captions"] == {"distinct": 4, "repeated": 2, "surplus": 2, "most": 2}
    assert report["top_captions"] == [["a cat", 2], ["a dog", 2]]
    assert report["top_words"][:2] == [["cat", 2], ["dog", 2]]


def test_statistics_add_up_over_shards_and_workers(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", num_shards=3)
    alone, together = stats([str(folder)]).as_dict(), stats([str(folder)], workers=2).as_dict()
    assert alone == together
    assert alone["tokens"]["count"] == 9
    assert Stats().as_dict()["num_samples"] == 0


def test_statistics_are_printed_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", str(varied(tmp_path / "set")), "--picture", str(tmp_path / "set.png")]) == 0
    printed = capsys.readouterr().out
    assert "1 shards, 7 samples" in printed
    assert "images: 5 distinct, 1 repeat an earlier one, the most frequent 2 times" in printed
    with Image.open(tmp_path / "set.png") as image:
        assert image.width > 1000


class Page(html.parser.HTMLParser):
    """Collects the tags of a page and its visible text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


EVIL = "<script>alert(1)</script> \"onload='x' $cards & </ul></html> \ud7ff\u202e"


def test_a_page_holds_everything_and_lets_nothing_in(tmp_path: Path) -> None:
    name = '1"><img src=x>.png'
    members = {name: sample(1)["0001.png"], name.replace(".png", ".txt"): EVIL.encode("utf-8", "replace")}
    meta = sample(2, EVIL, json=json.dumps({"url": "javascript:alert(1)", "captions": [EVIL, EVIL, "b"]}).encode())
    (tmp_path / "a.tar").write_bytes(tar_of(members, meta, {"3.jpg": b"junk", "3.cls": b"1"}, {"4.txt": b"x"}))
    text = preview([str(tmp_path)], count=10)
    page = Page()
    page.feed(text)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 1
    assert tags.count("img") == 2
    assert all(str(attributes["src"]).startswith("data:image/webp;base64,") for tag, attributes in page.tags if tag == "img")
    assert not any(name.startswith("on") or name in ("href", "srcset") for _, attributes in page.tags for name in attributes)
    assert not re.search(r"https?://|//cdn|@import|url\(", text)
    assert "default-src 'none'" in text
    visible = "".join(page.text)
    assert EVIL in visible
    assert f"{EVIL} × 2" in visible
    assert "cannot be shown: UnidentifiedImageError" in visible
    assert "no image" in visible
    assert tags.count("li") == 4 + 1 + 2 + 1 + 1  # cards, and the captions in them


def test_which_samples_are_shown_depends_on_their_keys(tmp_path: Path) -> None:
    folder = str(write_set(tmp_path / "set", num_shards=3, num_samples=10))
    few, many = preview([folder], count=5), preview([folder], count=10)
    shown = [set(re.findall(r'class="key">(\d+)', page)) for page in (few, many)]
    assert shown[0] < shown[1]
    assert (len(shown[0]), len(shown[1])) == (5, 10)
    assert preview([folder], count=5) == few != preview([folder], count=5, seed=1)
    assert main(["preview", folder, str(tmp_path / "p.html"), "--count", "5"]) == 0
    assert (tmp_path / "p.html").read_text() == few
