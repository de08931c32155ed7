"""The picture of docs/views.md: one emoji of the bundle, views of it, and the vectors that tell a model what was done.

python benchmarks/views_picture.py                  # writes docs/views.png
"""

from __future__ import annotations

import argparse
import sys
import zipfile
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SIZE = 64


def main() -> None:
    """Make the views of one picture, and draw them above their vectors."""
    from benchmarks.loader import STRONG
    from pipeline.config import AugmentConfig, ViewConfig
    from pipeline.data.augment import Encoded, draw, make_views
    from pipeline.data.plan import sample_rng
    from pipeline.data.views import VIEW_PARAMS, vector

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emoji", default="parrot", help="name in the bundle (default parrot)")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "views.png")
    args = parser.parse_args()
    data = zipfile.ZipFile(ROOT / "data_prep" / "assets" / "emoji" / "noto.zip").read(f"{args.emoji}.webp")
    strong = ViewConfig(**{**STRONG, "crop_scale": (0.25, 1.0)}, solarise_probability=0.2)
    cfg = AugmentConfig(crop_scale=(0.8, 1.0), more_views=(strong,) * 5)
    encoded = Encoded(data, max_pixels=10**8)
    params = draw(encoded, cfg, SIZE, sample_rng(args.seed, 0, args.emoji))
    views = [view[0].permute(1, 2, 0).numpy() for view in make_views(encoded, params, SIZE, cfg.interpolation)]
    pictures = [np.asarray(encoded.image()), *views]
    titles = ["stored", "view 0: weak", *(f"view {number}" for number in range(1, len(views)))]

    figure = Figure(figsize=(13, 5.6))
    axes = figure.subplots(2, len(pictures), height_ratios=[1, 1.9])
    for axis, picture, title in zip(axes[0], pictures, titles, strict=True):
        axis.imshow(picture)
        axis.set_title(title, fontsize=10)
        axis.axis("off")
    height = np.arange(len(VIEW_PARAMS))
    for number, axis in enumerate(axes[1]):
        if number:
            values = vector(params[number - 1])
            axis.barh(height, values, color=np.where(values < 0, "tab:red", "tab:blue"))
            for place, value in enumerate(values):
                if value:
                    axis.text(1.04, place, f"{value:+.2f}", fontsize=7, va="center")
        axis.set(xlim=(-1, 1.45), ylim=(len(VIEW_PARAMS) - 0.5, -0.5), yticks=height, xticks=[-1, 0, 1])
        axis.axvline(0, color="black", linewidth=0.6)
        axis.set_yticklabels(VIEW_PARAMS if number == 0 else [], fontsize=9)
        axis.tick_params(length=0, labelsize=8)
        axis.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes[1, 0].text(0.1, 7.5, "nothing done:\nall zeros", fontsize=9, color="gray", va="center")
    figure.tight_layout()
    figure.savefig(args.out, dpi=100)
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
