"""What a captioning model (CoCa) writes about images, and how near that is to what people wrote: BLEU and CIDEr.

    written = write(subject, evalset, world, device)                      # a Caption for each image
    measure(written)                                                      # {"n": 500, "bleu": [...], "cider": 0.83, ...}

Captions are written greedily: the most likely token at each place, at least ``MIN_TOKENS``, at most ``MAX_TOKENS``, start and
end included. That is what open_clip's ``generate(generation_type="top_k", top_k=1)`` writes, token for token; its own code
needs parts of Hugging Face's library that version 5 of that no longer has. Images go through the model in the same parts as in
``embed.py``, so what is written does not depend on ranks, workers or batch size.

Scores come from pycocoevalcap (``pip install 'unisphere[captioning]'``) with every reference of an image. Its tokenizer is a
Java program; ``words`` stands in for it and splits captions alike (a test compares them). CIDEr weighs words by how rare they
are among the references of the images captioned, so it is comparable only for equal sets and numbers of images.

Shapes: B images, L tokens so far, V = words of the vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline import dist
from pipeline.data.augment import normalise
from pipeline.data.evalset import EvalSet
from pipeline.dist import World
from pipeline.errors import ConfigError, DataError
from pipeline.eval.embed import FORWARD_ROWS, Subject, repeatable
from pipeline.eval.intervals import interval
from pipeline.eval.together import all_or_none

MIN_TOKENS, MAX_TOKENS = 5, 30
SHOWN = 12
"""Captions kept in a result, for people."""
_WORD = re.compile(r"n't\b|'(?:s|m|d|ll|re|ve)\b|\w+?(?=n't\b)|\w+(?:-\w+)*")


class Caption(NamedTuple):
    """What the model wrote about a sample, and what people did."""

    key: str
    text: str
    references: tuple[str, ...]


def can_write(model: Any) -> bool:
    """Whether this model has a part that writes captions."""
    return getattr(model, "text_decoder", None) is not None


def write(subject: Subject, evalset: EvalSet, world: World, device: torch.device) -> list[Caption]:
    """A caption for every sample of ``evalset``, in its order; all ranks call it and get the same.

    Raises:
        DataError: a sample cannot be read or has no caption to compare with, on any rank.
    """
    num_parts = -(-len(evalset) // FORWARD_ROWS)

    def mine() -> list[tuple[int, Caption]]:
        found = []
        for part in range(world.rank, num_parts, world.size):
            for batch in evalset.rank_batches(part, num_parts, FORWARD_ROWS, subject.model.image_size):
                pixels = normalise(batch.image_BCHW.to(device), subject.image_mean, subject.image_std)
                padded = torch.cat([pixels, pixels[:1].expand(FORWARD_ROWS - len(pixels), *pixels.shape[1:])])
                texts = read(generate(subject, padded)[: len(pixels)])
                for index, key, text, references in zip(batch.index_B.tolist(), batch.keys, texts, batch.captions, strict=True):
                    if not references:
                        raise DataError(f"{evalset.address}: sample {key} has no caption to compare a written one with")
                    found.append((index, Caption(key, text, references)))
        return found

    with repeatable(subject.model):
        parts = dist.all_gather_object(all_or_none(mine, world))
    return [caption for _, caption in sorted((item for part in parts for item in part), key=lambda item: item[0])]


def generate(subject: Subject, image_BCHW: Tensor) -> Tensor:
    """Token ids int64 [B, L] of a caption for each image: start, words, end, then padding."""
    model: Any = subject.model
    start, end = subject.tokenizer([""])[0, :2].tolist()
    most = min(MAX_TOKENS, model.context_length)
    image_tokens = model.visual(image_BCHW)[1]
    tokens_BL = torch.full((len(image_BCHW), 1), start, dtype=torch.int64, device=image_BCHW.device)
    while tokens_BL.shape[1] < most and not bool(_ended(tokens_BL, end).all()):
        logits_BV = model.text_decoder(image_tokens, model.text(tokens_BL)[1])[:, -1].float()
        if tokens_BL.shape[1] < MIN_TOKENS:
            logits_BV[:, end] = -torch.inf
        next_B = logits_BV.argmax(dim=1) if tokens_BL.shape[1] + 1 < most else torch.full_like(tokens_BL[:, 0], end)
        next_B = next_B.masked_fill(_ended(tokens_BL, end), model.text.pad_id)
        tokens_BL = torch.cat([tokens_BL, next_B[:, None]], dim=1)
    return tokens_BL


def _ended(tokens_BL: Tensor, end: int) -> Tensor:
    return (tokens_BL == end).any(dim=1)


def read(tokens_BL: Tensor) -> list[str]:
    """Texts of byte-pair token ids [B, L], without start token, end token and what follows it."""
    import open_clip

    texts = (open_clip.decode(row.cpu()) for row in tokens_BL)
    return [text.partition("<end_of_text>")[0].replace("<start_of_text>", "").strip() for text in texts]


def words(text: str) -> str:
    """A caption as scores see it: lower case, clitics apart, no punctuation.

    >>> words("A well-known cat's hat, isn't it?")
    "a well-known cat 's hat is n't it"
    """
    return " ".join(_WORD.findall(text.lower()))


def require_scores() -> None:
    """Raise ConfigError where the library that scores captions is not installed."""
    try:
        import pycocoevalcap.bleu.bleu
        import pycocoevalcap.cider.cider  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"captions are scored by pycocoevalcap, which is not here ({error}); pip install 'unisphere[captioning]', or "
            f"leave out --captioned (eval.captioned)"
        ) from error


def measure(written: Sequence[Caption]) -> dict[str, Any]:
    """BLEU-1 to 4, and CIDEr (1 is good; often written times 100) with its interval over images.

    Raises:
        ConfigError: pycocoevalcap is not installed.
    """
    require_scores()
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider

    references = {place: [words(text) for text in caption.references] for place, caption in enumerate(written)}
    texts = {place: [words(caption.text)] for place, caption in enumerate(written)}
    bleu, _ = Bleu(4).compute_score(references, texts, verbose=0)
    cider, ciders = Cider().compute_score(references, texts)
    return {
        "n": len(written),
        "bleu": [round(float(value), 6) for value in bleu],
        "cider": round(float(cider), 6),
        "interval": interval(ciders),
        "mean_words": sum(len(text.split()) for (text,) in texts.values()) / len(texts),
        "examples": [[caption.key, caption.text, caption.references[0]] for caption in written[:SHOWN]],
    }
