"""Which words stand for a class: the set's, open_clip's, or a file's."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest

from pipeline.config import DataConfig, EvalConfig
from pipeline.data.evalset import EvalSet
from pipeline.data.storage import open_storage
from pipeline.errors import DataError
from pipeline.eval.prompts import ClassTexts, class_texts, prompts
from tests.eval.helpers import write_levels

LOCAL = open_storage(DataConfig())


def test_prompts_go_class_by_class() -> None:
    assert prompts(["dog", "cat"], ["{c}", "a {c}.", "one {}"]) == (
        ("dog", "a dog.", "one dog"),
        ("cat", "a cat.", "one cat"),
    )
    assert prompts(["{brace}"], ["a {c}"]) == (("a {brace}",),)


def test_prompts_refuse_what_cannot_be_filled_in() -> None:
    with pytest.raises(DataError, match=r"template 'a photo' has no place for the class name; write \{c\}"):
        prompts(["dog"], ["a photo"])
    with pytest.raises(DataError, match="got 0 and 1"):
        prompts([], ["{c}"])


def levels(tmp_path: Path, **asked: str) -> ClassTexts:
    """The classes "level 0", "level 1", "level 2" of a set, as asked for."""
    folder = tmp_path / "levels"
    evalset = EvalSet.open(folder if folder.exists() else write_levels(folder, range(3)))
    return class_texts(evalset, EvalConfig(**asked), LOCAL)


def test_the_set_s_own_words_are_the_usual_ones(tmp_path: Path) -> None:
    found = levels(tmp_path)
    assert found.prompts[2] == ("level 2", "a level level 2")
    assert found.provenance() == levels(tmp_path, templates="set", classnames="set").provenance()
    assert (found.provenance()["classes"], found.provenance()["templates"]) == (3, 2)


def test_open_clip_s_templates_are_had_by_name(tmp_path: Path) -> None:
    openai, simple = levels(tmp_path, templates="openai"), levels(tmp_path, templates="simple")
    assert openai.prompts[1] == tuple(template("level 1") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)
    assert simple.prompts[0] == tuple(template("level 0") for template in open_clip.SIMPLE_IMAGENET_TEMPLATES)
    assert (openai.provenance()["templates"], simple.provenance()["templates"]) == (80, 7)
    assert openai.provenance()["templates_sha256"] != simple.provenance()["templates_sha256"]


def test_files_bring_templates_names_and_sentences(tmp_path: Path) -> None:
    (tmp_path / "templates.txt").write_text("grey of {c}\n{}\n")
    (tmp_path / "names.txt").write_text("black\ngrey\nwhite\n")
    (tmp_path / "cupl.json").write_text(
        json.dumps({"black": ["night"], "grey": ["fog", "a mouse"], "white": ["snow"], "x": []})
    )
    names = str(tmp_path / "names.txt")
    assert levels(tmp_path, templates=str(tmp_path / "templates.txt"), classnames=names).prompts[2] == (
        "grey of white",
        "white",
    )
    spoken = levels(tmp_path, templates=str(tmp_path / "cupl.json"), classnames=names)
    assert spoken.prompts == (("night",), ("fog", "a mouse"), ("snow",))
    before = spoken.provenance()
    assert (before["templates"], spoken.templates) == (4 / 3, ())
    (tmp_path / "cupl.json").write_text(json.dumps({"black": ["night"], "grey": ["fog"], "white": ["snow"]}))
    after = levels(tmp_path, templates=str(tmp_path / "cupl.json"), classnames=names).provenance()
    assert (after["templates"], after["classnames_sha256"]) == (1, before["classnames_sha256"])
    assert after["templates_sha256"] != before["templates_sha256"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"templates": "opnai"}, "eval.templates = opnai: no such file, or it is empty; allowed: set, openai, simple"),
        ({"classnames": "{tmp}/two.txt"}, r"has 3 classes, .*two.txt \(eval.classnames\) names 2"),
        ({"classnames": "openai"}, r"has 3 classes, openai \(eval.classnames\) names 1000"),
        ({"templates": "{tmp}/part.json"}, "no sentences for class 'level 1'; every class of the set needs some"),
        ({"templates": "{tmp}/list.json"}, r'expected \{"class name": \["a sentence", ...\], ...\}'),
        ({"templates": "{tmp}/empty.json"}, "class 'level 2' needs a list of at least one sentence"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path: Path, asked: dict[str, str], words: str) -> None:
    (tmp_path / "two.txt").write_text("a\nb\n")
    (tmp_path / "part.json").write_text('{"level 0": ["x"]}')
    (tmp_path / "list.json").write_text('["x"]')
    (tmp_path / "empty.json").write_text('{"level 0": ["x"], "level 1": ["y"], "level 2": []}')
    with pytest.raises(DataError, match=words):
        levels(tmp_path, **{key: value.format(tmp=tmp_path) for key, value in asked.items()})
