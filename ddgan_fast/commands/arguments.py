"""Options that several commands share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..config import Config
    from ..guidance import Guidance


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Which generator of a checkpoint is meant."""
    parser.add_argument(
        "--weights", choices=("ema", "raw"), default="ema", help="averaged or raw (default: ema)"
    )
    parser.add_argument(
        "--recipe",
        metavar="NAME|FILE",
        help="preset or YAML file that a netG_*.pth was trained with; other files know theirs",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Where a command computes."""
    parser.add_argument("--device", help="cpu, cuda or cuda:0 (default: a GPU if there is one)")


def add_sampler(parser: argparse.ArgumentParser) -> None:
    """How a DDPM samples."""
    parser.add_argument(
        "--sampler",
        metavar="NAME",
        help="of a DDPM: ancestral (all T steps, default), ddim, dpmpp (DPM-Solver++), or heun "
        "(of the probability-flow ODE)",
    )
    parser.add_argument("--steps", type=int, help="of a DDPM: steps of the sampler (default: T)")
    parser.add_argument("--eta", type=float, help="of ddim: noise, 0 (default) to 1")


def add_class(parser: argparse.ArgumentParser, meaning: str) -> None:
    """Of which class samples are."""
    parser.add_argument("--class", dest="classes", metavar="LIST", help=meaning)


def add_guidance(parser: argparse.ArgumentParser, *short: str) -> None:
    """How strongly samples are to show their class; ``short`` names the classifier, too."""
    parser.add_argument(
        "--guidance",
        type=float,
        metavar="W",
        help="of a model with classes: 1 as trained (default), 0 without class, more insists on it "
        "at twice the cost",
    )
    parser.add_argument(
        "--guiding-classifier",
        *short,
        metavar="RUN",
        help="guide a DDPM by a classifier, trained with the preset digits_classifier or the like",
    )
    parser.add_argument(
        "--classifier-scale", type=float, metavar="S", help="of its gradient (default: 1)"
    )


def guidance_of(arguments: argparse.Namespace, cfg: Config, device: object) -> Guidance | None:
    """What the options ask of a model; None where none of them is given.

    Raises:
        ValueError: a list that is none, or a scale without classifier.
        FileNotFoundError: no such classifier.
    """
    classes = getattr(arguments, "classes", None)
    given = (classes, arguments.guidance, arguments.guiding_classifier, arguments.classifier_scale)
    if all(value is None for value in given):
        return None
    from ..classifier import load_classifier
    from ..guidance import Guidance

    classifier = None
    if arguments.guiding_classifier is not None:
        classifier = load_classifier(arguments.guiding_classifier, device=str(device))
    elif arguments.classifier_scale is not None:
        raise ValueError(
            f"--classifier-scale is {arguments.classifier_scale}, but there is no classifier: name "
            "one by --guiding-classifier RUN."
        )
    known = cfg.model.num_classes or (classifier.cfg.model.num_classes if classifier else 0)
    return Guidance(
        parse_classes(classes, known),
        1.0 if arguments.guidance is None else arguments.guidance,
        classifier,
        1.0 if arguments.classifier_scale is None else arguments.classifier_scale,
    )


def parse_classes(text: str | None, known: int) -> tuple[int, ...]:
    """The classes of a list such as 0,1,2, or all that are known; () for none.

    Raises:
        ValueError: it is no such list.
    """
    if text is None:
        return ()
    if text == "all":
        return tuple(range(known)) or (0,)
    words = text.split(",")
    if not all(word.isdecimal() for word in words):
        raise ValueError(
            f"--class is {text!r}: it must be a class, a list such as 0,1,2, or \"all\"."
        )
    return tuple(int(word) for word in words)
