"""Image rules: geometry, colour, orientation, and what is refused."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from ddgan_fast.data.images import Geometry, decode_image, prepare_pixels
from ddgan_fast.data.sniff import is_plain


def photo(height, width, channels=3, seed=0):
    """A smooth picture with some noise, so that a shift by one pixel shows."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    planes = [
        127 + 80 * np.sin(x / (7 + c)) * np.cos(y / (9 - c)) + rng.normal(0, 12, (height, width))
        for c in range(channels)
    ]
    return np.clip(np.stack(planes, axis=2), 0, 255).astype(np.uint8)


def encode(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def decode(image, size, channels, kind="PNG", **options):
    return decode_image(encode(image, kind, **options), "x", size, channels)


@pytest.mark.parametrize(
    ("width", "height", "size", "new_width", "left"),
    [
        # int(S * long / short), and Python's rounding of halves to even
        (640, 427, 256, 383, 64),  # 383.7 -> 383; 63.5 -> 64
        (639, 427, 256, 383, 64),
        (636, 427, 256, 381, 62),  # 62.5 -> 62
        (500, 375, 64, 85, 10),  # 10.5 -> 10
        (177, 100, 32, 56, 12),
        (33, 32, 32, 33, 0),  # 0.5 -> 0
        (35, 32, 32, 35, 2),  # 1.5 -> 2
        (20, 13, 32, 49, 8),  # enlarging; 8.5 -> 8
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_geometry(width, height, size, new_width, left, turned):
    pixels = photo(height, width)
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    resized = torch.nn.functional.interpolate(
        x, size=(size, new_width), mode="bilinear", antialias=True
    )
    expected = resized[0, :, :, left : left + size].permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels)
    if turned:
        image, expected = image.transpose(Image.Transpose.TRANSPOSE), expected.transpose(1, 0, 2)
    difference = np.abs(decode(image, size, 3).astype(float) - expected)
    assert difference.max() <= 1.5 and difference.mean() < 0.5


def test_right_size_is_untouched():
    pixels = photo(32, 32)
    np.testing.assert_array_equal(decode(Image.fromarray(pixels), 32, 3), pixels)


GREY = 0.299, 0.587, 0.114


def test_colour_rules():
    rgb = photo(16, 16)
    grey = photo(16, 16, 1, seed=5)
    alpha = photo(16, 16, 1, seed=6)
    rgba = np.concatenate([rgb, alpha], axis=2)
    np.testing.assert_array_equal(decode(Image.fromarray(rgba), 16, 3), rgb)
    np.testing.assert_array_equal(decode(Image.fromarray(rgba), 16, 4), rgba)
    opaque = decode(Image.fromarray(rgb), 16, 4)
    np.testing.assert_array_equal(opaque[..., :3], rgb)
    assert (opaque[..., 3] == 255).all()
    luma = decode(Image.fromarray(rgb), 16, 1)[..., 0]
    assert np.abs(luma - rgb @ np.array(GREY)).max() <= 1
    np.testing.assert_array_equal(
        decode(Image.fromarray(grey[..., 0]), 16, 3), grey.repeat(3, axis=2)
    )
    np.testing.assert_array_equal(decode(Image.fromarray(grey[..., 0]), 16, 1), grey)
    la = Image.fromarray(np.concatenate([grey, alpha], axis=2), "LA")
    np.testing.assert_array_equal(decode(la, 16, 1), grey)
    np.testing.assert_array_equal(decode(la, 16, 3), grey.repeat(3, axis=2))
    np.testing.assert_array_equal(decode(la, 16, 4)[..., 3], alpha[..., 0])


def test_black_and_white():
    bits = photo(16, 16, 1)[..., 0] > 127
    expected = np.where(bits, 255, 0)[..., None]
    np.testing.assert_array_equal(decode(Image.fromarray(bits), 16, 1), expected)
    np.testing.assert_array_equal(decode(Image.fromarray(bits), 16, 3), expected.repeat(3, axis=2))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("transparency", [None, 3, bytes(range(0, 160, 10))])
def test_palette(transparency):
    rng = np.random.default_rng(0)
    palette = rng.integers(0, 256, (16, 3), dtype=np.uint8)
    numbers = rng.integers(0, 16, (16, 16), dtype=np.uint8)
    image = Image.fromarray(numbers, "P")
    image.putpalette(palette.tobytes())
    options = {} if transparency is None else {"transparency": transparency}
    np.testing.assert_array_equal(decode(image, 16, 3, **options), palette[numbers])
    luma = decode(image, 16, 1, **options)[..., 0]
    assert np.abs(luma - palette[numbers] @ np.array(GREY)).max() <= 1
    alpha = np.full(16, 255)
    if isinstance(transparency, int):
        alpha[transparency] = 0
    elif transparency is not None:
        alpha[:] = list(transparency)
    np.testing.assert_array_equal(decode(image, 16, 4, **options)[..., 3], alpha[numbers])


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "I;16"), ("TIFF", "I;16"), ("TIFF", "I;16B")])
def test_sixteen_bit_grey_keeps_the_upper_byte(kind, mode):
    values = np.random.default_rng(0).integers(0, 65536, (16, 16)).astype(np.uint16)
    order = ">u2" if mode == "I;16B" else "<u2"
    image = Image.frombytes(mode, (16, 16), values.astype(order).tobytes())
    upper = (values >> 8).astype(np.uint8)[..., None]
    np.testing.assert_array_equal(decode(image, 16, 1, kind), upper)
    np.testing.assert_array_equal(decode(image, 16, 3, kind), upper.repeat(3, axis=2))


def test_cmyk():
    solid = Image.new("CMYK", (16, 16), (0, 200, 255, 20))
    for kind in ("JPEG", "TIFF"):
        colour = decode(solid, 16, 3, kind).reshape(-1, 3).mean(0)
        expected = [(255 - ink) * (255 - 20) / 255 for ink in (0, 200, 255)]
        np.testing.assert_allclose(colour, expected, atol=4)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind, orientation):
    upright = np.zeros((16, 16), np.uint8)
    upright[:8, :8], upright[:8, 8:], upright[8:, :8] = 255, 170, 85
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100} if kind == "JPEG" else {}
    if kind == "WEBP":
        options["lossless"] = True
    image = Image.fromarray(np.ascontiguousarray(stored))
    result = decode(image, 16, 1, kind, exif=exif, **options)[..., 0]
    assert np.abs(result.astype(int) - upright).max() <= 3


def test_damaged_metadata_does_not_matter():
    pixels = photo(16, 16)
    for exif in (b"Exif\0\0MM", b"Exif\0\0garbage" * 3, b"\xff" * 40):
        np.testing.assert_array_equal(decode(Image.fromarray(pixels), 16, 3, exif=exif), pixels)


def refusal(data, size=8, channels=3):
    with pytest.raises(ValueError, match=r"^some\.png cannot be used as an image") as caught:
        decode_image(data, "some.png", size, channels)
    message = str(caught.value)
    assert message.endswith("replace it or take it out of the data.") and "\n" not in message
    return message


def test_unusable_images():
    assert "its 0 bytes are no PNG, JPEG, WEBP, BMP or TIFF image" in refusal(b"")
    assert "its 6 bytes" in refusal(b"<html>")
    good = encode(Image.fromarray(photo(64, 64)))
    for length in (20, 200, len(good) // 2):
        refusal(good[:length])
    refusal(encode(Image.fromarray(photo(64, 64)), "JPEG")[:900])
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 255
    refusal(bytes(flipped))
    assert "no PNG" in refusal(encode(Image.fromarray(photo(8, 8)), "GIF"))


def test_several_frames_are_refused_but_not_the_cameras_preview():
    frames = [Image.fromarray(photo(8, 8, seed=i)) for i in range(2)]
    for kind in ("PNG", "WEBP", "TIFF"):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
        assert "several frames or pages" in refusal(data)
    camera = encode(frames[0], "MPO", save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(decode_image(camera, "x", 8, 3), photo(8, 8), atol=90)


def test_undefined_ranges_are_refused():
    assert "32-bit" in refusal(encode(Image.new("F", (8, 8)), "TIFF"))
    assert "32-bit" in refusal(encode(Image.new("I", (8, 8)), "TIFF"))


def test_decompression_bomb_is_refused():
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    good = bytearray(encode(Image.new("RGB", (1, 1))))
    good[16:29] = header
    good[29:33] = struct.pack(">I", zlib.crc32(b"IHDR" + header))
    assert "more than 178,956,970 pixels" in refusal(bytes(good))


def test_elongated_image_is_refused():
    assert "60000x1, too elongated" in refusal(encode(Image.new("L", (60_000, 1))), size=256)


def test_pixels_that_may_not_be_cropped_are_refused():
    uncropped = Geometry("bilinear", "none")
    with pytest.raises(ValueError, match=r"^0\.npy cannot be used as an image \(it is 9x8, not sq"):
        prepare_pixels(photo(8, 9), "0.npy", 4, 3, uncropped)
    assert prepare_pixels(photo(8, 8), "0.npy", 4, 3, uncropped).shape == (4, 4, 3)


def test_fill_bytes_before_a_marker_are_passed_over():
    data = encode(Image.fromarray(photo(16, 16)), "JPEG")
    start = data.index(b"\xff\xc0")
    filled = data[:start] + b"\xff\xff\xff" + data[start:]
    assert is_plain(filled, 16, 3) and not is_plain(filled, 8, 3)
    np.testing.assert_array_equal(
        decode_image(filled, "x", 16, 3), decode_image(data, "x", 16, 3)
    )
