"""From the members of a tar to a Sample; each way a sample can be unusable has a cause, a shard, and a key."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from pipeline.data.augment import Encoded
from pipeline.data.drops import BadSample
from pipeline.data.files import LocalFiles
from pipeline.data.plain import SMALL_MEMBER_BYTES
from pipeline.data.samples import ShardSet, group_number
from pipeline.data.shards import Keys, resolve
from pipeline.errors import DataError
from tests.data.on_disk import encoded, one_sample, pair, picture, tar_bytes, write_set
from tests.data.test_augment import jpeg

PNG = encoded(picture(0))


def test_a_sample_is_its_members(tmp_path):
    meta = {"captions": ["a dog", " a hound "], "group": "dog", "style": "flat", "seen": True}
    members = {"png": PNG, "txt": b"ignored", "json": json.dumps(meta).encode(), "cls": b"7\n"}
    sample = one_sample(tmp_path, members).read(0)
    assert (sample.key, sample.shard, sample.image) == ("k", str(tmp_path / "one.tar"), PNG)
    assert sample.captions == ("a dog", "a hound")
    assert sample.label == 7
    assert sample.meta == {"style": "flat", "seen": True}
    assert sample.group == group_number("group", "dog") != group_number("caption", "dog")


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_a_large_picture_is_a_view_that_decodes_as_its_bytes_do(tmp_path, extension, mapped):
    stored = jpeg(0, 320, 240) if extension == "jpg" else encoded(picture(0, 90))
    one_sample(tmp_path, {extension: stored, "txt": b"x", "json": b'{"long": "%s"}' % (b"y" * SMALL_MEMBER_BYTES)})
    source = LocalFiles(mapped=mapped)
    sample = ShardSet(resolve(str(tmp_path / "one.tar")), source).read(0)
    assert isinstance(sample.image, memoryview) and len(stored) > SMALL_MEMBER_BYTES
    assert sample.image == stored and len(sample.meta["long"]) == SMALL_MEMBER_BYTES
    source.close()
    assert np.array_equal(Encoded(sample.image, 10**6).pixels(1), Encoded(stored, 10**6).pixels(1)), "after closing, too"


@pytest.mark.parametrize("extension", ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "PNG", "JPG"])
def test_image_member_names(tmp_path, extension):
    assert one_sample(tmp_path, {extension: PNG, "txt": b"x"}).read(0).image == PNG


@pytest.mark.parametrize("meta", [{}, {"captions": None}, {"captions": []}, {"caption": "other tools' key"}])
def test_without_captions_in_json_the_text_counts(tmp_path, meta):
    sample = one_sample(tmp_path, {"png": PNG, "json": json.dumps(meta).encode(), "txt": b" two\nlines "}).read(0)
    assert sample.captions == ("two\nlines",)


def test_a_group_is_63_bits_and_the_same_everywhere():
    assert group_number("caption", "Beer  mug ") == group_number("caption", "beer mug")
    assert group_number("group", "Beer") != group_number("group", "beer")
    assert group_number("caption", "beer mug") == 4849122929823429257
    assert all(0 <= group_number("caption", str(n)) < 2**63 for n in range(1000))


def test_equal_first_captions_are_one_group(tmp_path):
    data = write_set(tmp_path, [3], replace={2: pair(0)})
    groups = [ShardSet.open(str(data)).read(i).group for i in range(3)]
    assert groups[0] == groups[2] != groups[1]


BAD = {
    "image-missing": ({"txt": b"x"}, r"members are \.txt"),
    "image-empty": ({"png": b"", "txt": b"x"}, "0 bytes"),
    "caption-missing": ({"png": PNG}, r"members are \.png"),
    "caption-empty": ({"png": PNG, "txt": b" \n"}, r"members are \.png, \.txt"),
    "caption-not-utf8": ({"png": PNG, "txt": b"caf\xe9"}, r"can't decode byte 0xe9 .* it begins b'caf\\xe9'"),
    "json-invalid": ({"png": PNG, "txt": b"x", "json": b"{"}, "Expecting property name"),
    "label-invalid": ({"png": PNG, "txt": b"x", "cls": b"cat"}, "must hold a class number, got 'cat'"),
    "sample-too-large": ({"png": bytes(1_000_000), "txt": b"x"}, r"the bound is 1,000,000 \(data.max_member_bytes\)"),
}


@pytest.mark.parametrize("cause", BAD)
def test_an_unusable_sample_says_why_and_where(tmp_path, cause):
    members, text = BAD[cause]
    with pytest.raises(BadSample, match=text) as caught:
        one_sample(tmp_path, members).read(0)
    drop = caught.value.drop
    assert (drop.cause, drop.shard, drop.key) == (cause, str(tmp_path / "one.tar"), "k")


@pytest.mark.parametrize("text", [b"[1]", b'{"captions": "one"}', b'{"captions": [1]}', b'{"captions": ["\xff"]}'])
def test_json_of_the_wrong_shape(tmp_path, text):
    with pytest.raises(BadSample) as caught:
        one_sample(tmp_path, {"png": PNG, "txt": b"x", "json": text}).read(0)
    assert caught.value.drop.cause == "json-invalid"


def test_a_shard_that_changes_while_in_use_costs_samples_not_the_run(tmp_path):
    path = write_set(tmp_path, [3]) / "x-000000.tar"
    data, whole = ShardSet.open(str(tmp_path)), path.read_bytes()
    data.read(0)
    with path.open("r+b") as stream:
        stream.write(b"garbage!" * 64)
    with pytest.raises(BadSample, match="no tar header at byte 0") as caught:
        data.read(0)
    assert caught.value.drop.cause == "tar-corrupt"
    os.truncate(path, len(whole) - 2048)
    with pytest.raises(BadSample, match="the shard was cut while in use") as caught:
        data.read(2)
    assert caught.value.drop.cause == "read-failed"
    assert data.read(1).captions == ("caption 1",)


def test_a_shard_that_vanishes(tmp_path):
    data = ShardSet.open(str(write_set(tmp_path, [1])))
    (tmp_path / "x-000000.tar").unlink()
    with pytest.raises(BadSample, match="No such file") as caught:
        data.read(0)
    assert caught.value.drop.cause == "read-failed"


@pytest.mark.parametrize("i", [-1, 3])
def test_sample_numbers_out_of_range(tmp_path, i):
    with pytest.raises(IndexError, match=f"sample {i} of 3"):
        ShardSet.open(str(write_set(tmp_path, [3]))).read(i)


def test_preflight_passes_when_one_sample_is_usable(tmp_path):
    bad = {n: {"png": PNG} for n in range(7)}
    ShardSet.open(str(write_set(tmp_path, [0, 8], replace=bad))).preflight()


def test_preflight_names_found_and_expected_members(tmp_path):
    wrong = {f"{n}": {"jpeg2": PNG, "caption": b"x"} for n in range(20)}
    (tmp_path / "a.tar").write_bytes(tar_bytes(wrong))
    with pytest.raises(DataError) as caught:
        ShardSet.open(str(tmp_path)).preflight()
    text = str(caught.value)
    assert "none of the first 8 samples can be used; the first fails with image-missing: 0 in" in text
    assert "Members found: .caption, .jpeg2. Expected: an image (.jpg, .jpeg, .png" in text
    assert "with a caption in .txt" in text


def test_indexes_in_memory_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.data.samples.MAX_INDEXED_SAMPLES", 5)
    monkeypatch.setattr("pipeline.data.samples.MIN_INDEXES", 0)
    data = ShardSet.open(str(write_set(tmp_path, [1, 2, 3, 7, 1])))
    for _ in range(2):
        assert [data.read(i).key for i in range(14)] == [f"{n:06d}" for n in range(14)]
        assert sum(len(index.keys) for index in data._indexes.values()) == data._num_indexed
    assert [len(data._indexes[number].keys) for number in data._indexes] == [1]
    data.read(0)
    data.read(2)
    assert sorted(data._indexes) == [0, 1, 4]
    monkeypatch.setattr("pipeline.data.samples.MIN_INDEXES", 4)
    for i in range(14):
        data.read(i)
    assert len(data._indexes) == 5, "a few shards are kept however large they are"


def test_keys_take_little_memory_and_stay_what_they_were():
    keys = ["000123", "a/b", "caf\udce9", "\u00e9t\u00e9", "", "x" * 300, "\ud800"]
    packed = Keys(keys)
    assert list(packed) == keys
    assert (packed[-1], packed[1:3], len(packed)) == (keys[-1], keys[1:3], 7)
    with pytest.raises(IndexError):
        packed[7]
    assert list(Keys([])) == []


def test_shard_tools_may_import_the_ground_without_torch():
    names = ("tar", "shards", "samples", "plan", "drops")
    code = f"import sys; {'; '.join(f'import pipeline.data.{name}' for name in names)}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
