"""What a model sees of a test set: maps of the sphere with pictures on them, and what captions and images find.

    seen = [look(Path("runs/x"), "sets/a", world, device), look(Path("runs/x/checkpoints/step-00001000"), ...)]
    maps(seen), findings(seen[-1]), readings(seen[-1])              # pieces of HTML

A map is the plane of two directions: across, the one in which the centroids of images and texts differ, so that the gap between
the modalities is what one sees between the clouds; up, the strongest direction (principal component) of what is left. All maps
of a run have one scale. Everything is chosen by counting, not at random.

Shapes: N images, M captions, d = embedding width, n = mapped pairs.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.data.evalset import EvalSet
from pipeline.dist import World
from pipeline.eval.embed import Embeddings, Subject, embed_set
from pipeline.eval.retrieval import owner_ranks
from pipeline.eval.scores import to_grid
from pipeline.eval.sheet import SHOWN, Found, choose, search
from pipeline.eval.thumbnails import picture_link
from pipeline.report.charts import figure, marker

MAPPED = 80
"""Pairs on a map: more would hide each other."""
SEARCHES, READ, MISTAKES = 15, 8, 12
"""Captions whose findings are shown, images whose captions are, and confusions."""
MAX_IMAGES = 5000
"""Of larger sets so many images are embedded, at even distances."""
SIZE, PICTURE = 480, 24
THUMBNAIL = 112
"""Pixels of a picture, shown at half that size so that it is sharp on any screen."""


@dataclass(frozen=True)
class Seen:
    """A set as a model sees it."""

    title: str
    evalset: EvalSet
    data: Embeddings


def look(subject: Subject, title: str, folder: str, world: World, device: torch.device) -> Seen:
    """Embed a set with a model."""
    evalset = EvalSet.open(folder, limit=MAX_IMAGES)
    return Seen(title, evalset, embed_set(subject, evalset, world, device, batch_size=256, progress=False))


def maps(seen: Sequence[Seen], prefix: str = "map") -> str:
    """The same pairs as models of several steps place them, side by side on one scale.

    Args:
        seen: one set, seen by each of the models.
        prefix: begins the names of the pictures, which are shared by the maps; another one for each run of a page.
    """
    planes = []
    for one in seen:
        image_nd, text_nd, samples = _pairs(one.data, MAPPED)
        every_image_nd, every_text_nd, _ = _pairs(one.data, MAX_IMAGES)
        distance = float((every_image_nd.mean(dim=0) - every_text_nd.mean(dim=0)).norm())
        planes.append((one, samples, plane(image_nd, text_nd), distance))
    reach = max(float((place_n2.amax(dim=0) - place_n2.amin(dim=0)).max()) for _, _, place_n2, _ in planes)
    samples = planes[0][1]
    pictures = "".join(
        f'<image id="{prefix}-{i}" width="{PICTURE}" height="{PICTURE}" href="{_thumbnail(seen[0], sample, 2 * PICTURE)}"/>'
        for i, sample in enumerate(samples)
    )
    drawn = "".join(_map(*one, reach=reach, prefix=prefix) for one in planes)
    return f'<svg class="store" aria-hidden="true"><defs>{pictures}</defs></svg><div class="charts maps">{drawn}</div>'


def _map(seen: Seen, samples: Sequence[int], place_n2: Tensor, distance: float, *, reach: float, prefix: str) -> str:
    middle_2 = (place_n2.amax(dim=0) + place_n2.amin(dim=0)) / 2
    scaled = (SIZE / 2 + (place_n2 - middle_2) * torch.tensor([1.0, -1.0]) * ((SIZE - PICTURE) / reach)).tolist()
    images, texts = scaled[: len(samples)], scaled[len(samples) :]
    captions = [_caption(seen.data, sample) for sample in samples]
    parts = [f'<path class="grid" d="M{x:.0f} {y:.0f}L{u:.0f} {v:.0f}"/>' for (x, y), (u, v) in zip(images, texts, strict=True)]
    for (u, v), caption in zip(texts, captions, strict=True):
        parts.append(f'<path class="text" d="{marker(0, u, v, 4.2)}"><title>{html.escape(caption)}</title></path>')
    for i, ((x, y), caption) in enumerate(zip(images, captions, strict=True)):
        place = f'x="{x - PICTURE / 2:.0f}" y="{y - PICTURE / 2:.0f}"'
        parts.append(f'<use href="#{prefix}-{i}" {place}><title>{html.escape(caption)}</title></use>')
    (x, y), (u, v) = ([sum(axis) / len(cloud) for axis in zip(*cloud, strict=True)] for cloud in (images, texts))
    parts.append(f'<path class="gap" d="M{x:.1f} {y:.1f}L{u:.1f} {v:.1f}"/>')
    for at, name in ((marker(1, x, y, 6), "centroid of images"), (marker(0, u, v, 7), "centroid of captions")):
        parts.append(f'<path class="gap centre" d="{at}"><title>{name}</title></path>')
    note = "Pictures are images, dots their captions, lines join pairs; the thick line joins the two centroids."
    data: list[list[object]] = [["key", "caption", "kind", "across", "up"]]
    for kind, rows_n2 in (("image", place_n2[: len(samples)]), ("caption", place_n2[len(samples) :])):
        for sample, caption, (across, up) in zip(samples, captions, rows_n2.tolist(), strict=True):
            data.append([seen.data.keys[sample], caption, kind, across, up])
    words = f"{len(samples)} images and their captions; over all pairs the centroids are {distance:.2f} apart."
    title = f"{seen.title}: centroids {distance:.2f} apart"
    return figure(title, "".join(parts), words, data, size=(SIZE, SIZE), note=note, kind="chart map")


def plane(image_nd: Tensor, text_nd: Tensor) -> Tensor:
    """Places [2n, 2] of images, then texts, around the mean of both: the first axis points from texts to images.

    Where the centroids are the same point, both axes are principal components. Signs are fixed by the first image.
    """
    both_nd = torch.cat([image_nd, text_nd])
    centred_nd = both_nd - both_nd.mean(dim=0)
    gap_d = image_nd.mean(dim=0) - text_nd.mean(dim=0)
    if float(gap_d.norm()) < 1e-6:
        gap_d = torch.linalg.svd(centred_nd, full_matrices=False).Vh[0]
    gap_d = gap_d / gap_d.norm()
    across_n = centred_nd @ gap_d
    rest_nd = centred_nd - across_n[:, None] * gap_d
    up_n = rest_nd @ torch.linalg.svd(rest_nd, full_matrices=False).Vh[0]
    return torch.stack([across_n, up_n if up_n[0] >= 0 else -up_n], dim=1)


def findings(seen: Seen) -> str:
    """What chosen captions find among all images: hits from sure to narrow, near misses, misses with what was right."""
    found, recall = search(seen.data, SEARCHES)
    groups = {
        "Found": [query for query in found if query.rank == 1],
        "Nearly found": [query for query in found if 1 < query.rank <= SHOWN],
        "Missed": [query for query in found if query.rank > SHOWN],
    }
    sizes = f"{len(seen.data.captions):,} captions search {len(seen.data.keys):,} images"
    scope = f"{sizes}; the right one comes first for {recall[1]:.1%}, among five for {recall[5]:.1%}."
    parts = [f'<p class="note">{scope}</p>']
    for heading, queries in groups.items():
        items = []
        for query in queries:
            verdict = "found first" if query.rank == 1 else f"right one is number {query.rank:,}"
            row = "".join(_picture(seen, query, image) for image in query.images)
            if query.owner not in query.images:
                row += f'<span class="aside-note">right:</span>{_picture(seen, query, query.owner)}'
            kind = "good" if query.rank == 1 else "bad"
            words = f'<p>“{html.escape(query.caption)}” · <span class="{kind}">{verdict}</span></p>'
            items.append(f'<li>{words}<div class="row">{row}</div></li>')
        if items:
            parts.append(f'<h4>{heading}</h4><ul class="found">{"".join(items)}</ul>')
    return "".join(parts)


def readings(seen: Seen) -> str:
    """Which captions chosen images find: the three nearest, and the right one where it is not among them."""
    image_Nd, text_Md, owner_M = to_grid(seen.data.image_Nd), to_grid(seen.data.text_Md), seen.data.owner_M
    own_N = torch.arange(len(image_Nd), device=image_Nd.device)
    rank_N = owner_ranks(image_Nd, own_N, text_Md, owner_M)
    margins = []  # of an image: its best caption's score minus that of the best other caption
    for start in range(0, len(own_N), 1024):
        rows_n = own_N[start : start + 1024]
        score_nM, own_nM = image_Nd[rows_n] @ text_Md.T, rows_n[:, None] == owner_M
        own_n, other_n = (score_nM.masked_fill(mask, -torch.inf).amax(dim=1) for mask in (~own_nM, own_nM))
        margins.append(own_n - other_n)
    captioned = sorted(set(owner_M.tolist()))
    items = []
    for chosen in choose(rank_N[captioned].tolist(), torch.cat(margins)[captioned].tolist(), READ):
        image = captioned[chosen]
        nearest = (text_Md @ image_Nd[image]).argsort(descending=True, stable=True)[:3].tolist()
        said = [_read(seen, caption, image) for caption in nearest]
        if all(int(owner_M[caption]) != image for caption in nearest):
            said.append(
                f'<li class="right">right, number {int(rank_N[image]):,}: {html.escape(_caption(seen.data, image))}</li>'
            )
        alt = html.escape(_caption(seen.data, image))
        shown = f'<img src="{_thumbnail(seen, image, THUMBNAIL)}" width="56" height="56" alt="{alt}">'
        items.append(f'<li class="reading">{shown}<ol>{"".join(said)}</ol></li>')
    return f'<ul class="found">{"".join(items)}</ul>'


def _read(seen: Seen, caption: int, image: int) -> str:
    right = int(seen.data.owner_M[caption]) == image
    mark = ' <span class="good">✓ right</span>' if right else ""
    return f"<li>{html.escape(seen.data.captions[caption])}{mark}</li>"


def mistakes(seen: Seen, result: dict[str, Any]) -> str:
    """The commonest confusions of a zero-shot result as pairs of pictures, one of each class; nothing where it has none."""
    pairs, names = (result.get("zero_shot") or {}).get("confusions", []), seen.evalset.classnames
    first: dict[int, int] = {}
    for sample, label in enumerate(seen.data.label_N.tolist()):
        first.setdefault(label, sample)
    items = []
    for true, taken, count in pairs[:MISTAKES]:
        if true in first and taken in first and max(true, taken) < len(names):
            left, right = (_class_picture(seen, first[label], names[label]) for label in (true, taken))
            words = f"{html.escape(names[true])} taken for {html.escape(names[taken])} · {count} times"
            items.append(f'<li><div class="row">{left}<span class="aside-note">→</span>{right}</div><p>{words}</p></li>')
    return f'<ul class="found pairs">{"".join(items)}</ul>' if items else ""


def _class_picture(seen: Seen, sample: int, name: str) -> str:
    return f'<img src="{_thumbnail(seen, sample, THUMBNAIL)}" width="56" height="56" alt="{html.escape(name)}">'


def _picture(seen: Seen, query: Found, image: int) -> str:
    right = image == query.owner
    words = html.escape(_caption(seen.data, image) + (" (the right one)" if right else ""))
    kind = ' class="right"' if right else ""
    return f'<img{kind} src="{_thumbnail(seen, image, THUMBNAIL)}" width="56" height="56" alt="{words}" title="{words}">'


def _pairs(data: Embeddings, most: int) -> tuple[Tensor, Tensor, list[int]]:
    """At most so many samples at even distances, with their first captions."""
    first: dict[int, int] = {}
    for caption, owner in enumerate(data.owner_M.tolist()):
        first.setdefault(owner, caption)
    owners = sorted(first)
    count = min(most, len(owners))
    samples = [owners[i * len(owners) // count] for i in range(count)]
    return data.image_Nd[samples].double().cpu(), data.text_Md[[first[owner] for owner in samples]].double().cpu(), samples


def _caption(data: Embeddings, sample: int) -> str:
    owners = data.owner_M.tolist()
    return data.captions[owners.index(sample)] if sample in owners else data.keys[sample]


def _thumbnail(seen: Seen, sample: int, size: int) -> str:
    return picture_link(seen.evalset.shards.read(sample).image, size)
