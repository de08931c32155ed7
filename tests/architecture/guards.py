"""What the tests of this folder share: the sources as parsed trees, and the laws about who imports whom.

A guard takes sources (or texts) and returns one line per violation, so the same function is shown the project, where it
must stay silent, and a planted violation, where it must speak.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
ROOMS = ("pipeline", "data_prep", "slurm")

TIERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("0 words", ("pipeline.config", "pipeline.strict", "pipeline.schedule", "pipeline.errors")),
    ("1 ground", ("pipeline.dist", "pipeline.features", "pipeline.pieces", "pipeline.data.plan", "pipeline.data.samples",
                  "pipeline.data.shards", "pipeline.data.tar", "pipeline.data.drops",
                  "pipeline.data.files", "pipeline.data.remote", "pipeline.data.cache", "pipeline.data.storage",
                  "pipeline.data.members", "pipeline.data.plain", "pipeline.data.mixture", "pipeline.data.unindexed",
                  "pipeline.data.sources")),
    ("2 parts", ("pipeline.data", "pipeline.losses", "pipeline.models", "pipeline.logs")),
    ("2 parts: watching a run", ("pipeline.watching",)),
    ("3 assemblies: engine, checkpoint", ("pipeline.engine", "pipeline.checkpoint", "pipeline.provenance")),
    ("3 assemblies: trained", ("pipeline.trained",)),
    ("3 assemblies: export", ("pipeline.export",)),
    ("3 assemblies: eval", ("pipeline.eval",)),
    ("4 entry points: the command", ("pipeline.cli",)),
    ("4 entry points: embedding files", ("pipeline.vectors",)),
    ("4 entry points: tools", ("pipeline.eval.run", "pipeline.report", "pipeline.search",
                               "pipeline.bench_loader", "pipeline.weights", "data_prep", "slurm")),
    ("4 entry points: train", ("pipeline.train",)),
    ("4 entry points: whole runs", ("pipeline.smoke", "pipeline.doctor", "pipeline.__main__", "pipeline")),
)  # fmt: skip
"""From the bottom up. A module belongs to the longest name that it is or lies in."""

FORBIDDEN = (
    ("pipeline.losses", "pipeline.dist", "the world is an argument of a loss"),
    ("pipeline.models", "pipeline.dist", "a model does not know its world"),
    ("pipeline.eval", "pipeline.engine", "evaluation works on weights, whoever trained them"),
    ("pipeline.eval", "pipeline.losses", "evaluation gathers by index, without gradients"),
    ("slurm", "data_prep", "starting a run and making its data are separate"),
    ("data_prep", "slurm", "starting a run and making its data are separate"),
)

SCOPES = {
    "deepspeed": ("pipeline.engine",),
    "torch.distributed": ("pipeline.dist", "pipeline.losses.gather", "pipeline.engine"),
    "submitit": ("slurm",),
}
"""Library -> the only modules that may name it."""

TORCH_LIBRARIES = ("torch", "torchvision", "deepspeed", "open_clip", "timm", "webdataset")
TORCH_FREE = (
    "slurm",
    "data_prep",
    "pipeline.config",
    "pipeline.strict",
    "pipeline.schedule",
    "pipeline.errors",
    "pipeline.cli",
    "pipeline.data.plan",
    "pipeline.data.samples",
    "pipeline.data.sources",
)


@dataclass(frozen=True)
class Import:
    """One imported name. ``eager``: at import time; ``typing``: only for the type checker."""

    target: str
    line: int
    eager: bool
    typing: bool


@dataclass(frozen=True)
class Source:
    """A parsed file; ``module`` is its dotted name (a package's for ``__init__.py``)."""

    module: str
    path: str
    text: str
    is_package: bool = False

    @property
    def tree(self) -> ast.Module:
        """The syntax tree."""
        return ast.parse(self.text, filename=self.path)


Sources = Mapping[str, Source]


def project(*rooms: str) -> dict[str, Source]:
    """Every module of the named rooms (all by default) by dotted name."""
    found = {}
    for room in rooms or ROOMS:
        for path in sorted((REPOSITORY / room).rglob("*.py")):
            relative = path.relative_to(REPOSITORY)
            parts = relative.with_suffix("").parts
            is_package = parts[-1] == "__init__"
            module = ".".join(parts[:-1] if is_package else parts)
            found[module] = Source(module, str(relative), path.read_text(encoding="utf-8"), is_package)
    return found


def planted(**texts: str) -> dict[str, Source]:
    """Sources made up for a test; ``__`` in a keyword stands for a dot: ``planted(slurm__x="import torch")``."""
    return {
        name: Source(name, name.replace(".", "/") + ".py", text)
        for name, text in ((key.replace("__", "."), text) for key, text in texts.items())
    }


def imports(source: Source, known: Iterable[str]) -> list[Import]:
    """Every import of a file. ``from package import name`` means the module ``package.name`` where that is known."""
    known = set(known)
    found: list[Import] = []

    def visit(node: ast.AST, eager: bool, typing: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, eager, typing) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(source, node)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                target = inner if inner in known or inner in SCOPES else base
                found.append(Import(target, node.lineno, eager, typing))
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                visit(child, eager, True)
            for child in node.orelse:
                visit(child, eager, typing)
        else:
            lazy = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            for child in ast.iter_child_nodes(node):
                visit(child, eager and not lazy, typing)

    visit(source.tree, True, False)
    return found


def _absolute(source: Source, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = source.module.split(".")
    package = parts[: len(parts) - node.level + (1 if source.is_package else 0)]
    return ".".join([*package, *([node.module] if node.module else [])])


def within(module: str, name: str) -> bool:
    """Whether ``module`` is ``name`` or lies in it."""
    return module == name or module.startswith(name + ".")


def tier(module: str) -> int:
    """Index into ``TIERS``; -1 for a module that no tier names."""
    matches = [(len(name), index) for index, (_, names) in enumerate(TIERS) for name in names if within(module, name)]
    if module.count(".") == 1 and module.startswith("pipeline."):  # a new top-level file must choose its tier
        matches = [match for match in matches if match[0] > len("pipeline")]
    return max(matches)[1] if matches else -1


def room(module: str) -> str:
    """The folder of a module (``pipeline.data``, ``slurm``); the words are one room, each other top file its own."""
    if tier(module) == 0:
        return "words"
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "pipeline" else parts[0]


def layer_violations(sources: Sources) -> list[str]:
    """Imports that go up, or sideways into another room, and modules without a tier."""
    found = [f"{source.path}: no tier names it; add it to TIERS" for source in sources.values() if tier(source.module) < 0]
    for source, item in _inner_imports(sources):
        mine, theirs = tier(source.module), tier(item.target)
        if theirs < mine or (theirs == mine and room(source.module) == room(item.target)):
            continue
        where = f"{source.path}:{item.line}"
        found.append(f"{where}: {source.module} ({TIERS[mine][0]}) imports {item.target} ({TIERS[theirs][0]})")
    for source, item in _inner_imports(sources):
        for name, forbidden, reason in FORBIDDEN:
            if within(source.module, name) and within(item.target, forbidden) and not item.typing:
                found.append(f"{source.path}:{item.line}: {name} must not import {forbidden}: {reason}")
    return found


def _inner_imports(sources: Sources) -> Iterator[tuple[Source, Import]]:
    for source in sources.values():
        for item in imports(source, sources):
            if item.target in sources and item.target != source.module:
                yield source, item


def cycles(sources: Sources) -> list[str]:
    """Import cycles, lazy imports included: ``a -> b -> a``."""
    graph: dict[str, list[str]] = {name: [] for name in sources}
    for source, item in _inner_imports(sources):
        graph[source.module].append(item.target)
    found: list[str] = []
    done: set[str] = set()

    def walk(name: str, trail: list[str]) -> None:
        if name in trail:
            found.append(" -> ".join([*trail[trail.index(name) :], name]))
        elif name not in done:
            for target in graph[name]:
                walk(target, [*trail, name])
            done.add(name)

    for name in graph:
        walk(name, [])
    return found


def scope_violations(sources: Sources) -> list[str]:
    """Libraries named outside the modules that ``SCOPES`` reserves them for, attributes (``torch.distributed``) too."""
    found = []
    for source in sources.values():
        named = [(item.target, item.line) for item in imports(source, sources) if not item.typing]
        named += [(ast.unparse(node), node.lineno) for node in ast.walk(source.tree) if isinstance(node, ast.Attribute)]
        for library, owners in SCOPES.items():
            if any(within(source.module, owner) for owner in owners):
                continue
            lines = sorted({line for name, line in named if within(name, library)})
            found += [f"{source.path}:{line}: {library} belongs to {', '.join(owners)} only" for line in lines]
    return found


def torch_free_violations(sources: Sources, names: Iterable[str] = TORCH_FREE) -> list[str]:
    """Ways by which a module that must do without torch reaches it, through lazy imports too."""
    found = []
    for start in sources:
        if not any(within(start, name) for name in names):
            continue
        trail = _way_to(sources, start, TORCH_LIBRARIES, eager_only=False)
        if trail:
            found.append(" -> ".join(trail))
    return found


def eager_torch_violations(sources: Sources, names: Iterable[str]) -> list[str]:
    """Ways by which merely importing a module (as ``--help`` does) loads torch."""
    trails = [_way_to(sources, name, TORCH_LIBRARIES, eager_only=True) for name in names]
    return [" -> ".join(trail) for trail in trails if trail]


def _way_to(sources: Sources, start: str, libraries: tuple[str, ...], eager_only: bool) -> list[str]:
    """A chain of imports from ``start`` to one of the libraries; empty where there is none."""
    todo, seen = [[start]], {start}
    while todo:
        trail = todo.pop()
        source = sources.get(trail[-1])
        if source is None:
            continue
        parents = [".".join(source.module.split(".")[:n]) for n in range(1, source.module.count(".") + 1)]
        items = [item for item in imports(source, sources) if not item.typing and (item.eager or not eager_only)]
        for target in [*parents, *(item.target for item in items)]:
            if target.split(".")[0] in libraries:
                return [*trail, target]
            if target not in seen:
                seen.add(target)
                todo.append([*trail, target])
    return []
