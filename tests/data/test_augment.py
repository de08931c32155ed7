"""Decoding every kind of picture, refusing bad ones, and views that are a pure function of bytes and parameters."""

from __future__ import annotations

import dataclasses
import io
import struct
import zlib

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image, ImageOps
from torchvision import transforms

from pipeline.config import AugmentConfig, ViewConfig
from pipeline.data import augment
from pipeline.data.drops import BadSample
from pipeline.data.plan import sample_rng
from pipeline.data.views import ViewParams, vector
from tests.data.on_disk import encoded, picture

MAX = 1_000_000
EVERYTHING = AugmentConfig(
    crop_scale=(0.2, 1.0),
    flip_probability=0.5,
    jitter_probability=0.8,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    grayscale_probability=0.2,
)
STRONG = ViewConfig(
    crop_scale=(0.08, 1.0),
    flip_probability=0.5,
    jitter_probability=0.8,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    jitter_order="random",
    grayscale_probability=0.2,
    blur_probability=0.5,
    solarise_probability=0.2,
)
WHOLE = AugmentConfig(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))


def cause_of(data: bytes, max_pixels: int = MAX) -> tuple[str, str]:
    with pytest.raises(BadSample) as caught:
        augment.decode(data, max_pixels)
    return caught.value.drop.cause, caught.value.drop.detail


def corner(image: Image.Image, kind: str = "PNG", **options: object) -> tuple[int, ...]:
    decoded = augment.decode(encoded(image, kind, **options), MAX)
    assert decoded.mode == "RGB"
    return decoded.getpixel((0, 0))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_lossless_formats_decode_exactly(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    image = picture(1).quantize(16).convert("RGB")
    decoded = augment.decode(encoded(image, kind, **options), MAX)
    assert np.array_equal(np.asarray(decoded), np.asarray(image))


def test_transparency_shows_white():
    assert corner(Image.new("RGBA", (4, 4), (255, 0, 0, 0))) == (255, 255, 255)
    assert corner(Image.new("RGBA", (4, 4), (255, 0, 0, 255))) == (255, 0, 0)
    assert corner(Image.new("RGBA", (4, 4), (0, 0, 0, 128))) == (127, 127, 127)
    assert corner(Image.new("LA", (4, 4), (0, 0))) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert corner(palette) == (10, 20, 30)
    assert corner(palette, transparency=1) == (255, 255, 255)
    assert corner(palette, "GIF", transparency=1) == (255, 255, 255)
    assert corner(Image.new("RGB", (4, 4), (1, 2, 3)), transparency=(1, 2, 3)) == (255, 255, 255)
    assert corner(Image.new("L", (4, 4), 9), transparency=9) == (255, 255, 255)


def test_other_pixel_kinds():
    assert corner(Image.new("1", (4, 4), 1)) == (255, 255, 255)
    assert corner(Image.new("L", (4, 4), 77)) == (77, 77, 77)
    assert corner(Image.fromarray(np.full((4, 4), 0x4D80, np.uint16))) == (0x4D, 0x4D, 0x4D)
    red, green, blue = corner(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95)
    assert (red, green, blue) == pytest.approx((255, 0, 0), abs=4)
    assert cause_of(encoded(Image.new("F", (4, 4), 0.5), "TIFF"))[0] == "image-undecodable"


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    image = Image.new("RGB", (20, 10), "white")
    image.paste((0, 0, 0), (0, 0, 10, 10))
    decoded = augment.decode(encoded(image, "JPEG", exif=exif, quality=95), MAX)
    assert decoded.size == (10, 20)
    assert decoded.getpixel((5, 3))[0] < 20
    assert decoded.getpixel((5, 16))[0] > 235


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_no_bytes_and_broken_bytes():
    assert cause_of(b"") == ("image-empty", "the image has 0 bytes")
    cause, detail = cause_of(b"<html>404 Not Found</html>")
    assert cause == "image-undecodable"
    assert detail.startswith("UnidentifiedImageError")
    assert detail.endswith("(26 bytes)")
    for kind in ("PNG", "JPEG", "WEBP", "TIFF"):
        whole = encoded(picture(1, 64), kind)
        for length in (8, len(whole) // 2, len(whole) - 60):
            assert cause_of(whole[:length])[0] == "image-undecodable", (kind, length)


def test_formats_that_start_other_programs_are_not_tried():
    assert cause_of(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")[0] == "image-undecodable"


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [1_001, 9_000, 10_000, 50_000])
def test_decompression_bombs_are_refused_by_their_header(side):
    """Nothing but a header is there: had the pixels been asked for, the cause would be another one."""
    assert cause_of(png_header(side, side))[0] == "image-too-large"


def test_a_picture_of_exactly_the_bound_is_decoded():
    data = encoded(Image.new("RGB", (1000, 1000)))
    assert augment.decode(data, MAX).size == (1000, 1000)
    assert cause_of(data, MAX - 1) == (
        "image-too-large",
        "1000 x 1000 pixels, the bound is 999999 (data.max_image_pixels)",
    )


def jpeg(number: int, width: int = 301, height: int = 203, **options: object) -> bytes:
    """A smooth picture with some grain, of odd sides, as JPEG."""
    grain = np.random.Generator(np.random.PCG64(number)).integers(-12, 13, (height, width, 3))
    smooth = np.asarray(picture(number, 8).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return encoded(Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)), "JPEG", **{"quality": 90, **options})


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("orientation", range(1, 10))
@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
def test_pixels_are_pillows_bit_for_bit(orientation, reduction):
    data = jpeg(orientation, exif=oriented(orientation))
    image = Image.open(io.BytesIO(data))
    image.draft(None, (image.width // reduction, image.height // reduction))
    expected = np.asarray(ImageOps.exif_transpose(image))
    opened = augment.Encoded(data, MAX)
    assert opened.size == ((203, 301) if orientation in (5, 6, 7, 8) else (301, 203))
    assert np.array_equal(opened.pixels(reduction), expected)
    assert expected.shape[:2] == tuple(-(-side // reduction) for side in opened.size[::-1])


@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 2, "progressive": True}, {"quality": 30}])
def test_other_kinds_of_jpeg_too(options):
    for data in (jpeg(1, **options), encoded(picture(1, 90).convert("L"), "JPEG"), encoded(picture(1).convert("CMYK"), "JPEG")):
        opened = augment.Encoded(data, MAX)
        assert np.array_equal(opened.pixels(), np.asarray(augment.decode(data, MAX)))
        assert opened.pixels(2).shape[:2] == tuple(-(-side // 2) for side in opened.size[::-1])


def test_a_jpeg_that_only_pillow_forgives_is_decoded_as_pillow_does():
    data = jpeg(1)
    odd = data[:-2] + bytes(40) + data[-2:]
    assert np.array_equal(augment.Encoded(odd, MAX).pixels(), np.asarray(augment.decode(data, MAX)))
    with pytest.raises(BadSample, match="image-undecodable"):
        augment.Encoded(data[: len(data) // 2], MAX).pixels()


def views(
    data: bytes, cfg: AugmentConfig, size: int, key: str = "a", **words: int
) -> tuple[torch.Tensor, tuple[ViewParams, ...]]:
    """The views [V, 3, size, size] of an encoded picture, and how they were made."""
    opened = augment.Encoded(data, MAX)
    params = augment.draw(opened, cfg, size, sample_rng(words.get("seed", 0), words.get("epoch", 0), key))
    return torch.cat(augment.make_views(opened, params, size, cfg.interpolation)), params


def test_a_view_is_a_function_of_seed_epoch_and_key():
    data = encoded(picture(3, 48))
    first, _ = views(data, EVERYTHING, 32)
    assert first.dtype == torch.uint8
    assert first.shape == (1, 3, 32, 32)
    assert torch.equal(first, views(data, EVERYTHING, 32)[0])
    others = [views(data, EVERYTHING, 32, **words)[0] for words in ({"seed": 1}, {"epoch": 1}, {"key": "b"})]
    assert all(not torch.equal(first, other) for other in others)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_replaying_the_recorded_parameters_gives_the_same_bytes(kind):
    cfg = dataclasses.replace(EVERYTHING, more_views=(STRONG, STRONG))
    data = encoded(picture(3, 200), kind)
    reductions = set()
    for n in range(12):
        made, params = views(data, cfg, 32, key=str(n))
        again = augment.make_views(augment.Encoded(data, MAX), params, 32, "bicubic")
        assert torch.equal(made, torch.cat(again))
        reductions |= {p.reduction for p in params}
    assert reductions == ({1} if kind == "PNG" else {2, 4}), "more than one size was tried"


def test_nothing_random_means_the_picture_itself():
    image = picture(3, 32)
    made, (params,) = views(encoded(image), WHOLE, 32)
    assert np.array_equal(made[0].permute(1, 2, 0), np.asarray(image))
    assert not vector(params).any()


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_crops_are_pillows_and_torchvisions_to_one_level(interpolation):
    data = jpeg(2)
    image = augment.decode(data, MAX)
    resample = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[interpolation]
    for n in range(20):
        cfg = AugmentConfig(crop_scale=(0.05, 1.0), flip_probability=0.5, interpolation=interpolation, reduced_decoding=False)
        made, (params,) = views(data, cfg, 64, key=str(n))
        left, upper, right, lower = params.box
        pillow = image.crop(params.box).resize((64, 64), resample)
        mode = transforms.InterpolationMode(interpolation)
        stock = transforms.functional.resized_crop(image, upper, left, lower - upper, right - left, [64, 64], mode)
        for other in (pillow, stock):
            flipped = np.asarray(other)[:, ::-1] if params.flip else np.asarray(other)
            assert np.abs(made[0].permute(1, 2, 0).numpy().astype(int) - flipped).max() <= 1


def test_reduced_decoding_changes_a_view_little_and_never_enlarges():
    """The bound that docs/views.md states: pixels averaged by the decoder's transform instead of by the filter."""
    cfg = AugmentConfig(crop_scale=(0.3, 1.0))
    differences, reductions = [], set()
    for n in range(24):
        data = jpeg(n, 641, 479)
        made, (params,) = views(data, cfg, 96, key=str(n))
        left, upper, right, lower = params.box
        assert min(right - left, lower - upper) >= 96 * params.reduction
        exact = augment.make_views(augment.Encoded(data, MAX), [dataclasses.replace(params, reduction=1)], 96, "bicubic")[0]
        differences.append((made.int() - exact.int()).abs().float())
        reductions.add(params.reduction)
    difference = torch.cat(differences)
    assert reductions == {2, 4}
    assert difference.mean() < 1
    assert difference.flatten().quantile(0.99) <= 4
    assert views(data, dataclasses.replace(cfg, reduced_decoding=False), 96)[1][0].reduction == 1


@pytest.mark.parametrize(("width", "height"), [(400, 10), (10, 400), (1, 1), (1, 3)])
def test_crops_of_extreme_pictures(width, height):
    for kind in ("PNG", "JPEG"):
        data = encoded(Image.new("RGB", (width, height), (9, 9, 9)), kind)
        for n in range(10):
            assert torch.equal(views(data, AugmentConfig(), 8, key=str(n))[0], torch.full((1, 3, 8, 8), 9, dtype=torch.uint8))


@pytest.mark.parametrize("size", [(32, 32), (33, 57), (57, 33), (20, 90), (31, 60), (60, 31), (64, 65), (31, 32), (100, 35)])
def test_the_evaluation_view_is_open_clips(size):
    image = picture(2, 96).resize(size)
    stock = open_clip.image_transform(32, is_train=False, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    view = augment.eval_view(image, 32)
    assert view.shape == (3, 32, 32)
    assert view.dtype == np.uint8
    ours = augment.normalise(torch.from_numpy(view)[None], (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))[0]
    assert torch.equal(ours, stock(image))


def test_normalising_keeps_shape_and_gives_float():
    out = augment.normalise(torch.full((2, 3, 4, 4), 255, dtype=torch.uint8), (0.5, 0.5, 0.0), (0.5, 0.25, 1.0))
    assert out.dtype == torch.float32
    assert out.shape == (2, 3, 4, 4)
    assert out[0, :, 0, 0].tolist() == [1.0, 2.0, 1.0]
