"""Generators to the Hugging Face Hub and from it, with their configuration and a model card."""

from __future__ import annotations

import importlib
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from . import __version__
from .config import Config, from_dict, save_yaml, to_dict
from .export import check_target, save_generator
from .sampling import LoadedGenerator, load_generator
from .training.checkpoint import save_ema

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.yaml"
CARD_FILE = "README.md"

R = TypeVar("R")


def push(
    model: LoadedGenerator, repo_id: str, *, private: bool = False, weights: str = "ema"
) -> str:
    """Upload a generator as one commit: weights, configuration and a model card.

    Paths of this machine are taken out of the configuration.

    Args:
        model: the generator.
        repo_id: "OWNER/NAME"; made when it does not exist.
        private: let only the owner see it.
        weights: "ema" or "raw", what the generator was loaded with; the card says it.

    Returns:
        The address of the commit or the repository.

    Raises:
        ValueError: not such a name, or a repository that others see although ``private`` is asked.
        RuntimeError: huggingface_hub is not installed, or the Hub refused.
    """
    _check_name(repo_id)
    api = _library().HfApi()
    with tempfile.TemporaryDirectory() as folder:
        write_repository(model, Path(folder), repo_id, weights)
        _ask(repo_id, lambda: api.create_repo(repo_id, private=private, exist_ok=True))
        # What exists already stays as public as it is.
        if private and not _ask(repo_id, lambda: api.model_info(repo_id)).private:
            raise ValueError(
                f"{repo_id} exists and everybody can see it: make it private there, choose "
                "another name, or leave --private out."
            )
        done = _ask(
            repo_id,
            lambda: api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=f"Generator, written by ddgan_fast {__version__}",
            ),
        )
    return str(getattr(done, "commit_url", done))


def pull(
    repo_id: str, out: str | os.PathLike[str], *, revision: str | None = None
) -> LoadedGenerator:
    """Download a generator that ``push`` uploaded; it is checked before anything is written.

    Args:
        repo_id: "OWNER/NAME".
        out: file to write, as for ``ddgan_fast.export.save_generator``.
        revision: branch, tag or commit; default the newest.

    Returns:
        The generator.

    Raises:
        ValueError: not such a name, or a suffix that is not known.
        RuntimeError: huggingface_hub is not installed, or the Hub refused.
        UnreadableError: what lies there is no snapshot of ddgan_fast, or damaged.
    """
    _check_name(repo_id)
    check_target(out)
    library = _library()
    path = _ask(
        repo_id, lambda: library.hf_hub_download(repo_id, WEIGHTS_FILE, revision=revision)
    )
    model = load_generator(path)
    save_generator(model, out)
    return model


def write_repository(model: LoadedGenerator, folder: Path, repo_id: str, weights: str) -> None:
    """Write the files of a repository: weights, configuration and model card."""
    cfg = from_dict(to_dict(model.cfg))
    cfg.run.dir = cfg.data.path = None
    save_ema(folder / WEIGHTS_FILE, model.step or 0, model.network.state_dict(), to_dict(cfg))
    save_yaml(cfg, folder / CONFIG_FILE)
    (folder / CARD_FILE).write_text(card(model, repo_id, weights), encoding="utf-8")


def card(model: LoadedGenerator, repo_id: str, weights: str) -> str:
    """The model card: only what the checkpoint says, and what it does not say."""
    cfg = model.cfg
    count = sum(parameter.numel() for parameter in model.network.parameters())
    if cfg.model.kind == "mlp":
        makes = "points in the plane"
    else:
        channels = {1: "grey", 3: "RGB", 4: "RGBA"}[cfg.model.num_channels]
        makes = f"{channels} images of {cfg.model.image_size}x{cfg.model.image_size} pixels"
    average = weights == "ema" and cfg.optim.ema_decay > 0
    kept = f"averaged (EMA, decay {cfg.optim.ema_decay})" if average else "raw, not averaged"
    behind = "not recorded" if not model.step else f"{model.step:,}"
    adversarial = cfg.loss.kind == "gan"
    tags = ["ddgan", "diffusion", "gan"] if adversarial else ["ddpm", "diffusion"]
    what = "generator of a denoising diffusion GAN" if adversarial else "network of a DDPM"
    return f"""\
---
library_name: ddgan_fast
tags:
{chr(10).join(f"- {tag}" for tag in tags)}
---

# {repo_id.partition("/")[2]}

The {what}. It makes {makes} in {cfg.model.num_timesteps} steps.

| | |
|---|---|
| Parameters | {count:,} |
| Weights | {kept} |
| Training steps behind them | {behind} |
| Preset | {cfg.preset} |
| Training data | {_data(cfg)} |
| Written by | ddgan_fast {__version__} from `{model.source.name}` |

Not known to the program that wrote this card, and for its owner to add: who trained the model on
what data and whether that data may be used so, the licence of the weights, measured quality, and
what the model must not be used for.

## Use

```sh
pip install "ddgan_fast[hub]"
ddgan-fast pull {repo_id} model.safetensors
ddgan-fast sample model.safetensors -n 64 -o samples.png
```

`{WEIGHTS_FILE}` holds the configuration too; `{CONFIG_FILE}` is the same as a file to read.
"""


def _data(cfg: Config) -> str:
    if cfg.preset == "published":
        return "of a published run, see its authors' description"
    known = {"digits": "handwritten digits of scikit-learn", "gaussians25": "25 Gaussians"}
    known |= {"synthetic": "synthetic test images", "stacked_mnist": "stacked IDX digits"}
    return known.get(cfg.data.source, "not recorded")


def _check_name(repo_id: str) -> None:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise ValueError(f"{repo_id!r} is no repository of the Hub: write OWNER/NAME.")


def _library() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise RuntimeError(
            f'the Hub needs huggingface_hub ({error}): pip install "ddgan_fast[hub]".'
        ) from error


def _ask(repo_id: str, request: Callable[[], R]) -> R:
    try:
        return request()
    except Exception as error:  # of its own, of either HTTP library, or the system's
        text = next((line for line in str(error).splitlines() if line.strip()), "")
        reason = text.strip().rstrip(".") or type(error).__name__
        raise RuntimeError(
            f"the Hub did not do it for {repo_id} ({reason}): check the name, the network, and "
            "whether you are logged in (hf auth login)."
        ) from error
