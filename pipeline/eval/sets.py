"""Which evaluation sets are meant: folders and URLs, names below a root, and collections of names.

    addresses(["data/emoji-eval", "s3://bucket/evals/mine"], None, source)      # as they are
    addresses(["wds/imagenet1k"], "s3://bucket/evals", source)                  # s3://bucket/evals/wds_imagenet1k
    addresses(["datacomp"], "/data/evals", source)                              # the 38 sets of DataComp's benchmark
    addresses(["vtab+"], "/data/evals", source)                                 # CLIP_benchmark's VTAB+

A name is CLIP_benchmark's (``wds/vtab/cifar10``); its folder below the root is ``wds_vtab-cifar10`` as in CLIP_benchmark's
uploads, ``wds_vtab-cifar10_test`` as DataComp's downloader writes it, or the same without ``vtab-``. A set that is not there
still has an address: evaluating it fails, and the others go on. ``collections.json`` has the names.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pipeline.data.files import ByteSource
from pipeline.errors import ConfigError, DataError

PREFIX = "wds/"
COLLECTIONS: dict[str, list[str]] = json.loads((Path(__file__).parent / "collections.json").read_text(encoding="utf-8"))


def addresses(wanted: Sequence[str], root: str | None, source: ByteSource) -> tuple[str, ...]:
    """Where each of the wanted sets lies, in order; a collection gives several.

    Args:
        wanted: folders, URLs, names (``wds/NAME``), collections.
        root: folder or URL below which named sets lie.
        source: lists the root.

    Raises:
        ConfigError: a name without a root.
        DataError: the root cannot be listed for a reason other than that the place lists nothing.
    """
    expanded = [name for one in wanted for name in _names(one)]
    named = [name for name in expanded if name.startswith(PREFIX)]
    if not named:
        return tuple(expanded)
    if root is None:
        raise ConfigError(f"{named[0]} is the name of a set; say where named sets lie: --root DIR_OR_URL (eval.root)")
    root = root.rstrip("/")
    there = _entries(root, source)
    return tuple(f"{root}/{_folder(name, there)}" if name.startswith(PREFIX) else name for name in expanded)


def folders(name: str) -> list[str]:
    """The folders that a named set may have, the usual one first.

    >>> folders("wds/vtab/cifar10")[:2], folders("wds/cifar10")[2]
    (['wds_vtab-cifar10', 'wds_vtab-cifar10_test'], 'wds_vtab-cifar10')
    """
    stem = name.removeprefix(PREFIX).replace("/", "-")
    other = stem.removeprefix("vtab-") if stem.startswith("vtab-") else f"vtab-{stem}"
    return [f"wds_{one}{ending}" for one in (stem, other) for ending in ("", "_test")]


def _folder(name: str, there: set[str]) -> str:
    return next((folder for folder in folders(name) if folder in there), folders(name)[0])


def _names(one: str) -> list[str]:
    if one in COLLECTIONS and not Path(one).is_dir():
        return [PREFIX + name for name in COLLECTIONS[one]]
    return [one]


def _entries(root: str, source: ByteSource) -> set[str]:
    """What lies below the root; nothing where it does not exist or, as with plain HTTP, cannot be listed."""
    try:
        return set(source.names(root))
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise DataError(f"{root} cannot be listed: {error}; check --root (eval.root) and the credentials") from error
