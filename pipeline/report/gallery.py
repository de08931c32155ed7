"""What a model sees of a test set: a map of the sphere with pictures on it, and what captions find.

    seen = look(Path("runs/x/checkpoints/step-00001000"), "sets/a", world, device)
    sphere_map(seen), findings(seen)              # two pieces of HTML

The map is the plane of the two strongest directions of images and texts together (principal components), so that a gap between
the modalities shows as two clouds; a line joins each picture to its caption. Everything is chosen by counting, not at random.

Shapes: N images, M captions, d = embedding width.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline.data.evalset import EvalSet
from pipeline.dist import World
from pipeline.eval.embed import Embeddings, embed_set
from pipeline.eval.sheet import Found, search
from pipeline.eval.target import load
from pipeline.eval.thumbnails import picture_link

MAPPED = 120
"""Pairs on the map: more would hide each other."""
SHOWN = 12
"""Captions whose findings are shown."""
SIZE = 640
THUMBNAIL = 56


@dataclass(frozen=True)
class Seen:
    """A set as one checkpoint sees it."""

    title: str
    evalset: EvalSet
    data: Embeddings


def look(checkpoint: Path, folder: str, world: World, device: torch.device) -> Seen:
    """Embed a set with the model of a checkpoint."""
    subject = load(checkpoint, device).subject
    evalset = EvalSet.open(folder)
    step = subject.provenance.get("step")
    title = f"{subject.provenance.get('run')}, step {step:,}" if step is not None else str(subject.provenance.get("run"))
    return Seen(title, evalset, embed_set(subject, evalset, world, device, batch_size=256, progress=False))


def sphere_map(seen: Seen) -> str:
    """Pictures and captions of evenly chosen samples in the plane of their two principal components, as an SVG figure."""
    image_Nd, text_Nd, samples = _pairs(seen.data)
    place_n2 = _plane(torch.cat([image_Nd, text_Nd]))
    low, high = place_n2.amin(dim=0), place_n2.amax(dim=0)
    scaled_n2 = 20 + (place_n2 - low) / (high - low).clamp_min(1e-9) * (SIZE - 40)
    images, texts = scaled_n2[: len(samples)].tolist(), scaled_n2[len(samples) :].tolist()
    parts = []
    for (x, y), (u, v) in zip(images, texts, strict=True):
        parts.append(f'<path class="grid" d="M{x:.0f} {y:.0f}L{u:.0f} {v:.0f}"/>')
    for (u, v), sample in zip(texts, samples, strict=True):
        caption = html.escape(_caption(seen.data, sample))
        parts.append(f'<circle cx="{u:.0f}" cy="{v:.0f}" r="4.5" style="fill:var(--c1)"><title>{caption}</title></circle>')
    for (x, y), sample in zip(images, samples, strict=True):
        caption = html.escape(_caption(seen.data, sample))
        parts.append(
            f'<image x="{x - 13:.0f}" y="{y - 13:.0f}" width="26" height="26" href="{_thumbnail(seen, sample, 40)}">'
            f"<title>{caption}</title></image>"
        )
    distance = float((image_Nd.mean(dim=0) - text_Nd.mean(dim=0)).norm())
    words = f"{seen.title}: {len(samples)} images and their captions; the centroids are {distance:.2f} apart"
    picture = f'<svg role="img" viewBox="0 0 {SIZE} {SIZE}" aria-label="{html.escape(words)}">{"".join(parts)}</svg>'
    note = '<p class="note">Pictures are images, dots are captions, lines join pairs. Hover for the caption.</p>'
    return f'<figure class="chart map"><figcaption>{html.escape(words)}</figcaption>{picture}{note}</figure>'


def findings(seen: Seen) -> str:
    """What chosen captions find among all images: hits from sure to narrow, near misses, then the worst; an HTML list."""
    found, _ = search(seen.data, SHOWN)
    items = []
    for query in found:
        verdict = (
            '<span class="good">found first</span>'
            if query.rank == 1
            else f'<span class="bad">right one is number {query.rank:,}</span>'
        )
        row = "".join(_picture(seen, query, image) for image in query.images)
        items.append(f'<li><p>“{html.escape(query.caption)}” · {verdict}</p><div class="row">{row}</div></li>')
    return f'<ul class="found">{"".join(items)}</ul>'


def _picture(seen: Seen, query: Found, image: int) -> str:
    right = image == query.owner
    words = _caption(seen.data, image) + (" (the right one)" if right else "")
    kind = ' class="right"' if right else ""
    return f'<img{kind} src="{_thumbnail(seen, image, THUMBNAIL)}" alt="{html.escape(words)}" title="{html.escape(words)}">'


def _pairs(data: Embeddings) -> tuple[Tensor, Tensor, list[int]]:
    """At most ``MAPPED`` samples at even distances, with their first captions."""
    first: dict[int, int] = {}
    for caption, owner in enumerate(data.owner_M.tolist()):
        first.setdefault(owner, caption)
    owners = sorted(first)
    count = min(MAPPED, len(owners))
    samples = [owners[i * len(owners) // count] for i in range(count)]
    return data.image_Nd[samples].double(), data.text_Md[[first[owner] for owner in samples]].double(), samples


def _plane(x_nd: Tensor) -> Tensor:
    """Coordinates [n, 2] in the two strongest directions; their signs are fixed by the first row."""
    centred_nd = x_nd - x_nd.mean(dim=0)
    _, _, directions_dd = torch.linalg.svd(centred_nd, full_matrices=False)
    place_n2: Tensor = centred_nd @ directions_dd[:2].T
    return torch.where(place_n2[0] < 0, -place_n2, place_n2)


def _caption(data: Embeddings, sample: int) -> str:
    return data.captions[data.owner_M.tolist().index(sample)]


def _thumbnail(seen: Seen, sample: int, size: int) -> str:
    return picture_link(seen.evalset.shards.read(sample).image, size)
