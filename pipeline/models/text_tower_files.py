"""What an open_clip model with a Hugging Face text tower needs beside its weights: the files that describe that tower.

    config, tower = pack(config, folder)        # folder/text_tower/: config.json, tokenizer files; config names them there
    model = unpack(cfg.model, folder)           # the same names, found again wherever the folder lies now

open_clip's configuration names such a tower by ``text_cfg.hf_model_name``: a name on a model hub, or a folder. A folder of the
machine that trained is nowhere else, so an export takes its files along. open_clip looks a relative name up in the working
directory, not beside its own configuration: a packed export is loaded from inside its folder (``contextlib.chdir``). This
project's own loader needs no such care.
"""

from __future__ import annotations

import copy
import dataclasses
import shutil
from pathlib import Path
from typing import Any

from pipeline.config import ModelConfig

TEXT_TOWER = "text_tower"
NAMES = ("hf_tokenizer_name", "hf_model_name")
"""Settings that may name a folder. The tower's files are copied last: its ``config.json`` is the one that counts."""
DESCRIPTIONS = (".json", ".txt", ".model")
"""Configuration, vocabulary, merges, SentencePiece; weights have other suffixes, and the export has its own."""


def pack(config: dict[str, Any], folder: Path) -> tuple[dict[str, Any], str | None]:
    """Copy what describes the text tower into ``folder/text_tower``, if it lies in a local folder.

    Args:
        config: an open_clip configuration; not changed.
        folder: an export in the making.

    Returns:
        The configuration with names relative to ``folder``, and what loading will look up for the tower: ``text_tower``, a
        name on a model hub, or None where the tower is open_clip's own.
    """
    config = copy.deepcopy(config)
    text_cfg = config["text_cfg"]
    if not text_cfg.get("hf_model_name"):
        return config, None
    for key in NAMES:
        source = Path(text_cfg.get(key) or "")
        if text_cfg.get(key) and source.is_dir():
            (folder / TEXT_TOWER).mkdir(exist_ok=True)
            for file in sorted(source.iterdir()):
                if file.is_file() and file.suffix in DESCRIPTIONS:
                    shutil.copyfile(file, folder / TEXT_TOWER / file.name)
            text_cfg[key] = TEXT_TOWER
    return config, str(text_cfg["hf_model_name"])


def unpack(model: ModelConfig, folder: Path) -> ModelConfig:
    """The settings with names of ``pack`` as paths: files of the text tower are looked for in ``folder``."""
    if model.inline is None or not (folder / TEXT_TOWER).is_dir():
        return model
    inline = copy.deepcopy(model.inline)
    for key in NAMES:
        if inline.get("text_cfg", {}).get(key) == TEXT_TOWER:
            inline["text_cfg"][key] = str(folder / TEXT_TOWER)
    return dataclasses.replace(model, inline=inline)


def advice(tower: str | None) -> str:
    """The end of "put the folder's own path for PATH" in a model card, for what ``pack`` returned."""
    if tower is None:
        return ""
    if tower != TEXT_TOWER:
        return f"; the text tower's configuration is fetched by its name on a model hub, `{tower}`"
    return (
        f", and load from inside the folder, `with contextlib.chdir(PATH)`: open_clip looks in the working directory for "
        f"`{TEXT_TOWER}/`, which says what the text tower is"
    )
