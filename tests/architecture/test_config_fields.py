"""A setting that nothing reads is a promise that nothing keeps: every field of the schema is read somewhere."""

from __future__ import annotations

import ast
import dataclasses
import inspect

from pipeline import config
from tests.architecture import guards
from tests.architecture.guards import Sources, planted

SCHEMA = [
    item
    for _, item in inspect.getmembers(config, dataclasses.is_dataclass)
    if inspect.isclass(item) and item.__module__.startswith(config.__name__)
]


def unread(fields: set[str], sources: Sources) -> list[str]:
    """Fields that no file reads as an attribute."""
    read = {
        node.attr
        for source in sources.values()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    return sorted(fields - read)


def test_every_setting_is_read_outside_the_schema() -> None:
    readers = {name: source for name, source in guards.project("pipeline").items() if not name.startswith("pipeline.config")}
    fields = {field.name for part in SCHEMA for field in dataclasses.fields(part)}
    assert len(SCHEMA) >= 10
    assert len(fields) >= 50
    assert unread(fields, readers) == []


def test_an_unread_setting_is_found() -> None:
    readers = planted(pipeline__x="def f(cfg):\n    cfg.written = 1\n    return cfg.optim.lr")
    assert unread({"lr", "optim", "momentum", "written"}, readers) == ["momentum", "written"]
