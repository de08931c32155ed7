"""``unisphere search VECTORS "a text" --model MODEL``: the images that lie nearest to a text, in the terminal and as a page.

    unisphere embed runs/x shards/mine vectors
    unisphere search vectors "a red car" "two dogs" --model runs/x --page found.html

The page shows the pictures, read from the shards; it needs no network and no server.
"""

from __future__ import annotations

import argparse
import html
import json
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import DataError

if TYPE_CHECKING:
    from pipeline.vectors import Hit

THUMBNAIL = 112


def main(argv: Sequence[str] | None = None) -> int:
    """Search; returns the exit code."""
    parser = argparse.ArgumentParser(prog="unisphere search", description="Find images by text among embedded shards.")
    parser.add_argument("vectors", type=Path, help="folder that `unisphere embed` wrote")
    parser.add_argument("texts", nargs="+", metavar="TEXT", help="what to look for")
    parser.add_argument("--model", type=Path, required=True, help="the run, checkpoint, or export that made the vectors")
    parser.add_argument("-k", type=int, default=10, metavar="N", help="images per text (default: 10)")
    parser.add_argument("--page", type=Path, metavar="FILE", help="also write a page with the pictures")
    args = parser.parse_args(argv)
    found = look(args.vectors, args.texts, args.model, args.k)
    for text, hits in found.items():
        print(text)
        for hit in hits:
            print(f"  {hit.cosine:6.3f}  {hit.key}  {hit.caption}")
    if args.page:
        args.page.write_text(page(found), encoding="utf-8")
        print(f"page: {args.page}", file=sys.stderr)
    return 0


def look(vectors: Path, texts: Sequence[str], model: Path, count: int) -> dict[str, list[Hit]]:
    """Hits by text.

    Raises:
        DataError: the vectors were made by another model, so that their cosines with this one's texts mean nothing.
    """
    import torch

    from pipeline import dist
    from pipeline.eval.target import load
    from pipeline.vectors import search

    device = dist.pick_device(0)
    subject = load(model, device).subject
    path = vectors / "embed.json"
    made_by = json.loads(path.read_text(encoding="utf-8")).get("weights_sha256") if path.exists() else None
    if made_by != subject.provenance.get("weights_sha256"):
        raise DataError(f"{vectors} was not made by {model} (other weights, see {path}); embed the shards with it")
    with torch.inference_mode():
        query_Qd = subject.model.encode_text(subject.tokenizer(list(texts)).to(device)).float().cpu().numpy()
    return {text: search(vectors, query_d, count) for text, query_d in zip(texts, query_Qd, strict=True)}


def page(found: dict[str, list[Hit]]) -> str:
    """The pictures that were found, as a page of its own."""
    from pipeline.data.samples import ShardSet
    from pipeline.eval.thumbnails import picture_link

    shards = {hit.shard: ShardSet.open(hit.shard) for hits in found.values() for hit in hits}
    places = {name: {opened.locate(i)[1]: i for i in range(len(opened))} for name, opened in shards.items()}
    parts = []
    for text, hits in found.items():
        items = "".join(
            f'<figure><img width="{THUMBNAIL}" height="{THUMBNAIL}" alt="{html.escape(hit.caption)}" '
            f'src="{picture_link(shards[hit.shard].read(places[hit.shard][hit.key]).image, THUMBNAIL)}">'
            f'<figcaption class="note">{hit.cosine:.3f} · {html.escape(hit.caption)}</figcaption></figure>'
            for hit in hits
        )
        parts.append(f'<section><h2>“{html.escape(text)}”</h2><div class="hits">{items}</div></section>')
    style = (resources.files("pipeline.report") / "page.css").read_text(encoding="utf-8")
    style += f".hits {{ display: grid; grid-template-columns: repeat(auto-fill, {THUMBNAIL}px); gap: 1rem; }}"
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Found</title><style>{style}</style>'
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body><h1>Found</h1>{"".join(parts)}</body></html>\n'


if __name__ == "__main__":
    from pipeline.cli import guarded

    raise SystemExit(guarded(main))
