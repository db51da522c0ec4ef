"""``ddgan-fast demo``: learn to draw handwritten digits, and show how well that went."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .commands import Parser
from .commands.arguments import add_device

if TYPE_CHECKING:
    import numpy as np

    from .config import Config
    from .evaluation.digits import DigitJudge, DigitScores
    from .sampling import LoadedGenerator

PRESET = "digits"
JUDGED = 1000
SHOWN = 100

_SEED = 0
_CELL = 64  # pixels of a digit in the picture
_EXTRA = {"sklearn": "scikit-learn", "matplotlib": "matplotlib"}


def main(argv: Sequence[str]) -> int:
    """Train the preset ``digits`` and judge what it draws; a finished run is only judged."""
    parser = Parser(
        "demo",
        "Train on 1,797 handwritten digits (a few minutes on two CPU cores), then count and\n"
        "measure what the model draws. The same command goes on with a run that was stopped.",
    )
    parser.add_argument(
        "--run.dir", dest="dir", default="runs/demo", metavar="DIR", help="default: runs/demo"
    )
    for name, what in (("steps", "training steps"), ("seed", "of weights, data and noise")):
        meaning = f"{what} (default: the preset's)"
        parser.add_argument(f"--run.{name}", dest=name, type=int, metavar="N", help=meaning)
    add_device(parser)
    arguments = parser.parse_args(argv)
    missing = [name for module, name in _EXTRA.items() if not importlib.util.find_spec(module)]
    if missing:
        raise RuntimeError(
            f'the demo needs {" and ".join(missing)}: pip install "ddgan_fast[demo]".'
        )
    import torch

    from .config import load_config
    from .training.trainer import train

    options = {"dir": arguments.dir, "steps": arguments.steps, "seed": arguments.seed}
    given = {f"run.{name}": value for name, value in options.items() if value is not None}
    cfg = load_config(PRESET, given)
    if cfg.run.threads is not None:  # for the judging that follows, too
        torch.set_num_threads(cfg.run.threads)
    result = train(cfg, device=arguments.device)
    if result.finished:
        print(report(cfg, result.run_dir))
    return 0


def report(cfg: Config, run_dir: Path) -> str:
    """Judge a run's samples, draw its pictures, and say what to do next.

    Args:
        cfg: the run's configuration.
        run_dir: where its checkpoints are; ``samples.png`` and ``losses.png`` are written there.

    Returns:
        The lines for the user, the result first.
    """
    from .evaluation.digits import digit_judge
    from .images import grid, save_png
    from .plots import loss_curve
    from .sampling import load_generator

    judge = digit_judge()
    model = load_generator(run_dir)
    images = _draw(model)
    before, after = _scores(judge, _draw(_untrained(cfg))), _scores(judge, images)
    pictures = run_dir / "samples.png", run_dir / "losses.png"
    scale = max(1, _CELL // images.shape[1])
    save_png(pictures[0], grid(images[:SHOWN], columns=10, scale=scale, smooth=True))
    loss_curve(run_dir / "log.jsonl", pictures[1])
    program, where = _program(), shlex.quote(str(run_dir))
    steps = 2 * (model.step or cfg.run.steps)
    return "\n".join(
        [
            f"Fréchet distance {before['frechet']:,.0f} -> {after['frechet']:,.0f} (real digits: "
            f"{judge.real:,.0f}), {after['recognised']} of 10 digits recognised among {JUDGED:,} "
            "samples.",
            f"  samples      {pictures[0]}",
            f"  loss curve   {pictures[1]}",
            f"  go on        {program} train {PRESET} --run.dir {where} --run.steps {steps}",
            f"  draw more    {program} sample {where} -n {SHOWN} -o digits.png --seed 1",
        ]
    )


def _untrained(cfg: Config) -> LoadedGenerator:
    """The generator that the run started from."""
    import torch

    from .models import build_generator
    from .sampling import LoadedGenerator

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.run.seed)
        weights = build_generator(cfg).state_dict()
    return LoadedGenerator(cfg, weights, 0, Path("untrained"))


def _draw(model: LoadedGenerator) -> np.ndarray:
    """Images to be judged, uint8 [JUDGED, H, W, C]."""
    import numpy as np

    from .sampling import generate

    return np.concatenate(list(generate(model, JUDGED, seed=_SEED)))


def _scores(judge: DigitJudge, images: np.ndarray) -> DigitScores:
    import torch

    return judge.judge(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1.0)


def _program() -> str:
    """How to call this program again: by its bare name only where the shell finds this one."""
    called, found = Path(sys.argv[0]), shutil.which("ddgan-fast")
    if called.name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m ddgan_fast"
    if called.name != "ddgan-fast" or (found and Path(found).samefile(called)):
        return "ddgan-fast"
    return shlex.quote(str(called))
