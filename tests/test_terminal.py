"""Commands in a terminal: their bars show how far they are, and leave when they are through."""

import screen
import torch

from ddgan_fast.cli import main
from ddgan_fast.commands import evaluate
from ddgan_fast.config import load_config, to_dict
from ddgan_fast.models import build_generator
from ddgan_fast.training.checkpoint import save_ema

SMALL = {"model.hidden": 8, "model.hidden_layers": 1, "model.num_timesteps": 2}


def snapshot(folder):
    cfg = load_config("gaussians25", SMALL)
    torch.manual_seed(0)
    save_ema(folder, 3, build_generator(cfg).state_dict(), to_dict(cfg))
    return folder


def test_sampling_shows_how_far_it_is(tmp_path, monkeypatch):
    out = tmp_path / "points.npz"
    shown = screen.put(monkeypatch, "stderr")
    words = ["-n", "12", "--batch", "4", "-o", str(out), "--device", "cpu"]
    assert main(["sample", str(snapshot(tmp_path)), *words]) == 0
    text = shown.text()
    assert "sampling" in text and "100%" in text
    assert_gone(shown)


def test_measuring_shows_how_far_it_is(tmp_path, monkeypatch):
    shown = screen.put(monkeypatch, "stderr")
    words = ["--metrics", "modes", "-n", "64", "--time-batches", "none", "--device", "cpu"]
    assert main(["evaluate", str(snapshot(tmp_path)), *words]) == 0
    text = shown.text()
    assert "sampling" in text and "100%" in text
    assert_gone(shown)


def test_measuring_has_a_bar_for_each_part(monkeypatch):
    shown = screen.put(monkeypatch, "stderr")
    with evaluate._progress(False) as watch:
        watch("real images", 1, 2)
    assert shown.text() == "", "ranks but the first are silent"
    with evaluate._progress(True) as watch:
        for what, done in (("real images", 5), ("real images", 10), ("sampling", 15)):
            watch(what, done, 20)
    last = shown.text()[shown.text().rindex("real images") :]
    assert [line.split()[-2] for line in last.splitlines() if "%" in line] == ["50%", "75%"]


def assert_gone(shown):
    """The last thing that the bar did was to wipe its line and give the cursor back."""
    sent = shown.getvalue()
    assert "\x1b[?25h" in sent[sent.rindex("sampling") :]
    assert sent.endswith("\x1b[2K")
