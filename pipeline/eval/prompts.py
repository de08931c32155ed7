"""What a class is called and what the text tower is told about it: from the set, from open_clip, or from a file.

    classes = class_texts(evalset, EvalConfig(templates="openai"), source)
    classes.names, classes.prompts[3]           # names of C classes; the texts that stand for class 3

    templates = set        the set's own (the default)          classnames = set       the set's own (the default)
    templates = openai     the 80 of CLIP for ImageNet          classnames = openai    CLIP's 1,000 for ImageNet
    templates = simple     CLIP's 7 that do best together       classnames = FILE      one name per line
    templates = FILE.txt   one per line, {c} or {} for the class
    templates = FILE.json  {class name: [prompt, ...]}, whole sentences, as CuPL writes them (Pratt et al. 2023)

What is not the set's own is read from open_clip or the file each time; a result keeps the hash of what was used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config import EvalConfig
from pipeline.data.evalset import EvalSet, read_lines
from pipeline.data.files import ByteSource
from pipeline.errors import DataError

OWN = "set"
NAMED = (OWN, "openai", "simple")
"""What is no file."""


@dataclass(frozen=True)
class ClassTexts:
    """Names of C classes and the prompts of each; ``templates`` is empty where every class has sentences of its own."""

    names: tuple[str, ...]
    prompts: tuple[tuple[str, ...], ...]
    templates: tuple[str, ...]

    def provenance(self) -> dict[str, Any]:
        """How many there are, and the hashes that a result holds for."""
        texts: list[Any] = list(self.templates) or [list(texts) for texts in self.prompts]
        return {
            "classes": len(self.names),
            "templates": len(self.templates) or sum(map(len, self.prompts)) / len(self.prompts),
            "classnames_sha256": _sha256(list(self.names)),
            "templates_sha256": _sha256(texts),
        }


def class_texts(evalset: EvalSet, asked: EvalConfig, source: ByteSource) -> ClassTexts:
    """The classes of a set and their prompts, as asked for.

    Raises:
        DataError: a file cannot be used, or does not fit the set's classes.
    """
    names = evalset.classnames if asked.classnames == OWN else classnames(asked.classnames, source)
    if evalset.classnames and len(names) != len(evalset.classnames):
        raise DataError(
            f"{evalset.address} has {len(evalset.classnames)} classes, {asked.classnames} (eval.classnames) names {len(names)}"
        )
    if asked.templates.endswith(".json"):
        return ClassTexts(names, _sentences(asked.templates, names, source), ())
    chosen = evalset.templates if asked.templates == OWN else templates(asked.templates, source)
    return ClassTexts(names, prompts(names, chosen), chosen)


def prompts(names: Sequence[str], chosen: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Every template with every class name in place of ``{c}`` or ``{}``: T texts for each of C classes.

    Raises:
        DataError: no classes or no templates, or a template without a place for the class name.
    """
    if not names or not chosen:
        raise DataError(f"zero-shot needs class names and templates, got {len(names)} and {len(chosen)}")
    for template in chosen:
        if "{c}" not in template and "{}" not in template:
            raise DataError(f"template {template!r} has no place for the class name; write {{c}} where it belongs")
    return tuple(tuple(template.replace("{c}", name).replace("{}", name) for template in chosen) for name in names)


def templates(wanted: str, source: ByteSource) -> tuple[str, ...]:
    """Templates by name or from a text file, with ``{c}`` for the class name. Raises DataError where there are none."""
    if wanted in ("openai", "simple"):
        import open_clip

        functions = open_clip.OPENAI_IMAGENET_TEMPLATES if wanted == "openai" else open_clip.SIMPLE_IMAGENET_TEMPLATES
        return tuple(function("{c}") for function in functions)
    return _lines(wanted, "eval.templates", f"{OWN}, openai, simple, a text file or a .json file", source)


def classnames(wanted: str, source: ByteSource) -> tuple[str, ...]:
    """Class names by name or from a text file. Raises DataError where there are none."""
    if wanted == "openai":
        import open_clip

        return tuple(open_clip.IMAGENET_CLASSNAMES)
    return _lines(wanted, "eval.classnames", f"{OWN}, openai or a text file", source)


def _lines(path: str, setting: str, allowed: str, source: ByteSource) -> tuple[str, ...]:
    lines = read_lines(path, source)
    if not lines:
        raise DataError(f"{setting} = {path}: no such file, or it is empty; allowed: {allowed}")
    return tuple(lines)


def _sentences(path: str, names: Sequence[str], source: ByteSource) -> tuple[tuple[str, ...], ...]:
    lines = read_lines(path, source)
    try:
        found = json.loads("\n".join(lines or ()))
        sentences = tuple(tuple(found[name]) for name in names)
    except KeyError as error:
        raise DataError(
            f"eval.templates = {path}: no sentences for class {error}; every class of the set needs some"
        ) from error
    except (ValueError, TypeError) as error:
        raise DataError(f'eval.templates = {path}: expected {{"class name": ["a sentence", ...], ...}} ({error})') from error
    wrong = [
        name for name, texts in zip(names, sentences, strict=True) if not texts or not all(isinstance(t, str) for t in texts)
    ]
    if wrong:
        raise DataError(f"eval.templates = {path}: class {wrong[0]!r} needs a list of at least one sentence")
    return sentences


def _sha256(texts: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()
