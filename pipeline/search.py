"""``unisphere search VECTORS "a text" --model MODEL``: the images that lie nearest to a text, in the terminal and as a page.

    unisphere embed runs/x shards/mine vectors
    unisphere search vectors "a red car" "two dogs" --model runs/x --page found.html
    unisphere search vectors --model runs/x --serve 8000        http://localhost:8000, with a field to type into

A written page shows the pictures, read from the shards; it needs no network and no server. A served one is for this machine
only: it listens at the loopback address, loads the model once, and answers one question at a time.
"""

from __future__ import annotations

import argparse
import html
import http.server
import json
import sys
import urllib.parse
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pipeline.data.samples import ShardSet
    from pipeline.vectors import Hit

THUMBNAIL = 112


def main(argv: Sequence[str] | None = None) -> int:
    """Search; returns the exit code."""
    parser = argparse.ArgumentParser(prog="unisphere search", description="Find images by text among embedded shards.")
    parser.add_argument("vectors", type=Path, help="folder that `unisphere embed` wrote")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="what to look for")
    parser.add_argument("--model", type=Path, required=True, help="the run, checkpoint, or export that made the vectors")
    parser.add_argument("-k", type=int, default=10, metavar="N", help="images per text (default: 10)")
    parser.add_argument("--page", type=Path, metavar="FILE", help="also write a page with the pictures")
    parser.add_argument("--serve", type=int, metavar="PORT", help="answer at http://localhost:PORT until interrupted")
    args = parser.parse_args(argv)
    if not args.texts and args.serve is None:
        raise ConfigError("nothing to look for: give texts, or --serve PORT for a page to type them into")
    finder = Finder(args.vectors, args.model, args.k)
    found = finder.find(args.texts)
    for text, hits in found.items():
        print(text)
        for hit in hits:
            print(f"  {hit.cosine:6.3f}  {hit.key}  {hit.caption}")
    if args.page:
        args.page.write_text(finder.page(found), encoding="utf-8")
        print(f"page: {args.page}", file=sys.stderr)
    if args.serve is not None:
        with server(finder, args.serve) as serving:
            print(f"http://localhost:{serving.server_port} (Ctrl-C ends it)", file=sys.stderr, flush=True)
            serving.serve_forever()
    return 0


class Finder:
    """A model and the vectors that it made, ready for questions."""

    def __init__(self, vectors: Path, model: Path, count: int) -> None:
        """Load the model; ``count`` images are found per text.

        Raises:
            DataError: no vectors, or made by another model, so that their cosines with this one's texts mean nothing.
        """
        from pipeline import dist
        from pipeline.eval.target import load

        self._vectors, self._count = vectors, count
        self._device = dist.pick_device(0)
        self._subject = load(model, self._device).subject
        path = vectors / "embed.json"
        if not path.is_file():
            raise DataError(
                f"{vectors} holds no embedding files (no {path.name}); make them: unisphere embed {model} SHARDS {vectors}"
            )
        made_by = json.loads(path.read_text(encoding="utf-8")).get("weights_sha256")
        if made_by != self._subject.provenance.get("weights_sha256"):
            raise DataError(f"{vectors} was not made by {model} (other weights, see {path}); embed the shards with it")
        self._shards: dict[str, tuple[ShardSet, dict[str, int]]] = {}

    def find(self, texts: Sequence[str]) -> dict[str, list[Hit]]:
        """Hits by text, best first."""
        import torch

        from pipeline.vectors import search

        if not texts:
            return {}
        with torch.inference_mode():
            tokens_QL = self._subject.tokenizer(list(texts)).to(self._device)
            query_Qd = self._subject.model.encode_text(tokens_QL).float().cpu().numpy()
        return {text: search(self._vectors, query_d, self._count) for text, query_d in zip(texts, query_Qd, strict=True)}

    def page(self, found: dict[str, list[Hit]], form: bool = False) -> str:
        """The pictures that were found, as a page of its own; with ``form`` also a field for the next text."""
        asked = html.escape(next(iter(found), ""))
        field = (
            '<form role="search"><label for="text">Text</label> '
            f'<input id="text" name="text" value="{asked}" autofocus autocomplete="off"> <button>Find</button></form>'
        )
        parts = [
            f'<section><h2>“{html.escape(text)}”</h2><div class="hits">{"".join(map(self._figure, hits))}</div></section>'
            for text, hits in found.items()
        ]
        style = (resources.files("pipeline.report") / "page.css").read_text(encoding="utf-8")
        title = f"{asked}: found" if asked else "Find images by text"
        head = (
            '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<link rel="icon" href="data:,"><title>{title}</title><style>{style}</style>'
        )
        body = f"<header><h1>Find images by text</h1>{field if form else ''}</header><main>{''.join(parts)}</main>"
        return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{body}</body></html>\n'

    def _figure(self, hit: Hit) -> str:
        from pipeline.data.samples import ShardSet
        from pipeline.eval.thumbnails import picture_link

        if hit.shard not in self._shards:
            opened = ShardSet.open(hit.shard)
            self._shards[hit.shard] = opened, {opened.locate(i)[1]: i for i in range(len(opened))}
        opened, places = self._shards[hit.shard]
        link, words = picture_link(opened.read(places[hit.key]).image, 2 * THUMBNAIL), html.escape(hit.caption)
        picture = f'<img width="{THUMBNAIL}" height="{THUMBNAIL}" alt="{words or html.escape(hit.key)}" src="{link}">'
        return f'<figure>{picture}<figcaption class="note">{hit.cosine:.3f} · {words}</figcaption></figure>'


def server(finder: Finder, port: int) -> http.server.HTTPServer:
    """A server on this machine's loopback address, at any free port if ``port`` is 0; ``serve_forever`` starts it.

    Raises:
        ConfigError: the port is taken, or not allowed.
    """

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            address = urllib.parse.urlsplit(self.path)
            if address.path != "/":
                self.send_error(404)
                return
            texts = [text for text in urllib.parse.parse_qs(address.query).get("text", []) if text.strip()]
            try:
                content = finder.page(finder.find(texts[:1]), form=True).encode()
            except (DataError, OSError) as error:
                self.send_error(500, explain=str(error))
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing of every request."""

    try:
        return http.server.HTTPServer(("127.0.0.1", port), Answer)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--serve {port}: {error}; choose another port, or 0 for any free one") from error


if __name__ == "__main__":
    from pipeline.cli import guarded

    raise SystemExit(guarded(main))
