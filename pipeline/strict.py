"""Strict YAML into frozen dataclasses, and back. Knows no setting by name; ``config.py`` holds those.

What "strict" means here, each against a trap that has cost others a run:

- an unknown key is an error that names the nearest known one (a typo is never silently a default);
- a key given twice is an error (PyYAML keeps the last one);
- ``1e-4`` is a number (YAML 1.1 wants ``1.0e-4``), ``no`` and ``off`` are strings (YAML 1.1 makes them False);
- a value of the wrong type is an error with its path; an int is accepted where a float is meant, nothing else is converted.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml

from pipeline.errors import ConfigError

T = TypeVar("T")

_FLOAT = re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*([eE][-+]?\d+)|\d[\d_]*\.[\d_]*|\.\d[\d_]*([eE][-+]?\d+)?|\.inf|\.nan)$")
_BOOL = re.compile(r"^(true|false)$")


class _Loader(yaml.SafeLoader):
    """SafeLoader without YAML 1.1's surprises, and with duplicate keys refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise ConfigError(f"{self._where(key_node)}: key {key!r} is given twice; remove one")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)

    def _where(self, node: yaml.Node) -> str:
        return f"{self.name} line {node.start_mark.line + 1}"


_Loader.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if tag.rsplit(":", 1)[-1] not in ("bool", "float", "timestamp")]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOL, list("tf"))


def parse_yaml(text: str, name: str = "<string>") -> Any:
    """Parse YAML text by the rules above; ``name`` is used in error messages."""
    loader = _Loader(text)
    loader.name = name
    try:
        return loader.get_single_data()
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{name} is not valid YAML: {error}") from error
    finally:
        loader.dispose()


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Parse a YAML file that must hold a mapping.

    Raises:
        ConfigError: the file is missing, unreadable, not YAML, or not a mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        near = difflib.get_close_matches(Path(path).name, [p.name for p in Path(path).parent.glob("*.yaml")], n=1)
        raise ConfigError(f"config file {path} does not exist" + (f"; did you mean {near[0]}?" if near else "")) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} cannot be read: {error}") from error
    tree = parse_yaml(text, name=str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"config file {path} must hold a mapping of settings, found {type(tree).__name__}")
    return tree


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Apply one override to nested dicts in place: ``key.sub=value`` (the value is YAML), or a YAML file of such keys.

    What a file says about a group's key replaces what was there; keys that it does not mention stay.
    """
    if override.endswith((".yaml", ".yml")) and "=" not in override:
        for group, settings in read_yaml(override).items():
            merged = (
                {**tree[group], **settings} if isinstance(tree.get(group), dict) and isinstance(settings, dict) else settings
            )
            tree[group] = merged
        return
    path, equals, value = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"override {override!r} is neither key.sub=value nor a .yaml file")
    *parents, last = path.split(".")
    node = tree
    for part in parents:
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            raise ConfigError(f"override {override!r}: {part} holds a value, not a group of settings")
        node = child
    node[last] = parse_yaml(value, name=f"override {override!r}")


def build(cls: type[T], tree: Any, path: str = "") -> T:
    """Build the dataclass ``cls`` from nested dicts.

    Raises:
        ConfigError: unknown key (naming the nearest one), missing required key, or a value of the wrong type, with its path.
    """
    if not isinstance(tree, dict):
        raise ConfigError(f"{path or cls.__name__}: expected a group of settings, got {_show(tree)}")
    assert dataclasses.is_dataclass(cls), cls
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in tree:
        if key not in fields:
            raise ConfigError(unknown_key(_join(path, str(key)), str(key), fields))
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for name, spec in fields.items():
        where = _join(path, name)
        if name in tree:
            values[name] = _coerce(hints[name], tree[name], where)
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where} is required and not set")
    return typing.cast(T, cls(**values))


def unknown_key(where: str, key: str, known: typing.Iterable[str]) -> str:
    """The message for a key that does not exist: names the nearest one, or lists all."""
    known = sorted(known)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
    return f"{where}: unknown key {key!r}; {hint}"


def to_yaml(value: Any) -> str:
    """A dataclass as YAML text with all defaults written out."""
    return yaml.safe_dump(_plain(dataclasses.asdict(value)), sort_keys=False, allow_unicode=True, width=110)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _coerce(hint: Any, value: Any, path: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        (inner,) = (arg for arg in args if arg is not type(None))
        return _coerce(inner, value, path)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type[Any], hint), value, path)
    if origin is Literal:
        if value not in args:
            near = difflib.get_close_matches(str(value), [str(arg) for arg in args], n=1)
            raise ConfigError(
                f"{path} = {_show(value)}: must be one of {', '.join(map(str, args))}"
                + (f" (did you mean {near[0]!r}?)" if near else "")
            )
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        inner_hints = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(value) != len(inner_hints):
            raise ConfigError(f"{path} = {_show(value)}: expected {len(inner_hints)} values, got {len(value)}")
        return tuple(
            _coerce(inner, item, f"{path}[{i}]") for i, (inner, item) in enumerate(zip(inner_hints, value, strict=True))
        )
    if origin is dict and isinstance(value, dict):
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and isinstance(value, bool) == (hint is bool):
        return value
    raise ConfigError(f"{path} = {_show(value)}: expected {_name(hint)}, got {type(value).__name__}")


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _name(hint: Any) -> str:
    names = {"tuple": "a list", "dict": "a group of settings", "str": "text"}
    plain = get_origin(hint) or hint
    return names.get(getattr(plain, "__name__", ""), getattr(plain, "__name__", str(hint)))
