"""``ddgan-fast edit``: pictures in, pictures out, one sentence for what cannot work."""

import numpy as np
import pytest
from PIL import Image
from test_sampling import GOLDEN, drawn, image_config, weights_of

from ddgan_fast.cli import main
from ddgan_fast.config import to_dict
from ddgan_fast.editing.pictures import read_image, read_mask, read_strokes, write_gif
from ddgan_fast.sampling import load_generator
from ddgan_fast.training.checkpoint import save_ema


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A checkpoint, an image, a mask and strokes, in the working folder."""
    monkeypatch.chdir(tmp_path)
    cfg = image_config(num_timesteps=3)
    save_ema(tmp_path / "run", 4, weights_of(cfg, 0), to_dict(cfg))
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save("in.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[4:] = 255
    Image.fromarray(mask).save("mask.png")
    strokes = np.zeros((8, 8, 4), np.uint8)
    strokes[2:4, 1:7] = (255, 0, 0, 255)
    Image.fromarray(strokes).save("strokes.png")
    return tmp_path


def pngs(folder):
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.iterdir())])


COMMANDS = {
    "noise": ["run", "in.png", "--strength", "1,2", "-n", "3"],
    "stroke": ["run", "in.png", "--strength", "2", "-n", "6"],
    "inpaint": ["run", "in.png", "--mask", "mask.png", "-n", "6"],
    "interpolate": ["run", "--samples", "2,0", "--frames", "5"],
    "resize": ["run", "--size", "8x8", "-n", "6"],
    "steps": ["run", "-n", "1"],
}


@pytest.mark.parametrize("kind", COMMANDS)
def test_every_edit_as_folder_and_animation(folder, capsys, kind):
    command = ["edit", kind, *COMMANDS[kind], "--seed", "1", "--device", "cpu"]
    assert main([*command, "-o", "out"]) == 0
    assert capsys.readouterr().out == "6 images in out (ema-000000004.safetensors, seed 1).\n"
    images = pngs(folder / "out")
    assert images.shape == (6, 8, 8, 3)
    assert main([*command, "-o", "out.gif"]) == 0
    with Image.open("out.gif") as animation:
        assert animation.n_frames == 6 and animation.info["loop"] == 0
        assert animation.size == (48, 48)


def test_the_results_are_those_of_the_functions(folder):
    model = load_generator("run")
    samples = drawn(model, 6, seed=1)
    original = np.asarray(Image.open("in.png"))
    for kind in COMMANDS:
        assert main(["edit", kind, *COMMANDS[kind], "--seed", "1", "-o", f"{kind}.npz"]) == 0
    found = {kind: np.load(f"{kind}.npz")["arr_0"] for kind in COMMANDS}
    assert np.array_equal(found["resize"], samples)
    assert np.array_equal(found["inpaint"][:, :4], np.stack([original[:4]] * 6))
    assert len({image.tobytes() for image in found["inpaint"]}) == 6
    assert np.abs(found["interpolate"][[0, 5]].astype(int) - samples[[2, 0]]).max() <= 1
    assert np.abs(found["steps"][-1].astype(int) - samples[0]).max() <= 1
    assert np.array_equal(found["noise"][3:], found["stroke"][:3])
    assert main(["edit", "noise", "run", "in.png", "--strength", "0", "-o", "same.npz"]) == 0
    assert np.array_equal(np.load("same.npz")["arr_0"], np.stack([original] * 8))


def test_grids(folder):
    command = ["edit", "noise", "run", "in.png", "--strength", "0,1", "-n", "3", "--with-input"]
    assert main([*command, "-o", "noise.png"]) == 0
    assert Image.open("noise.png").size == (4 * 49 + 1, 2 * 49 + 1)
    command = ["edit", "inpaint", "run", "in.png", "--mask", "mask.png", "-n", "2"]
    assert main([*command, "--with-input", "-o", "filled.npz"]) == 0
    image, hole, *filled = np.load("filled.npz")["arr_0"]
    assert np.array_equal(image, np.asarray(Image.open("in.png")))
    assert np.array_equal(hole[:4], image[:4]) and (hole[4:] == 128).all() and len(filled) == 2
    assert main(["edit", "steps", "run", "-n", "4", "-o", "steps.gif"]) == 0
    with Image.open("steps.gif") as animation:
        assert animation.n_frames == 6 and animation.size == (99, 99)


def test_strokes_on_a_photograph(folder):
    command = ["edit", "stroke", "run", "strokes.png", "--on", "in.png", "-n", "2"]
    assert main([*command, "--with-input", "-o", "out.npz"]) == 0
    shown, *edited = np.load("out.npz")["arr_0"]
    original = np.asarray(Image.open("in.png"))
    painted = np.zeros((8, 8), bool)
    painted[2:4, 1:7] = True
    assert (shown[painted] == (255, 0, 0)).all()
    for image in (shown, *edited):
        assert np.array_equal(image[~painted], original[~painted])
    assert main(["edit", "stroke", "run", "strokes.png", "-o", "other.npz"]) == 2


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_a_published_checkpoint(folder, weights):
    command = ["edit", "inpaint", str(GOLDEN / "content.pth"), "in.png", "--mask", "mask.png"]
    assert main([*command, "-n", "2", "--weights", weights, "-o", "out.npz"]) == 0
    filled = np.load("out.npz")["arr_0"]
    assert filled.shape == (2, 16, 16, 3)
    # Enlarged smoothly, so that known and missing parts meet in one row.
    assert np.array_equal(filled[:, :7], np.stack([read_image("in.png", 16, 3)[:7]] * 2))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("blur run", "edits are noise, stroke"),
        ("noise run in.png -o out.bmp", "out.bmp is unknown: use .png for a grid, .gif for an"),
        ("noise run in.png -o run.gif", "run.gif is a folder"),
        ("noise run nothing.png -o out", "there is no picture nothing.png."),
        ("noise run text.png -o out", "text.png cannot be used as a picture: "),
        ("noise run in.png -o out -n 0", "-n is 0: it must be at least 1"),
        ("noise run in.png -o out --strength 4", "the strength is 4"),
        ("noise run in.png -o out --strength a", "'a' is not a list of numbers like 0,1,2"),
        ("noise run in.png -o out.gif --seconds 0", "--seconds is 0.0"),
        ("noise nowhere in.png -o out", "there is no checkpoint nowhere"),
        ("stroke run strokes.png -o out", "has transparent parts: paint everything, or name by"),
        ("stroke run strokes.png --on large.png -o out", "strokes.png is 8x8 and large.png is 9x8"),
        ("inpaint run in.png -o out", "the following arguments are required: --mask"),
        ("inpaint run in.png --mask large.png -o out", "large.png is 9x8 and in.png is 8x8"),
        ("interpolate run --samples 1 -o out", "at least two samples"),
        ("interpolate run --move up -o out", "move is 'up'"),
        ("resize run --size 9x9 -o out", "must be multiples of 2"),
        ("resize run --size 8 -o out", "'8' is not a size like 256x512"),
    ],
)
def test_refusals_write_nothing(folder, capsys, arguments, sentence):
    (folder / "text.png").write_text("no image")
    Image.new("RGB", (9, 8)).save("large.png")
    (folder / "run.gif").mkdir()
    before = sorted(folder.rglob("*"))
    assert main(["edit", *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert sorted(folder.rglob("*")) == before


def test_help(capsys):
    assert main(["edit", "--help"]) == 0
    assert "inpaint" in capsys.readouterr().out
    assert main(["edit"]) == 2
    for kind in COMMANDS:
        assert main(["edit", kind, "--help"]) == 0
        assert f"ddgan-fast edit {kind} runs/digits" in capsys.readouterr().out


def test_pictures_of_other_sizes_and_kinds(folder):
    grey = np.tile(np.repeat([0, 255], 8).astype(np.uint8), (32, 1))
    Image.fromarray(grey).resize((32, 64)).save("tall.png")
    assert read_image("tall.png", 8, 3).shape == (8, 8, 3)
    assert read_image("tall.png", 8, 4)[..., 3].min() == 255
    mask = np.zeros((64, 32), np.uint8)
    mask[30, 9] = 255  # one bright pixel in a crop of 32 x 32
    mask[:, 0] = 100  # dark enough
    Image.fromarray(mask).save("dot.png")
    found = read_mask("dot.png", "tall.png", 8)
    assert found.dtype == bool and found[3, 2] and 0 < found.sum() <= 9
    with Image.open("in.png") as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.save("turned.png", exif=exif)
    turned, upright = read_image("turned.png", 8, 3), read_image("in.png", 8, 3)
    assert np.array_equal(turned, np.rot90(upright, -1))


def test_strokes_cover_where_they_are_opaque(folder):
    merged, painted = read_strokes("strokes.png", "in.png", 4, 3)
    assert merged.shape == (4, 4, 3) and painted.dtype == bool
    assert painted[1].all() and not painted[3].any()
    merged, painted = read_strokes("in.png", None, 8, 1)
    assert merged.shape == (8, 8, 1) and painted is None


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_animations(tmp_path, channels):
    frames = np.zeros((3, 64, 80, channels), np.uint8)
    frames[1, ..., 0], frames[2] = 200, 255
    path = tmp_path / "sub" / "out.gif"
    write_gif(frames, path, 0.5)
    shown, lengths = [], []
    with Image.open(path) as animation:
        for i in range(animation.n_frames):
            animation.seek(i)
            lengths.append(animation.info["duration"])
            shown.append(np.asarray(animation.convert("RGB")))
    assert lengths == [500, 500, 1500]
    assert shown[0].shape == (64, 80, 3) and shown[0].max() < 5 and shown[2].min() > 250
    assert abs(int(shown[1][0, 0, 0]) - 200) < 5
    assert [file.name for file in path.parent.iterdir()] == ["out.gif"]
