"""Decoding every kind of picture, refusing bad ones, and views that are a pure function of the generator."""

from __future__ import annotations

import dataclasses
import struct
import zlib

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from pipeline.config import AugmentConfig
from pipeline.data import augment
from pipeline.data.drops import BadSample
from pipeline.data.plan import sample_rng
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


def test_large_jpegs_may_be_decoded_smaller_but_never_too_small():
    data = encoded(picture(1, 512), "JPEG")
    assert augment.decode(data, MAX).size == (512, 512)
    assert augment.decode(data, MAX, at_least=65).size == (128, 128)
    assert augment.decode(data, MAX, at_least=300).size == (512, 512)
    assert augment.decode(encoded(picture(1, 512)), MAX, at_least=65).size == (512, 512), "only JPEG can"


def test_the_smallest_useful_side_covers_the_smallest_crop():
    cfg = AugmentConfig(crop_scale=(0.25, 1.0), crop_ratio=(0.5, 2.0))
    side = augment.smallest_useful_side(cfg, 64)
    smallest = [augment.draw_view(cfg, side, side, sample_rng(0, 0, str(n))).box for n in range(300)]
    assert min(min(box[2] - box[0], box[3] - box[1]) for box in smallest) >= 64 - 1e-9
    assert augment.smallest_useful_side(WHOLE, 64) == 64


def test_a_view_is_a_function_of_seed_epoch_and_key():
    image = picture(3, 48)

    def view(seed, epoch, key):
        return augment.train_view(image, EVERYTHING, 32, sample_rng(seed, epoch, key))

    first = view(0, 0, "a")
    assert first.dtype == np.uint8
    assert first.shape == (3, 32, 32)
    assert first.flags.c_contiguous
    assert np.array_equal(first, view(0, 0, "a"))
    others = [view(1, 0, "a"), view(0, 1, "a"), view(0, 0, "b")]
    assert all(not np.array_equal(first, other) for other in others)


def test_nothing_random_means_the_picture_itself():
    image = picture(3, 32)
    assert np.array_equal(augment.train_view(image, WHOLE, 32, sample_rng(0, 0, "a")), chw(image))


def chw(image: Image.Image) -> np.ndarray:
    return np.asarray(image).transpose(2, 0, 1)


def test_switching_one_augmentation_on_leaves_the_others_alone():
    plain = dataclasses.replace(EVERYTHING, grayscale_probability=0.0, flip_probability=0.0)
    for n in range(20):
        rng = [sample_rng(0, 0, str(n)) for _ in range(2)]
        with_all = augment.draw_view(EVERYTHING, 50, 40, rng[0])
        without = augment.draw_view(plain, 50, 40, rng[1])
        assert without == dataclasses.replace(with_all, grayscale=False, flip=False)
        assert rng[0].random() == rng[1].random()


def params(n: int, cfg: AugmentConfig = EVERYTHING, width: int = 50, height: int = 40) -> augment.ViewParams:
    return augment.draw_view(cfg, width, height, sample_rng(5, 0, str(n)))


def test_drawn_parameters_have_the_asked_for_ranges_and_rates():
    drawn = [params(n) for n in range(2000)]
    areas = [(p.box[2] - p.box[0]) * (p.box[3] - p.box[1]) / 2000 for p in drawn]
    ratios = [(p.box[2] - p.box[0]) / (p.box[3] - p.box[1]) for p in drawn]
    assert min(p.box[0] for p in drawn) >= 0
    assert min(p.box[1] for p in drawn) >= 0
    assert max(p.box[2] for p in drawn) <= 50 + 1e-9
    assert max(p.box[3] for p in drawn) <= 40 + 1e-9
    assert 0.2 <= min(areas) < 0.25
    assert 0.9 < max(areas) <= 1 + 1e-9
    assert 0.75 - 1e-9 <= min(ratios) < 0.8
    assert 1.25 < max(ratios) <= 1.3333 + 1e-9
    rates = np.mean([(p.flip, p.hue != 0, p.grayscale) for p in drawn], axis=0)
    assert rates.tolist() == pytest.approx([0.5, 0.8, 0.2], abs=0.04)
    for name, reach in {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4}.items():
        values = [getattr(p, name) for p in drawn]
        assert 1 - reach <= min(values) < 1 - 0.95 * reach
        assert 1 + 0.95 * reach < max(values) <= 1 + reach
    assert -0.1 <= min(p.hue for p in drawn) < -0.095


@pytest.mark.parametrize(("width", "height"), [(400, 10), (10, 400), (1, 1), (1, 3)])
def test_crops_of_extreme_pictures_stay_inside(width, height):
    image = Image.new("RGB", (width, height), (9, 8, 7))
    for n in range(20):
        box = params(n, AugmentConfig(), width, height).box
        assert 0 <= box[0] < box[2] <= width + 1e-9
        assert 0 <= box[1] < box[3] <= height + 1e-9
        view = augment.train_view(image, AugmentConfig(), 8, sample_rng(0, 0, str(n)))
        assert np.array_equal(view, np.broadcast_to(np.array([9, 8, 7], np.uint8)[:, None, None], (3, 8, 8)))


def apply(image: Image.Image, **changes: object) -> np.ndarray:
    whole = augment.ViewParams((0, 0, image.width, image.height), **changes)
    return augment.apply_view(image, whole, image.width).transpose(1, 2, 0)


def test_each_operation_against_its_definition():
    image = picture(7, 16)
    pixels = np.asarray(image).astype(float)
    grey = np.asarray(image.convert("L")).astype(float)[..., None]
    clipped = {
        "brightness": np.clip(pixels * 1.3, 0, 255),
        "contrast": np.clip(grey.mean() + (pixels - grey.mean()) * 1.3, 0, 255),
        "saturation": np.clip(grey + (pixels - grey) * 1.3, 0, 255),
    }
    for name, expected in clipped.items():
        assert np.abs(apply(image, **{name: 1.3}) - expected).max() <= 1.5, name
    assert np.array_equal(apply(image, flip=True), np.asarray(image)[:, ::-1])
    assert np.array_equal(apply(image, grayscale=True), np.repeat(grey, 3, axis=2))


def test_hue_turns_the_colour_wheel():
    def turned(colour, turns):
        return tuple(apply(Image.new("RGB", (4, 4), colour), hue=turns)[0, 0].tolist())

    assert turned((255, 0, 0), 1 / 3) == pytest.approx((0, 255, 0), abs=6)
    assert turned((255, 0, 0), -1 / 3) == pytest.approx((0, 0, 255), abs=6)
    assert turned((0, 0, 255), 0.5) == pytest.approx((255, 255, 0), abs=6)
    assert turned((90, 90, 90), 0.3) == (90, 90, 90)


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
