"""The random views made of a training image, and of its caption.

augment:                        # view 0, the one that plain CLIP trains on; all defaults: a weak crop
  crop_scale: [0.5, 1.0]
  flip_probability: 0.5
  more_views:                   # each a recipe of its own; what it leaves out has the default, not view 0's value
    - {crop_scale: [0.08, 1.0], jitter_probability: 0.8, brightness: 0.4, hue: 0.1, blur_probability: 0.5}
  text: {templates: ["a photo of {}."], template_probability: 0.3}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.config.limits import INFINITY, POSITIVE, Ranges, Rule


@dataclass(frozen=True)
class ViewConfig:
    """The recipe of one random view. Each range is drawn uniformly, each probability independently.

    The operations come in this order: crop, flip, colour jitter, grayscale, blur, solarise.
    """

    crop_scale: tuple[float, float] = (0.9, 1.0)
    """Area of the random resized crop as a fraction of the image."""
    crop_ratio: tuple[float, float] = (0.75, 1.3333)
    """Aspect ratio (width / height) of that crop, drawn log-uniformly."""
    flip_probability: float = 0.0
    jitter_probability: float = 0.0
    brightness: float = 0.0
    """Factor drawn from [1 - x, 1 + x]; likewise contrast and saturation."""
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    """Shift drawn from [-x, x] in turns of the colour wheel, at most 0.5."""
    jitter_order: Literal["fixed", "random"] = "fixed"
    """``fixed``: brightness, contrast, saturation, hue; ``random``: in an order drawn for each view."""
    grayscale_probability: float = 0.0
    blur_probability: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Standard deviation of the Gaussian blur, in pixels of the view."""
    solarise_probability: float = 0.0
    solarise_threshold: float = 0.5
    """Levels from this fraction of white upwards are inverted."""


@dataclass(frozen=True)
class TextConfig:
    """What is done to a caption before it becomes tokens; all off by default but the choice among several captions."""

    caption: Literal["random", "first"] = "random"
    """Which of a sample's captions is used: one drawn anew in each epoch, or always the first."""
    edit_probability: float = 0.0
    """Chance that the three word operations below touch a caption at all."""
    delete: float = 0.1
    """Chance of each word to be left out; at least one word stays."""
    swap: float = 0.1
    """Exchanges of two words, as a fraction of the number of words."""
    repeat: float = 0.0
    """Words of the caption inserted a second time somewhere, as a fraction of the number of words."""
    templates: tuple[str, ...] = ()
    """Sentences with one ``{}`` for the caption; one is drawn for each caption that gets one."""
    template_probability: float = 0.0


@dataclass(frozen=True)
class AugmentConfig(ViewConfig):
    """View 0 (the recipe's own fields), further views, and how all of them are made."""

    more_views: tuple[ViewConfig, ...] = ()
    """A recipe for each further view of the same image, for losses that compare views."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """How crops are resized; both with antialiasing."""
    reduced_decoding: bool = True
    """Decode a JPEG at 1/2, 1/4 or 1/8 of its size where every view's crop keeps at least as many pixels as the view."""
    on_device: bool = False
    """Workers send decoded pixels, and the training device makes all views of a batch in one pass."""
    text: TextConfig = TextConfig()

    @property
    def views(self) -> tuple[ViewConfig, ...]:
        """The recipes of all views, view 0 first."""
        return (self, *self.more_views)


VIEW_RANGES: Ranges = {  # checked by the rules, for each view
    "flip_probability": (0, 1),
    "jitter_probability": (0, 1),
    "brightness": (0, 1),
    "contrast": (0, 1),
    "saturation": (0, 1),
    "hue": (0, 0.5),
    "grayscale_probability": (0, 1),
    "blur_probability": (0, 1),
    "solarise_probability": (0, 1),
    "solarise_threshold": (0, 1),
}

RANGES: Ranges = {
    "augment.text.edit_probability": (0, 1),
    "augment.text.delete": (0, 1),
    "augment.text.swap": (0, 1),
    "augment.text.repeat": (0, 1),
    "augment.text.template_probability": (0, 1),
}


def rules(augment: AugmentConfig) -> list[Rule]:
    """Combinations of these settings that must hold."""
    text = augment.text
    found = [rule for number, view in enumerate(augment.views) for rule in _view_rules(number, view)]
    found += [
        (template.count("{}") == 1, f"augment.text.templates: {template!r} must hold {{}} once, where the caption goes")
        for template in text.templates
    ]
    found.append(
        (
            bool(text.templates) or text.template_probability == 0,
            f"augment.text.template_probability = {text.template_probability}: give augment.text.templates, or 0",
        )
    )
    return found


def _view_rules(number: int, view: ViewConfig) -> list[Rule]:
    name = f"augment.more_views[{number - 1}]" if number else "augment"
    pairs = {"crop_scale": (POSITIVE, 1.0), "crop_ratio": (POSITIVE, INFINITY), "blur_sigma": (POSITIVE, 10.0)}
    found = []
    for field, (least, most) in pairs.items():
        low, high = getattr(view, field)
        need = "0 < low <= high" + (f" <= {most:g}" if most < INFINITY else "")
        found.append((least <= low <= high <= most, f"{name}.{field} = {(low, high)}: need {need}"))
    for field, (least, most) in VIEW_RANGES.items():
        value = getattr(view, field)
        found.append((least <= value <= most, f"{name}.{field} = {value}: must be within [{least}, {most}]"))
    return found
