"""The command line: arguments, sentences, exit codes, dry runs, and one whole run."""

import os
import subprocess
import sys
import types
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

import ddgan_fast
from ddgan_fast import cli, points
from ddgan_fast.cli import COMMANDS, main
from ddgan_fast.commands import train
from ddgan_fast.commands.train import parse
from ddgan_fast.config import Config, ModelConfig, list_presets, load_config, save_yaml, to_dict
from ddgan_fast.models import build_generator
from ddgan_fast.training.checkpoint import save_ema


def run_python(code, **options):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **options)


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["sample", "--help"]])
def test_help_does_not_wait_for_torch(words):
    code = (
        "import sys; from ddgan_fast.cli import main\n"
        f"code = main({words})\n"
        "sys.exit(code or 'torch' in sys.modules)"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert "usage: ddgan-fast" in done.stdout


def test_overview_names_every_command_and_no_other(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    listed = [line.split()[0] for line in out.splitlines() if line.startswith("  ")]
    assert listed == list(COMMANDS)
    assert main([]) == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "72")
    assert main([command, "--help"]) == 0
    usage, *paragraphs = capsys.readouterr().out.split("\n\n")
    assert usage.startswith("usage: ddgan-fast") and max(map(len, usage.splitlines())) <= 80
    text = "\n".join(paragraphs).splitlines()
    # Indented lines stand as they were written.
    assert max(len(line) for line in text if line[:1] != " ") <= 72


def test_help_of_train_explains_every_option_with_the_values_of_the_preset(capsys):
    assert main(["train", "digits", "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for section, options in to_dict(Config()).items():
        if section != "preset":
            assert all(f"--{section}.{name} " in out for name in options)
    assert "Denoising steps T. (type: int, default: 4)" in out
    steps = load_config("digits").run.steps
    assert f"Training steps (one D and one G update each). (type: int, default: {steps})" in out
    assert "true|false" in out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ddgan-fast {ddgan_fast.__version__}\n"


def test_presets_lists_all(capsys):
    assert main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[0] for line in lines] == list_presets()
    assert max(map(len, lines)) <= 72  # in a terminal of 80 columns no name is folded


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("trein", "unknown command 'trein' (did you mean 'train'?): commands are train, sample"),
        ("train", "train what? Presets are"),
        ("train digitz", "unknown preset 'digitz' (did you mean 'digits' or "),
        ("train no.yaml", "there is no configuration file no.yaml"),
        ("train digits --model.num_timestep 3", "did you mean 'model.num_timesteps'"),
        ("train digits --modle.nz 3", "did you mean 'model.nz'"),
        ("train digits --steps 5", "unknown option 'steps' (did you mean 'run.steps'?): sections"),
        ("train digits --lr_g 1e-3", "unknown option 'lr_g' (did you mean 'optim.lr_g'?)"),
        ("train digits --nonsense", "unrecognized arguments: --nonsense; see ddgan-fast train"),
        ("train digits more", "unrecognized arguments: more"),
        ("train digits --run.seed", "argument --run.seed: expected one argument"),
        ("train digits --run.see 3", "did you mean 'run.seed'"),
        ("train digits --run.steps many", "run.steps is 'many': it must be a whole number."),
        ("train digits --model.tanh 3", "model.tanh is '3': it must be true or false."),
        ("train digits --model.ch_mult 1,2", "it must be a list of whole numbers such as [1, 2]"),
        ("train digits --loss.lazy_reg 0", "loss.lazy_reg is 0: it must be at least 1"),
        ("train digits --recipe thesis", "invalid choice: 'thesis'"),
        ("train digits --recipe paper", "the preset 'digits' has no recipe of the paper: those"),
        ("train my.yaml --recipe paper", "chooses between presets, and 'my.yaml' is none"),
        ("train digits --device gpu", "device is 'gpu': use"),
        ("train cifar10", "give --data PATH"),
        ("train cifar10 --data nowhere", "nowhere does not exist"),
        ("sample", "the following arguments are required: checkpoint, -o/--output; see ddgan-fast"),
        ("sample none.pth -o a.png", "there is no checkpoint none.pth."),
        ("sample . -o a.png", "the folder . holds no checkpoint ema-*.safetensors of a run."),
        ("sample text.pth -o a.png", "text.pth cannot be read as a checkpoint"),
        ("sample text.safetensors -o a.png", "text.safetensors (5 bytes) is not a ddgan_fast snap"),
        ("sample none.pth -o a.jpg", "the suffix .jpg of a.jpg is unknown"),
        ("sample none.pth -o a.png -n 0", "-n is 0: it must be at least 1."),
        ("sample none.pth -o a.png --batch 0", "--batch is 0: it must be at least 1."),
        ("sample none.pth -o a.png --columns -1", "--columns is -1"),
        ("sample none.pth -o a.png -n x", "argument -n: invalid int value: 'x'"),
        ("sample none.pth -o a.png --weights best", "invalid choice: 'best'"),
        ("sample none.pth -o a.png --recipe cifar11", "unknown preset 'cifar11'"),
        ("sample text.pt -o a.png", "the training state text.pt cannot be read"),
        ("convert none.pth a.pth", "there is no checkpoint none.pth."),
        ("doctor --xml", "unrecognized arguments: --xml; see ddgan-fast doctor --help."),
    ],
)
def test_bad_input_gets_one_sentence(tmp_path, monkeypatch, capsys, command, sentence):
    monkeypatch.chdir(tmp_path)
    for name in ("text.pth", "text.pt", "text.safetensors"):
        (tmp_path / name).write_text("hello")
    code = main(command.split())
    out, error = capsys.readouterr()
    assert error.startswith("ddgan-fast: ") and error.count("\n") == 1, error
    assert sentence in error
    assert error.endswith((".\n", "?\n"))
    assert code == 2
    assert out == ""


def test_overrides_reach_the_configuration(tmp_path):
    words = ["--run.dir", str(tmp_path / "r"), "--model.num_timesteps", "2", "--model.ch_mult"]
    words += ["[1, 2]", "digits", "--optim.lr_g=1e-3", "--model.tanh", "false", "--data", "x"]
    words += ["--run.micro_batch", "8", "--device", "cpu", "--data.limit", "9"]
    request = parse(words)
    expected = load_config("digits")
    expected.run.dir = str(tmp_path / "r")
    expected.model.num_timesteps = 2
    expected.model.ch_mult = (1, 2)
    expected.model.tanh = False
    expected.optim.lr_g = 1e-3
    expected.data.path = "x"
    expected.data.limit = 9
    expected.run.micro_batch = 8
    assert request.config == expected
    assert request.device == "cpu" and not request.dry_run


def test_a_file_with_a_base(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: digits\nrun: {steps: 7}\n")
    config = parse([str(path), "--run.batch_size", "4"]).config
    assert (config.preset, config.run.steps, config.run.batch_size) == ("mine", 7, 4)
    assert config.model == load_config("digits").model


@pytest.mark.parametrize("equals", [False, True])
def test_data_is_short_for_data_path(equals):
    words = ["--data=a b"] if equals else ["--data", "a b"]
    assert parse(["cifar10", *words]).config.data.path == "a b"
    assert parse(["cifar10", *words, "--data.path", "c"]).config.data.path == "c"


@pytest.mark.parametrize(
    ("preset", "recipe", "chosen"),
    [
        ("cifar10", "paper", "cifar10_paper"),
        ("cifar10", "readme", "cifar10"),
        ("cifar10_paper", "paper", "cifar10_paper"),
        ("cifar10_paper", "readme", "cifar10"),
        ("digits", "readme", "digits"),
    ],
)
def test_recipes(preset, recipe, chosen):
    assert parse([preset, "--recipe", recipe]).config == load_config(chosen)


def failing(monkeypatch, error, module="ddgan_fast.pretend"):
    """Makes ``ddgan-fast presets`` raise ``error`` from code of a module."""
    space = {"__name__": module, "error": error}
    exec("def main(argv):\n    raise error", space)
    fake = types.ModuleType(module)
    fake.main = space["main"]
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: fake)


class OutOfMemoryError(RuntimeError):
    """Called like torch's."""


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (ValueError("wrong\n  value."), 2, "wrong value."),
        (FileNotFoundError("there is no x."), 2, "there is no x."),
        (FileNotFoundError(2, "No such file or directory", "x/y"), 2, "x/y: No such file or d"),
        (PermissionError(13, "Permission denied", "x"), 1, "x: Permission denied."),
        (RuntimeError("it diverged."), 1, "it diverged."),
        (ImportError("pip install it."), 1, "pip install it."),
        (KeyboardInterrupt(), 130, "interrupted."),
        (OutOfMemoryError("CUDA out of memory. Tried ..."), 1, "--run.micro_batch"),
    ],
)
def test_errors_and_their_exit_codes(monkeypatch, capsys, error, code, sentence):
    failing(monkeypatch, error)
    assert main(["presets"]) == code
    err = capsys.readouterr().err
    assert err.startswith("ddgan-fast: ") and err.count("\n") == 1 and sentence in err


@pytest.mark.parametrize("error", [ValueError("a bug"), RuntimeError("a bug")])
def test_errors_of_other_libraries_keep_their_traceback(monkeypatch, error):
    failing(monkeypatch, error, "torch.nn.functional")
    with pytest.raises(type(error), match="a bug"):
        main(["presets"])


def test_bugs_keep_their_traceback(monkeypatch):
    failing(monkeypatch, KeyError("x"))
    with pytest.raises(KeyError):
        main(["presets"])


def test_debugging_shows_all_tracebacks(monkeypatch):
    monkeypatch.setenv("DDGAN_FAST_DEBUG", "1")
    with pytest.raises(ValueError, match="unknown preset"):
        main(["train", "digitz"])


def test_of_several_ranks_the_first_explains_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr(train, "_LET_THE_FIRST_SPEAK_S", 0.0)
    monkeypatch.setenv("RANK", "2")
    assert main(["train", "digitz"]) == 2
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    assert main(["train", "digitz"]) == 2
    assert "unknown preset" in capsys.readouterr().err


def test_other_ranks_say_who_they_are(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "2")
    failing(monkeypatch, RuntimeError("it diverged."))
    assert main(["presets"]) == 1
    assert capsys.readouterr().err == "ddgan-fast: [rank 2] it diverged.\n"


def test_a_reader_that_has_seen_enough():
    read, write = os.pipe()
    os.close(read)
    code = "import sys; from ddgan_fast.cli import main; sys.exit(main(['presets']))"
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert done.returncode == 141
    assert done.stderr == b""


def tiny_images():
    model = ModelConfig(
        image_size=16, num_timesteps=2, nz=4, num_channels_dae=8, ch_mult=(1, 2), num_res_blocks=1
    )
    cfg = Config(preset="tiny", model=model)
    cfg.discriminator.ngf = 4
    return cfg


@pytest.fixture
def snapshot(tmp_path):
    """A snapshot of an untrained generator of tiny images."""
    cfg = tiny_images()
    torch.manual_seed(0)
    return str(save_ema(tmp_path, 3, build_generator(cfg).state_dict(), to_dict(cfg)))


@pytest.fixture
def point_snapshot(tmp_path):
    """A snapshot of an untrained generator of points."""
    cfg = Config(preset="dots", model=ModelConfig(kind="mlp", num_channels=2, tanh=False))
    torch.manual_seed(0)
    return str(save_ema(tmp_path, 3, build_generator(cfg).state_dict(), to_dict(cfg)))


def sample(checkpoint, output, *words):
    assert main(["sample", checkpoint, "-o", str(output), "--device", "cpu", *words]) == 0
    return output


def test_sample_in_every_form(snapshot, tmp_path, capsys):
    array = np.load(sample(snapshot, tmp_path / "a.npz", "-n", "6"))["arr_0"]
    assert array.shape == (6, 16, 16, 3) and array.dtype == np.uint8
    assert "6 16x16 images in" in capsys.readouterr().out
    folder = sample(snapshot, tmp_path / "folder", "-n", "6", "--batch", "4")
    files = sorted(folder.iterdir())
    assert len(files) == 6
    np.testing.assert_allclose(np.asarray(Image.open(files[5])).astype(int), array[5], atol=1)
    with zipfile.ZipFile(sample(snapshot, tmp_path / "new/a.zip", "-n", "6")) as archive:
        assert len(archive.namelist()) == 6
    with Image.open(sample(snapshot, tmp_path / "a.png", "-n", "6", "--columns", "6")) as picture:
        assert picture.width > 5 * picture.height
    with Image.open(sample(snapshot, tmp_path / "b.png")) as picture:
        assert picture.width == picture.height  # 64 by default, 8 in a row


def test_sample_twice_with_one_seed(snapshot, tmp_path):
    files = [
        sample(snapshot, tmp_path / f"{i}.npz", "-n", "4", "--seed", seed).read_bytes()
        for i, seed in enumerate(("7", "7", "8"))
    ]
    assert files[0] == files[1] != files[2]


def test_sample_refuses_what_does_not_fit_before_it_draws(snapshot, tmp_path, capsys):
    output = tmp_path / "x.png"
    for words, sentence in (
        (["--weights", "raw"], "holds averaged weights only"),
        (["--recipe", "digits"], "does not fit the configuration 'digits': it was trained with"),
    ):
        assert main(["sample", snapshot, "-o", str(output), *words]) == 2
        assert sentence in capsys.readouterr().err
    assert main(["sample", snapshot, "-o", str(tmp_path / "x.npy")]) == 2
    assert "the suffix .npy" in capsys.readouterr().err
    assert not output.exists()


def test_sample_points(point_snapshot, tmp_path, capsys):
    array = np.load(sample(point_snapshot, tmp_path / "p.npz", "-n", "50"))["arr_0"]
    assert array.shape == (50, 2) and array.dtype == np.float32
    assert "50 points in" in capsys.readouterr().out
    plain = np.load(sample(point_snapshot, tmp_path / "p.npy", "-n", "50"))
    np.testing.assert_array_equal(plain, array)
    with Image.open(sample(point_snapshot, tmp_path / "p.png", "-n", "50")) as picture:
        assert picture.size == (600, 600)
        assert 0 < (np.asarray(picture) < 255).sum() <= 50 * 9
    assert main(["sample", point_snapshot, "-o", str(tmp_path / "p.zip")]) == 2
    assert "the suffix '.zip'" in capsys.readouterr().err


def test_scatter_puts_points_where_they_belong():
    picture = points.scatter(np.array([[-1.0, 1.0], [0.5, -0.5], [np.nan, 0.0]]))
    assert picture[0, 0] < 255 and picture[450, 449] < 255
    assert picture[-1, -1] == 255 and (picture < 255).sum() <= 4 + 9


def test_train_go_on_and_sample(tmp_path, capsys):
    """The commands as a user types them, on a tiny model."""
    words = ["train", "digits", "--run.dir", str(tmp_path / "run"), "--device", "cpu"]
    words += [
        "--model.num_channels_dae",
        "8",
        "--discriminator.ngf",
        "4",
        "--run.sample_every",
        "0",
    ]
    assert main([*words, "--run.steps", "2"]) == 0
    out = capsys.readouterr().out
    assert f"ddgan-fast sample {tmp_path / 'run'} -o grid.png" in out
    assert main([*words, "--run.steps", "3"]) == 0
    assert "Going on from" in capsys.readouterr().out
    assert main([*words, "--run.steps", "3", "--model.nz", "5"]) == 2
    assert "model.nz" in capsys.readouterr().err
    save_yaml(load_config(tmp_path / "run/config.yaml"), tmp_path / "again.yaml")
    sample(str(tmp_path / "run"), tmp_path / "grid.png", "--recipe", str(tmp_path / "again.yaml"))
    assert "ema-000000003.safetensors, step 3, seed 0" in capsys.readouterr().out
