"""The tools that write shards: complete or absent, byte for byte the same, read by everyone, and exact in their counts."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
import sys
import tarfile
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import webdataset

from data_prep.__main__ import main
from data_prep.findings import Findings
from data_prep.mix import mix, schedule
from data_prep.output import ShardWriter, new_folder, tar_key
from data_prep.reader import Reader
from data_prep.repair import repair
from data_prep.reshard import reshard
from data_prep.subset import Conditions, Where, subset
from data_prep.verify import verify
from pipeline.data.samples import ShardSet
from pipeline.data.tar import END_OF_ARCHIVE, member_bytes
from pipeline.errors import DataError
from tests.data_prep.tars import sample, special, tar_of, write_set


def digests(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def keys(folder: Path) -> list[str]:
    return [stored.key for stored in Reader([str(folder)])]


def broken_set(folder: Path) -> Path:
    """Every kind of trouble in two shards; six of eleven samples are usable."""
    folder.mkdir()
    escape = member_bytes("../../evil.jpg", b"x") + special("0001.jpg", tarfile.SYMTYPE, link="/etc/passwd")
    bad = tar_of(sample(2, caption=" "), {"0003.jpg": b"junk", "0003.txt": b"x"}, end=b"")
    doubled = tar_of(sample(4), {"0004.txt": b"second", "0004.exe": b"x"}, sample(0), end=b"")
    good = tar_of(sample(0), sample(1), end=b"")
    (folder / "0.tar").write_bytes(good + escape + bad + doubled + END_OF_ARCHIVE)
    damaged = bytearray(tar_of(sample(9), sample(5), sample(6), sample(7)))
    start = len(tar_of(sample(9), sample(5), end=b""))
    damaged[start + 100 : start + 400] = b"\xff" * 300
    (folder / "1.tar").write_bytes(bytes(damaged) + tar_of(sample(8))[:-1100] + b"\0" * 10)
    return folder


def test_a_repair_keeps_what_is_good_and_lists_the_rest(tmp_path: Path) -> None:
    source = broken_set(tmp_path / "broken")
    before = digests(source)
    report = repair([str(source)], str(tmp_path / "clean"))
    assert report.num_samples == report.num_kept + report.num_dropped
    assert keys(tmp_path / "clean") == ["0000", "0001", "0004", "0009", "0005", "0007"]
    assert (report.num_shards, report.num_kept, report.num_dropped) == (2, 6, 5)
    rejects = [json.loads(line) for line in (tmp_path / "clean" / "rejects.jsonl").read_text().splitlines()]
    assert Counter(reject["cause"] for reject in rejects) == report.causes
    assert report.causes == {
        "member-escapes": 1,
        "member-link": 1,
        "caption-empty": 1,
        "image-undecodable": 1,
        "member-duplicate": 1,
        "member-unknown": 1,
        "key-duplicate": 1,
        "tar-damaged": 1,
        "tar-data-after-end": 1,
        "tar-truncated-in-member": 1,
        "tar-corrupt": 2,
    }
    assert verify([str(tmp_path / "clean")]).counts == {}
    assert digests(source) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "clean"]


def test_a_sample_that_lost_a_member_beside_the_damage_is_not_kept(tmp_path: Path) -> None:
    raw = tar_of(*(sample(number, json=b'{"group": "g"}') for number in range(3)))
    start = raw.index(b"0001.json")
    (tmp_path / "a.tar").write_bytes(raw[:start] + b"\xff" * 512 + raw[start + 512 :])
    (tmp_path / "b.tar").write_bytes(raw[:-1600])
    report = repair([str(tmp_path)], str(tmp_path / "out"))
    assert report.causes == {"tar-damaged": 1, "tar-truncated-in-member": 1, "tar-corrupt": 2}
    assert [json.loads(one.members["json"]) for one in Reader([str(tmp_path / "out")])] == [{"group": "g"}] * 4


def test_a_repair_of_good_shards_changes_no_byte(tmp_path: Path) -> None:
    source = write_set(tmp_path / "good")
    repair([str(source)], str(tmp_path / "again"))
    for name in ("0.tar", "1.tar"):
        assert (tmp_path / "again" / name).read_bytes() == (source / name).read_bytes()


def test_a_repaired_test_set_keeps_its_layout(tmp_path: Path) -> None:
    write_set(tmp_path / "eval" / "test", num_shards=1)
    (tmp_path / "eval" / "classnames.txt").write_text("cat\n")
    assert main(["repair", str(tmp_path / "eval"), str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "test" / "0.tar").exists()
    assert (tmp_path / "out" / "classnames.txt").read_text() == "cat\n"


def test_nothing_usable_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of({"1.txt": b"x"}))
    with pytest.raises(DataError, match=r"can be used: image-missing \(1\); see `unisphere shards verify`"):
        repair([str(tmp_path / "a.tar")], str(tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar"]


def test_copies_are_the_same_byte_for_byte_and_everyone_reads_them(tmp_path: Path) -> None:
    source = write_set(tmp_path / "set", num_shards=3, num_samples=4)
    for place in ("one", "two"):
        reshard([str(source)], str(tmp_path / place), shard_size=5)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    shards = sorted((tmp_path / "one").glob("*.tar"))
    expected = [f"{number:04d}" for number in range(12)]
    assert [read["__key__"] for read in webdataset.WebDataset([str(path) for path in shards], shardshuffle=False)] == expected
    ours = ShardSet.open(str(tmp_path / "one"))
    assert [ours.read(number).captions[0] for number in range(12)] == [f"picture {number}" for number in range(12)]
    listed = [
        subprocess.run(["tar", "-tf", path], capture_output=True, text=True, check=True).stdout.split() for path in shards
    ]
    python = []
    for path in shards:
        with tarfile.open(path) as archive:
            python.append(archive.getnames())
    assert listed == python
    assert [len(names) for names in listed] == [10, 10, 4]


def test_shuffling_is_a_permutation_that_the_seed_decides(tmp_path: Path) -> None:
    source = write_set(tmp_path / "set", num_shards=3, num_samples=10)
    for seed in (1, 1, 2):
        reshard([str(source)], str(tmp_path / f"s{seed}"), shard_size=10, shuffle_seed=seed, force=True)
    first, second = keys(tmp_path / "s1"), keys(tmp_path / "s2")
    assert sorted(first) == sorted(second) == keys(source)
    assert first != second != keys(source)
    assert keys(tmp_path / "s1") == first


def test_a_shard_ends_after_so_many_bytes(tmp_path: Path) -> None:
    source = write_set(tmp_path / "set", num_shards=1, num_samples=6)
    assert main(["reshard", str(source), str(tmp_path / "out"), "--shard-bytes", "4000"]) == 0
    assert [path.stat().st_size for path in sorted((tmp_path / "out").glob("*.tar"))] == [5120, 5120, 5120]


def test_equal_keys_of_two_shards_stay_two_samples(tmp_path: Path) -> None:
    for number in range(2):
        write_set(tmp_path / "set" / str(number), num_shards=1, num_samples=2)
    report = reshard([str(tmp_path / "set")], str(tmp_path / "out"), shard_size=10)
    assert (report.num_written, report.num_renamed) == (4, 2)
    assert keys(tmp_path / "out") == ["0000", "0001", "0000+2", "0001+2"]
    assert verify([str(tmp_path / "out")]).counts == {}


def test_long_and_odd_keys_fit_a_plain_header() -> None:
    assert tar_key("a/0001", {"jpg": b""}) == "a/0001"
    long = tar_key("k" * 200, {"jpg": b""})
    assert len(long) == 77
    assert long != tar_key("k" * 199, {"jpg": b""})
    odd = tar_key(b"\xff1".decode("utf-8", "surrogateescape"), {"jpg": b""})
    assert odd.encode("utf-8")


def test_a_damaged_source_is_not_copied(tmp_path: Path) -> None:
    source = write_set(tmp_path / "set")
    path = source / "1.tar"
    path.write_bytes(path.read_bytes()[:-1024])
    for command in (["reshard"], ["subset"], ["split"]):
        assert main([*command, str(source), str(tmp_path / "out")]) == 3
    with pytest.raises(DataError, match=r"1\.tar: it ends at byte .*make a clean copy with `unisphere shards repair`"):
        reshard([str(source)], str(tmp_path / "out"), shard_size=5, shuffle_seed=0)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["set"]


def test_what_is_no_sample_is_left_out_and_counted(tmp_path: Path) -> None:
    raw = member_bytes("README", b"x") + special("2.jpg", tarfile.SYMTYPE, link="/") + tar_of(sample(1))
    (tmp_path / "a.tar").write_bytes(raw)
    report = reshard([str(tmp_path / "a.tar")], str(tmp_path / "out"), shard_size=5)
    assert report.left_out == {"member-stray": 1, "member-link": 1}
    assert report.num_written == 1


def test_members_that_training_does_not_know_travel_along(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(sample(1, npy=b"numbers")))
    reshard([str(tmp_path / "a.tar")], str(tmp_path / "out"), shard_size=5)
    (copied,) = Reader([str(tmp_path / "out")])
    assert copied.members["npy"] == b"numbers"


def test_an_output_that_is_not_empty_is_refused_and_force_replaces_shards_only(tmp_path: Path) -> None:
    source = write_set(tmp_path / "set")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"dear")
    for force in (False, True):
        with pytest.raises(DataError, match=r"photos is not empty \(a\.jpg\); choose another folder"):
            reshard([str(source)], str(tmp_path / "photos"), shard_size=5, force=force)
    assert (tmp_path / "photos" / "a.jpg").read_bytes() == b"dear"
    reshard([str(source)], str(tmp_path / "out"), shard_size=5)
    with pytest.raises(DataError, match="or pass --force to replace its shards"):
        reshard([str(source)], str(tmp_path / "out"), shard_size=2)
    reshard([str(source)], str(tmp_path / "out"), shard_size=2, force=True)
    assert len(list((tmp_path / "out").glob("*.tar"))) == 3


def test_an_interrupted_copy_leaves_no_folder_and_is_done_again(tmp_path: Path) -> None:
    def interrupted() -> None:
        with new_folder(str(tmp_path / "out")) as folder:
            (folder / "half.tar").write_bytes(b"x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "left by a kill").write_bytes(b"x")
    with new_folder(str(tmp_path / "out")) as folder, ShardWriter(folder, "a", shard_size=1) as shards:
        shards.add("1", {"txt": b"x"})
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "a-000000.tar",
        "a-000000.index.jsonl",
        "manifest.jsonl",
        "open_lm.jsonl",
        "sizes.json",
    }


def test_two_commands_do_not_write_one_folder(tmp_path: Path) -> None:
    with new_folder(str(tmp_path / "out")) as folder:
        with pytest.raises(DataError, match="another command is writing"), new_folder(str(tmp_path / "out")):
            raise AssertionError("not reached")
        (folder / "kept").write_bytes(b"x")
    assert (tmp_path / "out" / "kept").exists()


def test_an_output_on_an_object_store_is_copied_there(tmp_path: Path) -> None:
    source = write_set(tmp_path / "set")
    report = reshard([str(source)], "memory://bucket-copy/out", shard_size=4)
    assert report.num_shards == 2
    assert verify(["memory://bucket-copy/out"]).counts == {}
    with pytest.raises(DataError, match="is not empty"):
        reshard([str(source)], "memory://bucket-copy/out", shard_size=4)


def conditions(**options: object) -> Conditions:
    return Conditions(**options)  # type: ignore[arg-type]


def labelled_set(folder: Path) -> Path:
    """Ten samples with fields: number, style, and three captions among them."""
    folder.mkdir()
    samples = []
    for number in range(10):
        fields = {"number": number, "style": "flat" if number % 2 else "round", "exif": {"w": number * 10}}
        samples.append(sample(number, caption=f"Kind  {number % 3}", json=json.dumps(fields).encode()))
    (folder / "a.tar").write_bytes(tar_of(*samples))
    return folder


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (conditions(keys=frozenset({"0001", "0004"})), [1, 4]),
        (conditions(without_keys=frozenset({"0001"}), count=3), [0, 2, 3]),
        (conditions(key_pattern="[78]$"), [7, 8]),
        (conditions(caption_pattern=r"\b1$"), [1, 4, 7]),
        (conditions(where=(Where.parse("number>=8"),)), [8, 9]),
        (conditions(where=(Where.parse("style==flat"), Where.parse("exif.w<40"))), [1, 3]),
        (conditions(where=(Where.parse("style ~ ^r"), Where.parse("number!=0"))), [2, 4, 6, 8]),
        (conditions(max_per_caption=2), [0, 1, 2, 3, 4, 5]),
    ],
)
def test_a_subset_holds_what_fulfils_all_conditions(tmp_path: Path, keep: Conditions, expected: list[int]) -> None:
    source = labelled_set(tmp_path / "set")
    subset([str(source)], str(tmp_path / "out"), keep)
    assert keys(tmp_path / "out") == [f"{number:04d}" for number in expected]


def test_a_fraction_is_decided_by_the_key_alone(tmp_path: Path) -> None:
    source = write_set(tmp_path / "set", num_shards=2, num_samples=40)
    subset([str(source)], str(tmp_path / "half"), conditions(fraction=0.5))
    subset([str(source / "1.tar")], str(tmp_path / "part"), conditions(fraction=0.5))
    assert 25 <= len(keys(tmp_path / "half")) <= 55
    assert set(keys(tmp_path / "part")) == {key for key in keys(tmp_path / "half") if key >= "0040"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--where", "width"], "condition 'width' is none; write FIELD, one of"),
        (["--key-match", "("], "pattern '\\(' is no regular expression"),
        (["--where", "absent==1"], "none of 10 samples fulfils the conditions"),
        (["--keys", "KEYS"], "1 of 2 keys are in no shard: nowhere"),
        (["--keys", "absent.txt"], "the list of keys absent.txt cannot be read"),
    ],
)
def test_a_subset_that_cannot_be_is_explained(
    tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = labelled_set(tmp_path / "set")
    (tmp_path / "keys").write_text("0001\nnowhere\n")
    arguments = [str(tmp_path / "keys") if option == "KEYS" else option for option in options]
    assert main(["subset", str(source), str(tmp_path / "out"), *arguments]) in (2, 3)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_mixture_keeps_its_shares_at_every_place() -> None:
    weights = {"a": 0.6, "b": 0.3, "c": 0.1}
    given: Counter[str] = Counter()
    for total, name in enumerate(islice(schedule(weights), 5000), start=1):
        given[name] += 1
        assert all(abs(given[source] - weights[source] * total) < 2 for source in weights)


def test_a_mixture_of_two_sets(tmp_path: Path) -> None:
    first = write_set(tmp_path / "first", num_shards=2, num_samples=3)
    second = write_set(tmp_path / "second", num_shards=1, num_samples=3)
    report = mix({str(first): 2, str(second): 1}, str(tmp_path / "out"))
    assert report.num_written == 9
    assert keys(tmp_path / "out")[:4] == ["first-0000", "second-0000", "first-0001", "first-0002"]
    with pytest.raises(DataError, match=r"ended after 9 of 20 samples; pass --repeat"):
        mix({str(first): 2, str(second): 1}, str(tmp_path / "more"), count=20)
    mix({str(first): 1, str(second): 1}, str(tmp_path / "long"), count=20, repeat=True)
    assert len(set(keys(tmp_path / "long"))) == 20
    assert keys(tmp_path / "long")[7] == "second-0000-r1"


def test_weights_must_be_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mix", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "must be a name, '=' and a number" in capsys.readouterr().err
    with pytest.raises(DataError, match="weights must be positive"):
        mix({str(tmp_path): 0}, str(tmp_path / "out"))


def test_reading_counts_again_from_zero(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(member_bytes("README", b"x") + tar_of(sample(1)))
    reader = Reader([str(tmp_path)])
    assert len(list(reader)) == len(list(reader)) == 1
    assert isinstance(reader.left_out, Findings)
    assert reader.left_out.counts == {"member-stray": 1}


@pytest.mark.slow
def test_a_copy_killed_at_any_moment_is_absent_or_whole(tmp_path: Path) -> None:
    source = write_set(tmp_path / "set", num_shards=4, num_samples=300)
    command = [sys.executable, "-m", "data_prep", "reshard", str(source), str(tmp_path / "out"), "--shard-size", "100"]
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    seconds, whole = time.monotonic() - started, digests(tmp_path / "out")
    draw, outcomes = random.Random(0), Counter[str]()
    for _ in range(25):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(draw.uniform(0.2, 1.1) * seconds)
        process.kill()
        process.wait()
        exists = (tmp_path / "out").exists()
        assert not exists or digests(tmp_path / "out") == whole
        outcomes["whole" if exists else "absent"] += 1
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    subprocess.run(command, check=True, capture_output=True)
    assert digests(tmp_path / "out") == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "set"]
    assert outcomes["absent"] > 0
