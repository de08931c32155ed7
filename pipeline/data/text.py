"""Which caption a sample is shown with, and what is done to its words. Layer 2; no torch.

    caption = train_caption(sample.captions, cfg.augment.text, sample_rng(seed, epoch, sample.key))

The choice among several captions, word operations in the manner of EDA (Wei and Zou, 2019: random deletion, swap, and
insertion, the last with the caption's own words, since no list of synonyms is brought along), and a template. Deterministic
for each (seed, epoch, key). Without word operations and templates, the default, a caption passes unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.config import TextConfig

DRAWS = 3
"""Random numbers that decide about template and edits, used or not."""


def choose(captions: Sequence[str], cfg: TextConfig, rng: np.random.Generator) -> str:
    """One of the captions; one number is drawn from ``rng``, whatever the settings."""
    number = int(rng.random() * len(captions))
    return captions[0 if cfg.caption == "first" else number]


def is_on(cfg: TextConfig) -> bool:
    """Whether anything but the choice among captions is asked for."""
    return cfg.edit_probability > 0 or cfg.template_probability > 0


def augmented(caption: str, cfg: TextConfig, rng: np.random.Generator) -> str:
    """The caption with its words edited and set into a template, as often as ``cfg`` says."""
    edit, template, which = rng.random(DRAWS).tolist()
    if edit < cfg.edit_probability:
        caption = edited(caption, cfg, rng)
    if template < cfg.template_probability:
        caption = cfg.templates[int(which * len(cfg.templates))].replace("{}", caption)
    return caption


def edited(caption: str, cfg: TextConfig, rng: np.random.Generator) -> str:
    """Delete each word with a probability, then repeat words at random places, then swap pairs; one word always stays."""
    words = caption.split()
    if len(words) < 2:
        return caption
    kept = [word for word, number in zip(words, rng.random(len(words)).tolist(), strict=True) if number >= cfg.delete]
    words = kept or [words[int(rng.integers(len(words)))]]
    for _ in range(round(cfg.repeat * len(words))):
        word = words[int(rng.integers(len(words)))]
        words.insert(int(rng.integers(len(words) + 1)), word)
    for _ in range(round(cfg.swap * len(words))):
        first, second = rng.integers(len(words), size=2).tolist()
        words[first], words[second] = words[second], words[first]
    return " ".join(words)
