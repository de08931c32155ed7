"""Rewriting images: what every odd kind of image becomes, and that the answer is the same bytes again."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep.encode import rewrite, target_size
from data_prep.pictures import examine, turbo
from data_prep.rows import BadRow
from data_prep.settings import Transform
from pipeline.errors import DataError

JPEG = Transform(format="jpeg", quality=95, subsampling="4:4:4")
RED, WHITE = (255, 0, 0), (255, 255, 255)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def decoded(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards; smooth, so that resizing hardly changes it."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 90)], -1).astype(np.uint8))


def close(image: Image.Image, colour: tuple[int, int, int], place: tuple[int, int] = (2, 2), within: int = 3) -> bool:
    found = image.convert("RGB").getpixel(place)
    assert isinstance(found, tuple)
    return all(abs(a - b) <= within for a, b in zip(found, colour, strict=True))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_applied_and_forgotten(orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(gradient(60, 40), "JPEG", exif=exif, quality=95)
    upright = ImageOps.exif_transpose(decoded(data))
    rewritten = decoded(rewrite(data, Transform(resize=20, format="jpeg", quality=95))[0])
    assert rewritten.size == ((30, 20) if orientation < 5 else (20, 30))
    assert dict(rewritten.getexif()) == {}
    difference = np.abs(np.asarray(upright.resize(rewritten.size), int) - np.asarray(rewritten, int))
    assert difference.mean() < 4


def sixteen_bit() -> bytes:
    return encoded(Image.fromarray(np.full((8, 8), 0x8000, np.uint16)), "PNG")


def palette() -> bytes:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, *RED])
    return encoded(image, "PNG")


def see_through_palette() -> bytes:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, *RED])
    return encoded(image, "PNG", transparency=1)


def animation() -> bytes:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, (0, 0, 255), (0, 255, 0))]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("data", "colour"),
    [
        (encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95), RED),
        (encoded(Image.new("L", (8, 8), 200), "JPEG", quality=95), (200, 200, 200)),
        (encoded(Image.new("1", (8, 8), 1), "PNG"), WHITE),
        (encoded(Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "PNG"), WHITE),
        (encoded(Image.new("RGBA", (8, 8), (255, 0, 0, 128)), "PNG"), (255, 127, 127)),
        (encoded(Image.new("LA", (8, 8), (0, 0)), "PNG"), WHITE),
        (encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), "WEBP", lossless=True, exact=True), WHITE),
        (sixteen_bit(), (128, 128, 128)),
        (palette(), RED),
        (see_through_palette(), WHITE),
        (animation(), RED),
        (encoded(Image.new("RGB", (8, 8), RED), "BMP"), RED),
        (encoded(Image.new("RGB", (8, 8), RED), "TIFF"), RED),
    ],
)
def test_odd_images_become_plain_ones(data: bytes, colour: tuple[int, int, int]) -> None:
    written, extension = rewrite(data, JPEG)
    assert (extension, decoded(written).format) == ("jpg", "JPEG")
    assert decoded(written).mode in ("RGB", "L")
    assert close(decoded(written), colour)


@pytest.mark.parametrize(
    ("transform", "size", "expected"),
    [
        (Transform(resize=20), (60, 40), (30, 20)),
        (Transform(resize=20), (15, 10), (15, 10)),
        (Transform(resize=20, mode="shortest"), (15, 10), (30, 20)),
        (Transform(resize=20, mode="exact"), (60, 40), (20, 20)),
        (Transform(resize=20, mode="exact"), (10, 15), (20, 20)),
        (Transform(resize=20, mode="exact"), (20, 20), (20, 20)),
        (Transform(resize=3), (1000, 2), (1000, 2)),
        (Transform(resize=100), (683, 512), (133, 100)),
        (Transform(resize=1), (40, 60), (1, 1)),
        (Transform(resize=256), (683, 512), (341, 256)),
        (Transform(resize=64), (1365, 1024), (85, 64)),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_sizes(transform: Transform, size: tuple[int, int], expected: tuple[int, int], kind: str) -> None:
    written, _ = rewrite(encoded(gradient(*size), kind), transform)
    assert decoded(written).size == expected
    if transform.mode != "exact":
        assert target_size(size, transform) == expected


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_image_that_is_as_asked_keeps_its_bytes(kind: str) -> None:
    data = encoded(gradient(60, 40), kind)
    for transform in (Transform(resize=40), Transform(format="keep", resize=100), Transform(format=kind.lower())):
        assert rewrite(data, transform)[0] == data


def test_formats_are_those_asked_for() -> None:
    data = encoded(gradient(30, 20), "BMP")
    found = {name: rewrite(data, Transform(resize=10, format=name)) for name in ("keep", "jpeg", "webp", "png")}
    assert {name: extension for name, (_, extension) in found.items()} == {
        "keep": "png",
        "jpeg": "jpg",
        "webp": "webp",
        "png": "png",
    }
    assert [decoded(written).format for written, _ in found.values()] == ["PNG", "JPEG", "WEBP", "PNG"]


def test_subsampling_and_quality_are_used() -> None:
    import simplejpeg

    data = encoded(gradient(60, 40), "PNG")
    for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
        written, _ = rewrite(data, Transform(format="jpeg", subsampling=subsampling))
        assert simplejpeg.decode_jpeg_header(written)[3] == subsampling.replace(":", "")
    assert len(rewrite(data, Transform(format="jpeg", quality=30))[0]) < len(rewrite(data, Transform(format="jpeg"))[0])


@pytest.mark.parametrize("side", [100, 250, 333, 500, 640])
def test_reduced_decoding_stays_near_exact_resizing(side: int) -> None:
    """The decoder's reduction is a short cut, not another picture."""
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).resize((1200, 800), Image.Resampling.BICUBIC)
    data = encoded(photo, "JPEG", quality=92)
    written = decoded(rewrite(data, Transform(resize=side, format="jpeg", quality=98, subsampling="4:4:4"))[0])
    exact = decoded(data).resize(written.size, Image.Resampling.LANCZOS)
    error = np.asarray(written, float) - np.asarray(exact, float)
    assert 10 * np.log10(255**2 / (error**2).mean()) > 35


def test_a_partial_pixel_at_the_edge_is_left_out_and_nothing_is_shifted() -> None:
    """683 / 2 and 1365 / 4 are no whole numbers; stretching the rest would move the right side by up to half a pixel."""
    for width, height, scale in ((683, 512, 2), (1365, 1024, 4)):
        whole = gradient(width, height)
        written = decoded(rewrite(encoded(whole, "JPEG", quality=95), Transform(resize=256, format="jpeg", quality=98))[0])
        box = (0, 0, width // scale * scale, height)
        exact = whole.resize(written.size, Image.Resampling.BOX, box=box)
        assert np.abs(np.asarray(written, int) - np.asarray(exact, int)).mean() < 0.6


def test_pixels_are_the_same_with_any_vector_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes a shard's bytes a matter of versions and not of machines."""
    import cykooz_resizer

    fast = cykooz_resizer.Resizer
    best = fast().cpu_extensions
    extensions = cykooz_resizer.CpuExtensions
    known = [extensions.none, extensions.sse4_1, best] if best is extensions.avx2 else [extensions.none, best]
    rng = np.random.default_rng(0)
    noise = [encoded(Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)), "PNG") for size in ((301, 417), (64, 64))]

    def written() -> list[bytes]:
        sides = (31, 63, 64, 200, 400)
        transforms = [Transform(resize=side, mode="shortest", format="png") for side in sides]
        return [rewrite(data, transform)[0] for data in noise for transform in transforms]

    found = []
    for chosen in known:

        def resizer(chosen: Any = chosen) -> Any:
            made = fast()
            made.cpu_extensions = chosen
            return made

        monkeypatch.setattr(cykooz_resizer, "Resizer", resizer)
        found.append(written())
    assert len(found) >= 2 and all(images == found[0] for images in found)


def test_rewriting_again_gives_the_same_bytes() -> None:
    data = encoded(gradient(500, 300), "JPEG")
    for name in ("jpeg", "webp", "png"):
        transform = Transform(resize=64, format=name)
        assert rewrite(data, transform) == rewrite(data, transform)


def accepts(look: Callable[[], object]) -> bool:
    try:
        look()
    except (BadRow, OSError, SyntaxError):
        return False
    return True


def test_what_libjpeg_turbo_refuses_is_left_to_pillow() -> None:
    data = encoded(gradient(64, 48), "JPEG", quality=95)
    damaged = [data[:at] + mark + data[at + 2 :] for at in range(620, len(data) - 2, 40) for mark in (b"\xff\x55", b"\xff\xd9")]
    refused = [candidate for candidate in damaged if turbo(candidate, "GRAY", 64, 48, 1) is None]
    verdicts = [accepts(lambda candidate=candidate: decoded(candidate).load()) for candidate in refused]
    assert len(refused) >= 10
    for candidate, verdict in zip(refused, verdicts, strict=True):
        assert accepts(lambda candidate=candidate: examine(candidate)) is verdict
    four_colours = encoded(Image.new("CMYK", (64, 48), (0, 255, 255, 0)), "JPEG")
    assert close(decoded(rewrite(four_colours, Transform(resize=16, format="jpeg"))[0]), RED)


@pytest.mark.parametrize("cut", [30, 400, 900])
def test_cut_images_are_refused(cut: int) -> None:
    data = encoded(gradient(64, 48), "JPEG")
    for look in (lambda: examine(data[:cut]), lambda: rewrite(data[:cut], Transform(resize=16))):
        with pytest.raises(BadRow, match="image-undecodable"):
            look()


def test_error_texts_hold_no_addresses() -> None:
    with pytest.raises(BadRow) as caught:
        examine(b"no image at all")
    assert " 0x" not in caught.value.detail


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "gif"}, "format 'gif' is unknown; there are: keep, jpeg, webp, png"),
        ({"mode": "longest"}, "mode 'longest' is unknown; there are: larger, shortest, exact"),
        ({"subsampling": "4:1:1"}, "subsampling '4:1:1' is unknown"),
        ({"quality": 101}, "quality 101 must lie in 1 to 100"),
        ({"mode": "exact"}, "needs a size; give --resize N"),
    ],
)
def test_wrong_settings_are_explained(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Transform(**fields)
