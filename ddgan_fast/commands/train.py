"""``ddgan-fast train``: a preset or a file, overrides for any option, and off it goes."""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from types import UnionType
from typing import Any, get_args, get_type_hints

from ..config import Config, list_presets, load_config, to_dict
from ..options import set_options

_USAGE = """ddgan-fast train PRESET|FILE.yaml [--data PATH]
                        [--section.option VALUE ...] [--recipe readme|paper]
                        [--micro-batch N|auto] [--device DEVICE] [--dry-run]"""
_EPILOG = """\
examples:
  ddgan-fast train digits
  ddgan-fast train cifar10 --data images/ --run.dir runs/a --model.num_timesteps 2
  torchrun --nproc-per-node 8 -m ddgan_fast train celebahq256 --data images/
  ddgan-fast train celebahq256 --data images/ --micro-batch auto --run.recompute [256]
  ddgan-fast train cifar10 --dry-run > mine.yaml     # a file to edit and train from
"""
_PAPER = "_paper"
_LET_THE_FIRST_SPEAK_S = 2.0
_RECIPE_HELP = (
    "where the published code's README and the paper disagree: the preset's values are the "
    "README's, paper chooses PRESET_paper"
)


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    config: Config
    device: str | None
    dry_run: bool


def main(argv: Sequence[str]) -> int:
    """Train, or say what training would be."""
    first = os.environ.get("RANK", "0") == "0"
    try:
        request = parse(argv)
    except (ValueError, FileNotFoundError):
        if first:
            raise
        # Every rank sees the same command line, and the first one says what is wrong with it;
        # torchrun ends all of them as soon as one is gone.
        time.sleep(_LET_THE_FIRST_SPEAK_S)
        return 2
    if request.dry_run:
        if first:
            from ..summary import dry_run

            world = int(os.environ.get("WORLD_SIZE", "1"))
            print(dry_run(request.config, request.device, world))
        return 0
    from ..training.trainer import train

    result = train(request.config, device=request.device)
    if first and result.finished and request.config.loss.kind == "classifier":
        print(f"Guide a DDPM by it: ddgan-fast sample DDPM --classifier {result.run_dir} ...")
    elif first and result.finished:
        samples = "-n 10000 -o points.png" if request.config.model.kind == "mlp" else "-o grid.png"
        print(f"Sample from it: ddgan-fast sample {result.run_dir} {samples}")
    return 0


def parse(argv: Sequence[str]) -> Request:
    """Read a command line.

    Raises:
        ValueError: an unknown preset or option, or a value that cannot work.
        FileNotFoundError: no such file.
    """
    from jsonargparse import ArgumentError

    arguments = _spell_out(argv)
    parser = _parser(next((word for word in arguments if word in list_presets()), None))
    try:
        given = parser.parse_args(arguments, defaults=False)
    except ArgumentError as error:
        raise ValueError(_explain(str(error))) from error
    preset = given.get("preset")
    if preset is None:
        raise ValueError(f"train what? Presets are {', '.join(list_presets())}; or a YAML file.")
    overrides = {
        f"{section}.{name}": value
        for section, options in given.as_dict().items()
        if isinstance(options, dict)
        for name, value in options.items()
    }
    config = load_config(_variant(preset, given.get("recipe")), overrides)
    return Request(config, given.get("device"), bool(given.get("dry_run")))


def _spell_out(argv: Sequence[str]) -> list[str]:
    """--data stands for --data.path, --micro-batch for --run.micro_batch."""
    short = {"data": "data.path", "micro-batch": "run.micro_batch"}
    pattern = re.compile(rf"^--({'|'.join(short)})(?==|$)")
    return [pattern.sub(lambda match: f"--{short[match[1]]}", word) for word in argv]


def _parser(preset: str | None) -> Any:
    """The parser; its help shows the values of the preset as defaults."""
    from jsonargparse import SUPPRESS, ArgumentParser, DefaultHelpFormatter

    class Formatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
        """Leaves the examples as they are."""

    parser = ArgumentParser(
        prog="ddgan-fast train",
        usage=_USAGE,
        description="Train a model. The same command again goes on where the run left off.",
        epilog=_EPILOG,
        formatter_class=Formatter,
        exit_on_error=False,
        allow_abbrev=False,
        default_env=False,
    )
    parser.add_argument(
        "preset",
        nargs="?",
        metavar="PRESET|FILE.yaml",
        help="see `ddgan-fast presets`",
        default=SUPPRESS,
    )
    parser.add_argument(
        "--recipe", choices=("readme", "paper"), help=_RECIPE_HELP, default=SUPPRESS
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:0; else a GPU", default=SUPPRESS)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        default=SUPPRESS,
        help="print the whole configuration, costs, memory and kernels; do nothing",
    )
    config = Config() if preset is None else load_config(preset)
    for section, title, options in _options(config):
        group = parser.add_argument_group(section, title)
        for name, hint, value, text in options:
            group.add_argument(
                f"--{section}.{name}", type=hint, default=value, help=text, metavar=_metavar(hint)
            )
    return parser


def _options(config: Config) -> Iterator[tuple[str, str, list[tuple[str, Any, Any, str]]]]:
    """Section, its title, and (name, type, value, help) of its options."""
    from docstring_parser import parse_from_object

    titles = {p.arg_name: p.description for p in parse_from_object(Config).params}
    for section in fields(config):
        options = getattr(config, section.name)
        if isinstance(options, str):
            continue
        kind = type(options)
        texts = {p.arg_name: p.description or "" for p in parse_from_object(kind).params}
        hints = get_type_hints(kind)
        rows = [
            (f.name, hints[f.name], getattr(options, f.name), texts[f.name])
            for f in fields(options)
        ]
        yield section.name, titles[section.name] or "", rows


def _metavar(hint: Any) -> str:
    kind = get_args(hint)[0] if isinstance(hint, UnionType) else hint
    words = {bool: "true|false", int: "N", float: "X", str: "TEXT", dict[str, float]: "MAPPING"}
    return words.get(kind, "LIST")


def _explain(message: str) -> str:
    """The parser's complaint in our words, which name what is allowed or known."""
    message = " ".join(message.split())
    value = re.match(r'Parser key "([\w.]+)": .*Got value: (.*)$', message)
    option = re.match(r"unrecognized arguments: --([\w.]+)", message)
    if option and "." not in option[1] and option[1] not in _names_in_sections():
        option = None
    if match := value or option:
        # Raises the sentence: a bad value, or a name that does not exist.
        set_options(Config(), {match[1]: match[2] if value else None})
    return f"{message}; see ddgan-fast train --help."


def _names_in_sections() -> set[str]:
    sections = (section for section in to_dict(Config()).values() if isinstance(section, dict))
    return {name for section in sections for name in section}


def _variant(preset: str, recipe: str | None) -> str:
    """The preset of a recipe: the README's has the plain name, the paper's ends in _paper."""
    if recipe is None:
        return preset
    presets = list_presets()
    base = preset.removesuffix(_PAPER)
    if base not in presets:
        raise ValueError(
            f"--recipe {recipe} chooses between presets, and {preset!r} is none: leave it out."
        )
    chosen = base + _PAPER if recipe == "paper" else base
    if chosen not in presets:
        both = ", ".join(name for name in presets if name + _PAPER in presets)
        raise ValueError(
            f"the preset {base!r} has no recipe of the paper: those that do are {both}."
        )
    return chosen
