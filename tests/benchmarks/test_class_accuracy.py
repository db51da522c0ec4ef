"""The judge of classes: right about real digits, and a row for every guidance."""

import numpy as np
import torch

from benchmarks import class_accuracy
from ddgan_fast.config import load_config, to_dict
from ddgan_fast.data.sources import digits
from ddgan_fast.guidance import Guidance
from ddgan_fast.models import build_generator
from ddgan_fast.sampling import load_generator
from ddgan_fast.training.checkpoint import save_ema


def snapshot(folder, preset):
    cfg = load_config(preset)
    torch.manual_seed(0)
    folder.mkdir()
    path = folder / "ema-000000003.safetensors"
    save_ema(path, 3, build_generator(cfg).state_dict(), to_dict(cfg))
    return str(path)


def test_real_digits_are_what_was_asked_for(tmp_path, monkeypatch):
    data = digits(8)
    of_each = [np.flatnonzero(data.labels == k)[:20] for k in range(10)]
    chosen = np.stack(of_each, 1).flatten()
    monkeypatch.setattr(class_accuracy, "generate", lambda *a, **k: iter([data.array[chosen]]))
    model = load_generator(snapshot(tmp_path / "gan", "digits_classes"))
    row = class_accuracy.judged(model, Guidance(tuple(range(10)), 2.0), 200, 0)
    assert row.accuracy > 0.95 and row.frechet < 100
    assert row.evaluations == (8, 0)
    turned = np.roll(chosen, 1)
    monkeypatch.setattr(class_accuracy, "generate", lambda *a, **k: iter([data.array[turned]]))
    assert class_accuracy.judged(model, Guidance(tuple(range(10))), 200, 0).accuracy < 0.05


def test_a_row_for_every_guidance(tmp_path, capsys):
    model = snapshot(tmp_path / "ddpm", "digits_ddpm_classes")
    classifier = snapshot(tmp_path / "classifier", "digits_classifier")
    words = ["--guidance", "1,2", "--classifier", classifier, "--classifier-scale", "0,3"]
    class_accuracy.main([model, *words, "-n", "20", "--steps", "2"])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for guidance, scale, calls in (("1", "0", "2 + 2"), ("2", "3", "4 + 2")):
        assert any(
            line.startswith(f"{guidance} {scale} ") and line.endswith(calls) for line in lines
        ), lines
