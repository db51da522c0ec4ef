"""``ddgan-fast trilemma``: a DDGAN against its baselines under equal training time."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import Parser
from .arguments import add_device

if TYPE_CHECKING:
    from ..evaluation.features import Extractor
    from ..trilemma.compare import Request
    from ..trilemma.methods import Method

_USAGE = """ddgan-fast trilemma PRESET --budget TIME [--data PATH] [--out FOLDER]
                           [--methods LIST] [--seeds LIST]
                           [--section.option VALUE ...]"""
_EPILOG = """\
methods (default: ddgan,ddpm200,ddpm1000,oneshot)
  ddgan      the preset itself
  ddpmN      a DDPM of N steps with the same U-Net, sampled by all steps or DDIM
  oneshot    the same GAN with one step
  noz        the DDGAN without latent

The folder holds all runs and every measurement: the same command goes on where it was stopped, and
with further methods or seeds it adds them. report.md is the result; report.json has every number.

examples:
  ddgan-fast trilemma digits --budget 3m --seeds 1,2,3
  ddgan-fast trilemma gaussians25 --budget 2m --methods ddgan,ddpm200,oneshot
  ddgan-fast trilemma cifar10 --data cifar10/ --budget 10m --extractor lite0
  ddgan-fast trilemma digits --budget 3m --load ddgan=runs/digits
  ddgan-fast trilemma stacked_mnist --data mnist/ --budget 1h --classifier mnist.safetensors
"""
_OPTION = re.compile(r"--([a-z]+\.\w+)(?:=(.*))?", re.S)
_POINTS, _IMAGES = 10_000, 5_000


def main(argv: Sequence[str]) -> int:
    """Train, draw, measure, report."""
    arguments, overrides = _parse(argv)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("trilemma compares on one device: start it without torchrun.")
    if not importlib.util.find_spec("matplotlib"):
        raise RuntimeError('the report needs matplotlib: pip install "ddgan_fast[demo]".')
    from ..sampling import load_generator
    from ..tables import print_table
    from ..training.parallel import start
    from ..trilemma.compare import Comparison
    from ..trilemma.report import write_report
    from ..trilemma.summary import cells, headings, shown

    request = _request(arguments, overrides)
    with start(arguments.device) as ranks:
        comparison = Comparison(request, ranks, lambda text: print(text, flush=True))
        measured = comparison.run()
        models = {
            method.name: load_generator(comparison.shown(method), device=ranks.device)
            for method in request.methods
        }
        command = f"ddgan-fast trilemma {shlex.join(argv)}"
        rows = write_report(request, measured, models, command)
    title = f"{request.preset}, {request.budget_s:g} s of training each"
    print_table(title, headings(rows), [cells(row, shown(rows)) for row in rows])
    print(f"Report: {request.out / 'report.md'}")
    return 0


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    parser = Parser(
        "trilemma",
        "Train a DDGAN and its baselines for the same time, and compare quality, coverage, speed.",
        _EPILOG,
    )
    parser.usage = _USAGE
    parser.add_argument("preset", metavar="PRESET", help="of a DDGAN; see ddgan-fast presets")
    parser.add_argument("--budget", required=True, help="training time of each run: 90s, 10m, 1.5h")
    parser.add_argument("--out", metavar="FOLDER", help="default: runs/trilemma-PRESET")
    parser.add_argument("--data", metavar="PATH", help="training data, where the preset needs some")
    parser.add_argument("--methods", metavar="LIST", help="see below")
    parser.add_argument("--seeds", default="1", metavar="LIST", help="default: 1")
    parser.add_argument("-n", "--n", type=int, help="samples (default: 5000, or 10000 points)")
    parser.add_argument("--metrics", metavar="LIST", help="as of ddgan-fast evaluate")
    parser.add_argument("--extractor", help="as of ddgan-fast evaluate (default: what is there)")
    parser.add_argument("--inception", metavar="PATH", help="pytorch-fid's weight file")
    parser.add_argument("--classifier", metavar="FILE", help="of ddgan-fast classifier, for idx")
    parser.add_argument(
        "--load",
        action="append",
        default=[],
        metavar="METHOD=CHECKPOINT",
        help="take a run or checkpoint instead of training; may be repeated",
    )
    add_device(parser)
    own, overrides = _split(argv)
    return parser.parse_args(own), overrides


def _split(argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The command's own arguments, and the run's options --section.option."""
    own: list[str] = []
    options: dict[str, Any] = {}
    words = iter(argv)
    for word in words:
        found = _OPTION.fullmatch(word)
        if found is None:
            own.append(word)
            continue
        value = found[2] if found[2] is not None else next(words, None)
        if value is None:
            raise ValueError(f"{word} needs a value; see ddgan-fast trilemma --help.")
        options[found[1]] = value
    return own, options


def _request(arguments: argparse.Namespace, overrides: dict[str, Any]) -> Request:
    from ..trilemma.budget import parse_budget
    from ..trilemma.compare import Request
    from ..trilemma.methods import DEFAULT, build_methods

    if arguments.data is not None:
        overrides = {**overrides, "data.path": arguments.data}
    names = arguments.methods.split(",") if arguments.methods else list(DEFAULT)
    methods = build_methods(arguments.preset, list(dict.fromkeys(names)), overrides)
    points = methods[0].cfg.model.kind == "mlp"
    n = arguments.n if arguments.n is not None else (_POINTS if points else _IMAGES)
    if n < 100:
        raise ValueError(f"--n is {n}: it must be at least 100.")
    extractor, metrics = _judge(arguments, methods[0], points)
    return Request(
        arguments.preset,
        methods,
        parse_budget(arguments.budget),
        Path(arguments.out or f"runs/trilemma-{Path(arguments.preset).stem}"),
        _seeds(arguments.seeds),
        n,
        metrics,
        extractor,
        arguments.device,
        _loads(arguments.load, methods),
    )


def _judge(
    arguments: argparse.Namespace, first: Method, points: bool
) -> tuple[Extractor | None, tuple[str, ...]]:
    """What sees the images, and the metrics."""
    from ..evaluation.evaluate import parse_metrics
    from ..evaluation.features import build_extractor
    from ..training.parallel import choose_device

    name = arguments.extractor
    if name is None:
        name = _likely(arguments, first.cfg.data.source)
    wanted = arguments.metrics
    if wanted is None:
        counted = name in ("digits", "idx")
        wanted = "modes" if points else "fid,pr,dc,modes" if counted else "fid,pr,dc"
    model = first.cfg.model
    metrics = parse_metrics(wanted, model.kind, name)
    if points:
        return None, metrics
    extractor = build_extractor(
        name,
        weights=arguments.inception,
        classifier=arguments.classifier,
        size=model.image_size,
        channels=model.num_channels,
        device=choose_device(arguments.device),
    )
    return extractor, metrics


def _likely(arguments: argparse.Namespace, source: str) -> str:
    """The extractor that what is given is for."""
    if arguments.classifier:
        return "idx"
    if arguments.inception:
        return "inception"
    return "digits" if source == "digits" else "lite0"


def _seeds(text: str) -> tuple[int, ...]:
    words = text.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise ValueError(f"--seeds is {text!r}: it must be a list of whole numbers such as 1,2,3.")
    return tuple(dict.fromkeys(int(word) for word in words))


def _loads(given: Sequence[str], methods: Sequence[Method]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for text in given:
        name, _, path = text.partition("=")
        if not path or name not in {method.name for method in methods}:
            raise ValueError(
                f"--load is {text!r}: it must be METHOD=CHECKPOINT with one of the methods "
                f"{', '.join(method.name for method in methods)}."
            )
        if not Path(path).exists():
            raise FileNotFoundError(f"--load {name}: there is no {path}.")
        found[name] = Path(path)
    return found
