"""Sizes and documentation: what is long hides what it does. The numbers are ratchets, not targets."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.architecture import guards
from tests.architecture.guards import REPOSITORY, Source, Sources, planted

FILE_LINES = 400
FUNCTION_LINES = 60
LONGER_FUNCTIONS = {"pipeline/train.py": {"train": 120}}
"""The story of a run may be longer: it is read from top to bottom."""
README_LINES = 200
FIRST_COMMAND_LINE = 25

Function = ast.FunctionDef | ast.AsyncFunctionDef
PROJECT = guards.project()


def every_source() -> dict[str, Source]:
    """The rooms, and the tests and benchmarks beside them."""
    return guards.project(*guards.ROOMS, "tests", "benchmarks")


def long_files(sources: Sources) -> list[str]:
    """Files over the budget."""
    lengths = {source.path: source.text.count("\n") for source in sources.values()}
    return [f"{path}: {length} lines, at most {FILE_LINES}" for path, length in lengths.items() if length > FILE_LINES]


def long_functions(sources: Sources) -> list[str]:
    """Functions over the budget, decorators not counted."""
    found = []
    for source in sources.values():
        for node in ast.walk(source.tree):
            if isinstance(node, Function):
                limit = LONGER_FUNCTIONS.get(source.path, {}).get(node.name, FUNCTION_LINES)
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > limit:
                    found.append(f"{source.path}:{node.lineno} {node.name}: {length} lines, at most {limit}")
    return found


def public_functions(source: Source) -> Iterator[Function]:
    """Functions and methods whose name, and whose class's name, has no leading underscore; nested ones do not count."""
    for node in source.tree.body:
        members = node.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_") else [node]
        for member in members:
            if isinstance(member, Function) and not member.name.startswith("_"):
                yield member


def undocumented(sources: Sources) -> list[str]:
    """Modules and public functions without a docstring."""
    found = [f"{source.path}: no module docstring" for source in sources.values() if not ast.get_docstring(source.tree)]
    for source in sources.values():
        for node in public_functions(source):
            if not ast.get_docstring(node):
                found.append(f"{source.path}:{node.lineno} {node.name}: no docstring")
    return found


def unannotated(sources: Sources) -> list[str]:
    """Public functions with a parameter or a result that has no type."""
    found = []
    for source in sources.values():
        for node in public_functions(source):
            spec = node.args
            named = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, *filter(None, (spec.vararg, spec.kwarg))]
            bare = [arg.arg for arg in named if arg.annotation is None and arg.arg not in ("self", "cls")]
            bare += ["return"] if node.returns is None else []
            if bare:
                found.append(f"{source.path}:{node.lineno} {node.name}: no type for {', '.join(bare)}")
    return found


def readme_violations(text: str) -> list[str]:
    """A README that is long, or starts with something else than a command to try."""
    lines = text.splitlines()
    found = [f"README.md: {len(lines)} lines, at most {README_LINES}"] if len(lines) > README_LINES else []
    fences = [number for number, line in enumerate(lines, start=1) if line.startswith("```")]
    if not fences or fences[0] + 1 >= FIRST_COMMAND_LINE:
        found.append(f"README.md: no command before line {FIRST_COMMAND_LINE}")
    return found


def test_enough_was_examined() -> None:
    assert len(every_source()) >= 70
    assert sum(len(list(public_functions(source))) for source in PROJECT.values()) >= 150


def test_files_are_short() -> None:
    assert long_files(every_source()) == []


def test_functions_are_short() -> None:
    assert long_functions(PROJECT) == []
    names = {node.name for node in ast.walk(PROJECT["pipeline.train"].tree) if isinstance(node, Function)}
    assert set(LONGER_FUNCTIONS["pipeline/train.py"]) <= names, "the exception is for a function that exists"


def test_public_functions_and_modules_are_documented() -> None:
    assert undocumented(PROJECT) == []


def test_public_functions_are_annotated() -> None:
    assert unannotated(PROJECT) == []


def test_the_readme_is_short_and_starts_with_a_command() -> None:
    assert readme_violations((REPOSITORY / "README.md").read_text(encoding="utf-8")) == []


def test_a_long_file_and_a_long_function_are_found() -> None:
    body = "def f():\n" + "    x = 1\n" * FUNCTION_LINES
    assert long_functions(planted(slurm__x=body)) == [f"slurm/x.py:1 f: {FUNCTION_LINES + 1} lines, at most {FUNCTION_LINES}"]
    assert long_functions(planted(pipeline__train=body.replace("def f", "def train"))) == []
    assert long_files(planted(slurm__x="x = 1\n" * (FILE_LINES + 1))) == [
        f"slurm/x.py: {FILE_LINES + 1} lines, at most {FILE_LINES}"
    ]


def test_missing_docstrings_are_found() -> None:
    text = '"""Module."""\nclass A:\n    def shown(self): ...\n    def _hidden(self): ...\n'
    text += "class _B:\n    def f(self): ...\n"
    assert undocumented(planted(slurm__x=text)) == ["slurm/x.py:3 shown: no docstring"]
    assert undocumented(planted(slurm__y="")) == ["slurm/y.py: no module docstring"]


@pytest.mark.parametrize(
    ("code", "bare"),
    [
        ("def f(a, *, b: int) -> None: ...", ["a"]),
        ("def f(*args, **kwargs): ...", ["args", "kwargs", "return"]),
        ("class A:\n    def f(self, a: int) -> int: ...", []),
        ("async def f(a: int): ...", ["return"]),
    ],
)
def test_missing_types_are_found(code: str, bare: list[str]) -> None:
    lines = unannotated(planted(slurm__x=code))
    assert [line.partition("no type for ")[2] for line in lines] == ([", ".join(bare)] if bare else [])


def test_a_readme_without_an_early_command_or_too_long_is_found() -> None:
    assert readme_violations("# Name\n\n```\nmake smoke\n```\n") == []
    assert readme_violations("# Name\n") == ["README.md: no command before line 25"]
    assert len(readme_violations("\n" * 24 + "```\nmake smoke\n```\n" + "\n" * 200)) == 2
