"""What becomes of each command in the documentation; one that is in no table fails its test.

``RUN`` commands run to their end, in a folder where what they name exists, shortened as the row
says. ``CHECKED`` ones are read by the real parser, or what they name is looked up; each row says
why they do not run.
"""

import argparse
import importlib.util
import re
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jsonargparse
import numpy as np
import pytest
import torch
from docs_pages import ROOT
from PIL import Image

from ddgan_fast import cli
from ddgan_fast.commands import train
from ddgan_fast.config import Config
from ddgan_fast.training import terms, trainer

GOLDEN = ROOT / "tests/data/golden/checkpoint_ref"
SHORT = ("--run.steps", "2", "--run.sample_every", "0", "--run.tensorboard", "false")


class Run(NamedTuple):
    """Runs, with words (as a pattern) changed into others, and ``more`` behind them."""

    changes: tuple[tuple[str, str], ...] = ()
    more: tuple[str, ...] = ()
    slow: bool = False


class Checked(NamedTuple):
    """Is only checked, because of ``why``."""

    why: str


HOURS = Checked("hours of training")
DATA = Checked("data, weights or packages that nothing here brings")
NETWORK = Checked("needs the network, or an account")
GPU = Checked("needs GPUs")
TESTED = Checked("writes into the tree, or has tests of its own that run it")

TABLE: list[tuple[str, Run | Checked]] = [
    (r"pip install ", NETWORK),
    (r"pre-commit ", NETWORK),
    (r"make (demo|test|check|coverage|gpu)$", TESTED),
    (r"torchrun ", GPU),
    (r"ddgan-fast (push|pull) ", NETWORK),
    (r"ddgan-fast doctor", Run()),
    (r"ddgan-fast presets", Run()),
    (r"ddgan-fast train (digits|gaussians25)\w*( |$)", Run(more=SHORT)),
    (r"ddgan-fast train runs/imported/", Run(more=("--run.steps", "10"))),
    (r"ddgan-fast train .*--dry-run", Run(slow=True)),
    (r"ddgan-fast train church.yaml ", HOURS),
    (r"ddgan-fast train \w+( --data| --recipe|$)", HOURS),
    (r"ddgan-fast prepare --(info|verify) ", Run()),
    (r"ddgan-fast prepare ", Run(((r"256", "64"),), more=("--workers", "1"))),
    (r"ddgan-fast sample runs/stacked_mnist ", Run(((r"26000", "4"),))),
    (r"ddgan-fast sample ", Run(((r"50000|10000", "8"), (r"cifar10", "tiny.yaml")))),
    (r"ddgan-fast edit ", Run()),
    (r"ddgan-fast convert ", Run(((r"cifar10", "tiny.yaml"),))),
    (r"ddgan-fast evaluate .*(--inception|lite0|idx)", DATA),
    (
        r"ddgan-fast evaluate runs/gaussians25 ",
        Run(((r"10000", "200"),), more=("--time-batches", "none")),
    ),
    (r"ddgan-fast bench scaling .*--from ", Checked("reads what `bench step` wrote on a GPU")),
    (r"ddgan-fast bench scaling ", Run()),
    (r"ddgan-fast bench kernels ", Run(more=("--device", "cpu", "--tiny", "--check"))),
    (r"ddgan-fast bench (step|sample) ", Checked("minutes; tests/benchmarks has small ones")),
    (r"ddgan-fast bench loader ", NETWORK),
    (r"ddgan-fast bench --compare ", TESTED),
    (r"ddgan-fast (profile|report|trilemma|watch|classifier) ", TESTED),
    (r"sh tools/photographs\.sh", NETWORK),
    (r"pytest benchmarks/ --benchmark-only", TESTED),
    (r"python -m benchmarks\.", TESTED),
    (r"python tests/data/golden/check_golden\.py ", TESTED),
    (r"python examples/train_own_folder\.py ", Run(((r"500", "2"),))),
    (r"python examples/\w+\.py ", Run(((r"20", "2"),))),
]


def choose(words: list[str]) -> Run | Checked:
    """The row of a command.

    Raises:
        AssertionError: it is in no row.
    """
    line = " ".join(words)
    for pattern, row in TABLE:
        if re.match(pattern, line):
            return row
    raise AssertionError(f"say in tests/docs_commands.py what becomes of: {line}")


def shortened(words: list[str], row: Run) -> list[str]:
    """A command as it runs in a test."""
    for pattern, instead in row.changes:
        words = [instead if re.fullmatch(pattern, word) else word for word in words]
    return [*words, *row.more]


# What the commands name


def _photos(path: Path) -> None:
    path.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(path / f"{i}.png")


def _lmdb(path: Path, keys: Callable[[int], bytes]) -> None:
    lmdb = pytest.importorskip("lmdb", reason="needs the package lmdb")
    _photos(path.with_name("as-files"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with lmdb.open(str(path), map_size=1 << 24) as base, base.begin(write=True) as writing:
        for i, image in enumerate(sorted(path.with_name("as-files").iterdir())):
            writing.put(keys(i), image.read_bytes())
    shutil.rmtree(path.with_name("as-files"))


def _tiny_yaml(path: Path) -> None:
    from ddgan_fast import convert
    from ddgan_fast.config import save_yaml

    args = convert.read_published(GOLDEN / "content.pth")["args"]
    save_yaml(convert.config_of_args(args), path)


def make(name: str, digits: Path) -> None:
    """Make what a command names in the current folder, unless an earlier command made it.

    Args:
        name: A word of the command.
        digits: A short run of the preset digits.
    """
    path = Path(name)
    if path.exists():
        return
    if name in ("path/to/images", "path/to/data", "photos/", "PATH"):
        _photos(path)
    elif re.fullmatch(r"(?!runs/imported|runs/own)runs/\w+|CHECKPOINT", name):
        shutil.copytree(digits, path)
    elif name in ("netG_1200.pth", "content.pth"):
        shutil.copy(GOLDEN / name.replace("1200", "0"), path)
    elif name == "tiny.yaml":
        _tiny_yaml(path)
    elif name == "celeba-lmdb/":
        _lmdb(path / "train.lmdb", lambda i: str(i).encode())
    elif name == "church_outdoor_train_lmdb":
        _lmdb(path, lambda i: f"{i:040x}".encode())


# Running and checking


def run(words: list[str]) -> None:
    """Run a command in this process; ends well, or the test does not."""
    program, *rest = words
    if program == "ddgan-fast":
        assert cli.main(rest) == 0, words
        return
    assert program == "python", words
    before = sys.argv
    sys.argv = rest
    try:
        runpy.run_path(str(ROOT / rest[0]), run_name="__main__")
    finally:
        sys.argv = before


class _Understood(BaseException):
    """No Exception, so that the command line lets it pass."""


def check(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Check a command without running it."""
    program, *rest = words
    if program == "ddgan-fast":
        _parse(rest, monkeypatch)
    elif program == "torchrun":
        from torch.distributed.run import parse_args

        options = parse_args(rest)
        assert options.module and options.training_script == "ddgan_fast"
        _parse([w for w in options.training_script_args if w != "..."], monkeypatch)
    elif program == "python" and rest[0] == "-m":
        assert importlib.util.find_spec(rest[1]), words
    elif program == "make":
        assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.M), words
    elif program in ("python", "sh", "pytest"):
        assert (ROOT / rest[0]).exists(), words
    elif program == "pip":
        for extra in re.findall(r"\[(.+?)\]", " ".join(rest)):
            assert f'"{extra}": [' in (ROOT / "setup.py").read_text(), words
    else:
        assert program == "pre-commit", words


def _parse(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Read a command line of ours by its own parser, and stop there."""
    if arguments[0] == "train":
        # A file that the text only imagines.
        known = [w if w != "church.yaml" else "lsun_church256" for w in arguments[1:]]
        train.parse(known)
        return
    with monkeypatch.context() as patch:
        for parser in (argparse.ArgumentParser, jsonargparse.ArgumentParser):
            patch.setattr(parser, "parse_args", _stopping(parser.parse_args))
        with pytest.raises(_Understood):
            code = cli.main(arguments)
            raise AssertionError(f"{' '.join(arguments)}: exit code {code}")


def _stopping(parse_args: Callable[..., object]) -> Callable[..., None]:
    def parse_and_stop(*args: object, **kwargs: object) -> None:
        parse_args(*args, **kwargs)
        raise _Understood

    return parse_and_stop


def run_python(text: str, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a block of Python, in which ``train`` takes two steps."""
    whole = trainer.train

    def short(cfg: Config, **options: Any) -> trainer.RunResult:
        cfg.run.steps, cfg.run.sample_every, cfg.run.tensorboard = 2, 0, False
        return whole(cfg, **options)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train", short)
        # What a page registers is not for the tests that follow.
        patch.setattr(terms, "_TERMS", dict(terms._TERMS))
        exec(compile(text, page, "exec"), {"__name__": "__main__"})


def quiet_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder of its own, with caches there, and on the CPU: a GPU would compile first."""
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
