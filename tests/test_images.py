"""Pictures: exact pixels, whole files, bounded memory."""

import io
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from ddgan_fast import images as module
from ddgan_fast.images import check_output, grid, readable_scale, save_png, to_uint8, write_images


def random_images(count, channels=3, height=8, width=8, seed=0):
    shape = (count, height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def pixels(source, channels):
    image = np.asarray(Image.open(source))
    return image[..., None] if channels == 1 else image


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_to_uint8_rounds_halves_up_and_clips():
    values = np.array([-1, -0.999, 0, 1 / 255, 3 / 255, 0.999, 1, 1.5, -np.inf, np.inf])
    expected = [0, 0, 128, 128, 129, 255, 255, 255, 0, 255]
    assert to_uint8(values.reshape(1, 1, 1, -1)).ravel().tolist() == expected
    assert to_uint8(np.arange(256).reshape(1, 1, 16, 16) / 127.5 - 1).ravel().tolist() == list(
        range(256)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_to_uint8_takes_tensors_of_any_precision_and_layout(dtype):
    x = torch.linspace(-1, 1, 2 * 3 * 4 * 5).reshape(2, 3, 4, 5).to(dtype)
    result = to_uint8(x.to(memory_format=torch.channels_last).requires_grad_())
    assert result.shape == (2, 4, 5, 3) and result.dtype == np.uint8
    expected = (((x.double() + 1) / 2) * 255 + 0.5).floor().clamp(0, 255)
    difference = result.astype(int) - expected.permute(0, 2, 3, 1).numpy()
    assert np.abs(difference).max() <= (1 if dtype is not torch.float64 else 0)


def test_to_uint8_refuses_what_is_no_image():
    with pytest.raises(ValueError, match=r"\[N, C, H, W\], not \[3, 4\]"):
        to_uint8(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="hold NaN"):
        to_uint8(torch.full((1, 1, 2, 2), float("nan")))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_grid_places_every_pixel(channels):
    images = random_images(5, channels, 2, 3)
    result = grid(images, columns=3, border=2, scale=4, border_value=99)
    assert result.shape == (2 * (8 + 2) + 2, 3 * (12 + 2) + 2, channels)
    seen = np.zeros(result.shape[:2], bool)
    for i, image in enumerate(images):
        y, x = 2 + i // 3 * 10, 2 + i % 3 * 14
        cell = result[y : y + 8, x : x + 12]
        np.testing.assert_array_equal(cell, np.kron(image, np.ones((4, 4, 1), np.uint8)))
        seen[y : y + 8, x : x + 12] = True
    assert (result[~seen][:, :3] == 99).all()
    if channels == 4:
        assert (result[~seen][:, 3] == 255).all()


def test_grid_defaults_and_bad_arguments():
    assert grid(random_images(10)).shape == (3 * 9 + 1, 4 * 9 + 1, 3)
    assert grid(random_images(1), border=0).shape == (8, 8, 3)
    assert [readable_scale(size) for size in (8, 16, 28, 32, 256)] == [6, 3, 1, 1, 1]
    for bad in (random_images(0), random_images(1, 2), np.zeros((1, 8, 8, 3)), random_images(1)[0]):
        with pytest.raises(ValueError, match="image"):
            grid(bad)
    for options in ({"columns": -1}, {"scale": 0}, {"border": -1}):
        with pytest.raises(ValueError, match="at least"):
            grid(random_images(2), **options)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_format_gives_the_images_back(tmp_path, channels):
    images = random_images(7, channels)

    def batches():
        yield images[:3]
        yield images[3:]

    folder, archive = tmp_path / "new" / "folder", tmp_path / "new" / "x.zip"
    for out in (folder, archive, tmp_path / "x.npz", tmp_path / "x.PNG"):
        assert write_images(batches(), out) == 7
    expected = [f"{i:06d}.png" for i in range(7)]
    assert names(folder) == expected
    with zipfile.ZipFile(archive) as opened:
        assert opened.namelist() == expected and opened.testzip() is None
        for i, name in enumerate(expected):
            np.testing.assert_array_equal(pixels(folder / name, channels), images[i])
            from_zip = io.BytesIO(opened.read(name))
            np.testing.assert_array_equal(pixels(from_zip, channels), images[i])
    with np.load(tmp_path / "x.npz") as opened:
        assert opened.files == ["arr_0"]
        np.testing.assert_array_equal(opened["arr_0"], images)
    want = grid(images, scale=6, smooth=True)
    np.testing.assert_array_equal(pixels(tmp_path / "x.PNG", channels), want)
    assert names(tmp_path) == ["new", "x.PNG", "x.npz"]
    assert names(tmp_path / "new") == ["folder", "x.zip"]


def test_equal_images_make_equal_files(tmp_path):
    images = random_images(6)
    for suffix in ("png", "zip", "npz"):
        a, b = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
        write_images(images, a, columns=2, scale=1)
        write_images(iter([images[:4], images[4:]]), b, columns=2, scale=1)
        assert a.read_bytes() == b.read_bytes()


def test_png_of_grey_and_existing_file(tmp_path):
    path = tmp_path / "deep" / "x.png"
    for array in (random_images(1, 1)[0], random_images(1, 1)[0, ..., 0], random_images(1)[0]):
        save_png(path, array)
        np.testing.assert_array_equal(np.asarray(Image.open(path)), array.squeeze())
    assert names(path.parent) == ["x.png"]
    with pytest.raises(ValueError, match=r"not float64 \[2, 2\]"):
        save_png(path, np.zeros((2, 2)))
    np.testing.assert_array_equal(np.asarray(Image.open(path)), random_images(1)[0])


@pytest.mark.parametrize("out", ["x.png", "x.zip", "x.npz", "folder"])
def test_a_failure_halfway_leaves_nothing(tmp_path, out):
    def batches():
        yield random_images(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_images(batches(), tmp_path / out)
    assert names(tmp_path) == []
    with pytest.raises(ValueError, match="no images"):
        write_images(iter([]), tmp_path / out)
    assert names(tmp_path) == []


def test_outputs_are_refused_before_anything_is_drawn(tmp_path):
    def batches():
        pytest.fail("it drew")
        yield

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "old.png").write_bytes(b"old")
    with pytest.raises(ValueError, match=r"the suffix \.jpg of .*x\.jpg is unknown: use \.png"):
        write_images(batches(), tmp_path / "x.jpg")
    with pytest.raises(ValueError, match="full is not empty"):
        write_images(batches(), tmp_path / "full")
    (tmp_path / "v1.0").mkdir()
    assert check_output(tmp_path / "v1.0") == ""
    assert write_images(random_images(2), tmp_path / "v1.0") == 2
    assert names(tmp_path / "v1.0") == ["000000.png", "000001.png"]
    assert (tmp_path / "full" / "old.png").read_bytes() == b"old"


@pytest.mark.parametrize("out", ["x.zip", "folder"])
def test_streaming_keeps_one_batch_at_a_time(tmp_path, out, monkeypatch):
    """No image is held back: each is encoded before the next batch is asked for."""
    encoded, real = [], module._png
    monkeypatch.setattr(module, "_png", lambda image: encoded.append(1) or real(image))

    def batches():
        for i in range(5):
            assert len(encoded) == 4 * i
            yield random_images(4, seed=i)

    assert write_images(batches(), tmp_path / out) == 20


def test_leftover_folder_of_a_killed_process_is_replaced(tmp_path):
    (tmp_path / ".out.tmp").mkdir()
    (tmp_path / ".out.tmp" / "000099.png").write_bytes(b"half")
    write_images(random_images(2), tmp_path / "out")
    assert names(tmp_path) == ["out"] and len(names(tmp_path / "out")) == 2


def test_images_need_no_torch():
    code = "import sys, ddgan_fast.images; assert not {'torch', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def write_log(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + '{"step": 9')


def test_loss_curve(tmp_path):
    pytest.importorskip("matplotlib")
    from ddgan_fast.plots import loss_curve

    log = tmp_path / "log.jsonl"
    losses = {"D/real": 0.5, "D/fake": 0.6, "G/loss": 1.0}
    write_log(log, [{"step": 1, **losses, "D/r1": 0.1}, {"step": 2, **losses, "D/fake": "nan"}])
    loss_curve(log, tmp_path / "pictures" / "loss.png")
    assert names(tmp_path / "pictures") == ["loss.png"]
    assert len(np.unique(np.asarray(Image.open(tmp_path / "pictures" / "loss.png")))) > 5

    write_log(log, [{"step": 1}])
    with pytest.raises(ValueError, match="no losses yet"):
        loss_curve(log, tmp_path / "loss.png")
    with pytest.raises(FileNotFoundError, match="there is no log"):
        loss_curve(tmp_path / "absent.jsonl", tmp_path / "loss.png")


def test_missing_matplotlib_is_named(tmp_path, monkeypatch):
    from ddgan_fast.plots import bands

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(RuntimeError, match=r"pip install 'ddgan_fast\[demo\]'"):
        bands({"G": ([1, 2], ([0, 0], [1, 1]), [0.5, 0.5])}, tmp_path / "b.png", band="a", line="b")
    assert names(tmp_path) == []


def test_smooth_enlargement_keeps_sizes_borders_and_flat_areas():
    images = np.zeros((2, 8, 8, 3), np.uint8)
    images[1, :, :, 1] = 200
    result = grid(images, columns=2, scale=6, border_value=7, smooth=True)
    blocks = grid(images, columns=2, scale=6, border_value=7)
    np.testing.assert_array_equal(result, blocks)
    images[1, 3, 3] = 255
    result = grid(images, columns=2, scale=6, border_value=7, smooth=True)
    assert result.shape == blocks.shape
    assert len(np.unique(result)) > 10
