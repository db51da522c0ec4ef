"""Published training states (``content.pth``) to run directories of ours, and back.

Weights, averages, both optimisers' moments and step counts keep every bit. The published
schedulers count epochs, ours steps: an epoch has global_step / epoch steps.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import convert
from .config import Config, from_dict, save_yaml, to_dict, validate
from .files import atomic_open
from .models import build_discriminator, build_generator
from .training.checkpoint import list_states, load_state, save_ema, save_state
from .training.optim import cosine_rate

Names = Mapping[str, str]

_MOMENTS = ("exp_avg", "exp_avg_sq")
_NETWORKS = ("generator", "discriminator")
# Of the arguments that a published run stores, those that say nothing about the training.
_ARGS = {
    "resume": False,
    "exp": "ddgan_fast",
    "save_content": True,
    "save_content_every": 50,
    "save_ckpt_every": 25,
    "num_proc_node": 1,
    "num_process_per_node": 1,
    "node_rank": 0,
    "local_rank": 0,
    "global_rank": 0,
    "master_address": "127.0.0.1",
    "world_size": 1,
}
_ADAM = {
    "weight_decay": 0,
    "amsgrad": False,
    "maximize": False,
    "foreach": None,
    "capturable": False,
    "differentiable": False,
    "fused": None,
    "decoupled_weight_decay": False,
}


@dataclass(frozen=True)
class Converted:
    """What became of a training state."""

    path: Path
    """The state or file that was written."""
    step: int
    """Training steps behind it."""
    notes: list[str] = field(default_factory=list)
    """What the two formats do not share, one sentence each."""


def import_run(content: str | os.PathLike[str], run_dir: str | os.PathLike[str]) -> Converted:
    """Make a run directory from which ``ddgan-fast train`` goes on with a published run.

    It gets ``config.yaml``, the averaged weights and the training state. Data order and noise
    start anew: a published state does not hold them.

    Args:
        content: a published ``content.pth``; no code in it is run.
        run_dir: a new or empty folder.

    Raises:
        FileNotFoundError: no such file.
        FileExistsError: the folder is not empty.
        ValueError: not a published training state, or one that cannot work here.
        CheckpointError: the disk is full or cannot be written to.
    """
    source, run_dir = Path(content), Path(run_dir)
    if source.is_dir() or source.suffix in (".pt", ".safetensors"):
        raise ValueError(
            f"{source} is no published content.pth, and only such a file becomes a run directory: "
            "end the output's name in .safetensors or .pth."
        )
    saved = convert.read_published(source)
    if "netG_dict" not in saved:
        raise ValueError(
            f"{source} holds a generator alone, and a run needs the training state: give the "
            "content.pth of the run, or convert to .safetensors for sampling."
        )
    if run_dir.exists() and not run_dir.is_dir():
        raise FileExistsError(f"{run_dir} is a file: name a new folder for the run.")
    if run_dir.exists() and any(run_dir.iterdir()):
        raise FileExistsError(f"the folder {run_dir} is not empty: name a new one for the run.")
    notes: list[str] = []
    try:
        cfg = _config(saved, notes)
        cfg.run.dir = str(run_dir)
        validate(cfg)
        payload = _payload(saved, cfg)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{source} cannot become a run: {reason.rstrip('.')}.") from error
    step = int(saved["global_step"])
    temporary = run_dir.with_name(f".{run_dir.name}.{os.getpid()}.tmp")
    try:
        save_ema(temporary, step, payload["ema"], payload["config"])
        save_yaml(cfg, temporary / "config.yaml")
        state = save_state(temporary, step, payload, cfg.run.keep)
        os.replace(temporary, run_dir)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return Converted(run_dir / state.name, step, notes)


def _config(saved: Mapping[str, Any], notes: list[str]) -> Config:
    """The run's configuration: its arguments, and where they differ what its state says."""
    args = saved["args"]
    if not args:
        raise ValueError("it does not hold the arguments of its run")
    cfg = convert.config_of_args(args)
    cfg.run.seed = args.get("seed", cfg.run.seed)
    cfg.data.flip = args.get("dataset") != "stackmnist"
    if args.get("dataset") == "stackmnist":
        cfg.data.source = "stacked_mnist"
    o, epoch, step = cfg.optim, int(saved["epoch"]), int(saved["global_step"])
    if epoch < 1 or step < epoch:
        raise ValueError(f"{step} steps in {epoch} epochs are no training state")
    o.lr_interval = round(step / epoch)
    if step % epoch:
        notes.append(
            f"{step:,} steps do not divide by {epoch:,} epochs (the run changed its batch?): the "
            f"learning rate now changes every {o.lr_interval:,} steps."
        )
    epochs = args.get("num_epoch", epoch)
    groups = {name: saved[f"optimizer{name}"]["param_groups"][0] for name in "GD"}
    for name, group in groups.items():
        # A resumed run goes on with these, whatever its arguments say.
        scheduler = saved[f"scheduler{name}"]
        setattr(o, f"lr_{name.lower()}", float(scheduler["base_lrs"][0]))
        epochs, o.lr_min = int(scheduler["T_max"]), float(scheduler["eta_min"])
        o.beta1, o.beta2 = (float(beta) for beta in group["betas"])
        o.eps = float(group["eps"])
    cfg.run.steps = epochs * o.lr_interval
    for name, group in groups.items():
        _compare_rates(name, float(group["lr"]), _rate(cfg, name, step), notes)
    return cfg


def _rate(cfg: Config, name: str, step: int) -> float:
    o = cfg.optim
    rate = o.lr_g if name == "G" else o.lr_d
    if o.lr_decay == "none":
        return rate
    return cosine_rate(step, rate, o.lr_min, cfg.run.steps, o.lr_interval)


def _compare_rates(name: str, theirs: float, ours: float, notes: list[str]) -> None:
    # Published rates follow from one another and gather rounding.
    if abs(theirs - ours) > 1e-6 * max(theirs, ours):
        notes.append(
            f"The learning rate of {name} was {theirs:.6g} and goes on at {ours:.6g}, as its "
            "schedule says."
        )


def _payload(saved: Mapping[str, Any], cfg: Config) -> dict[str, Any]:
    """The content of a state of ours, but for the step."""
    raw = convert.generator_from_published(saved["netG_dict"], cfg)
    average = convert.ema_of_content(saved, cfg) if cfg.optim.ema_decay > 0 else raw
    networks = {
        "generator": raw,
        "discriminator": convert.discriminator_from_published(saved["netD_dict"], cfg),
    }
    optimizers = {
        network: _adam_from_published(saved[f"optimizer{letter}"], networks[network], network, cfg)
        for network, letter in (("generator", "G"), ("discriminator", "D"))
    }
    return {
        "config": to_dict(cfg),
        **{name: _copied(weights) for name, weights in networks.items()},
        "ema": _copied(average),
        "optimizers": optimizers,
        # It is not known; the run takes up the data it is given.
        "data_digest": None,
    }


def _copied(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # Published averages are views into common storage, all of which would count with each.
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _adam_from_published(
    saved: Mapping[str, Any], weights: Mapping[str, torch.Tensor], network: str, cfg: Config
) -> dict[str, Any]:
    """Moments by the number our optimiser gives a parameter; the published ones by theirs."""
    names, trained = _names(network, cfg), _trained(network, cfg)
    numbers = [n for group in saved["param_groups"] for n in group["params"]]
    if len(numbers) != len(names):
        raise ValueError(
            f"the {network}'s optimiser has {len(numbers)} parameters, the network {len(names)}"
        )
    number_of = dict(zip(names, numbers, strict=True))
    state: dict[int, dict[str, torch.Tensor]] = {}
    for i, name in enumerate(trained):
        entry = saved["state"].get(number_of[name])
        if entry is None:
            continue
        moments = {key: entry[key].detach().clone() for key in _MOMENTS}
        for key, moment in moments.items():
            if moment.shape != weights[name].shape:
                raise ValueError(
                    f"{key} of the {network}'s {names[name]} is {list(moment.shape)}, the "
                    f"parameter {list(weights[name].shape)}"
                )
        # A number in files of older versions of torch.
        state[i] = {"step": torch.tensor(float(entry["step"])), **moments}
    return {"state": state, "param_groups": [{"params": list(range(len(trained)))}]}


def _names(network: str, cfg: Config) -> Names:
    """Our parameter name -> published name, in the published order."""
    return (convert.generator_names if network == "generator" else convert.discriminator_names)(cfg)


def _trained(network: str, cfg: Config) -> list[str]:
    """Our names of the parameters that an optimiser holds, in its order."""
    with torch.device("meta"):
        module = (build_generator if network == "generator" else build_discriminator)(cfg)
    return [name for name, p in module.named_parameters() if p.requires_grad]


def export_run(run: str | os.PathLike[str], path: str | os.PathLike[str]) -> Converted:
    """Write a training state of ours as a published ``content.pth``.

    Args:
        run: a ``state-*.pt`` or a run directory (its newest state).
        path: the file to write; it appears only when it is complete.

    Raises:
        FileNotFoundError: no such state.
        ValueError: not a training state, or a model without a published format.
        UnreadableError: a damaged state.
        OSError: the disk is full or cannot be written to.
    """
    source, path = Path(run), Path(path)
    if source.is_dir():
        states = list_states(source)
        if not states:
            raise FileNotFoundError(f"the folder {source} holds no training state state-*.pt.")
        source = states[-1]
    if source.is_file() and source.suffix != ".pt":
        raise ValueError(
            f"{source} is no training state of ours, of which {path.name} could be made: give a "
            "state-*.pt or a run directory, or name the output netG_0.pth for the generator alone."
        )
    saved = load_state(source)
    cfg = from_dict(saved["config"])
    notes: list[str] = []
    content = _published(saved, cfg, notes)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(path) as file:
        torch.save(content, file)
    return Converted(path, int(saved["step"]), notes)


def _published(saved: Mapping[str, Any], cfg: Config, notes: list[str]) -> dict[str, Any]:
    if cfg.discriminator.kind not in ("small", "large"):
        raise ValueError(
            f'a discriminator of kind "{cfg.discriminator.kind}" has no published training '
            'format: only "small" and "large" have; name the output netG_0.pth for the generator.'
        )
    step, o = int(saved["step"]), cfg.optim
    epoch = step // o.lr_interval
    if step % o.lr_interval:
        notes.append(
            f"Step {step:,} lies within an epoch of {o.lr_interval:,} steps, and the published "
            f"code counts whole ones: it will go on with epoch {epoch:,}."
        )
    if "discriminator_x0" in saved:
        notes.append("The second discriminator (loss.x0_weight) is left out: the format has one.")
    content: dict[str, Any] = {
        "epoch": epoch,
        "global_step": step,
        "args": argparse.Namespace(**_args(cfg)),
    }
    average = saved["ema"] if o.ema_decay > 0 else None
    for network, letter in zip(_NETWORKS, "GD", strict=True):
        names, rate = _names(network, cfg), _rate(cfg, letter, epoch * o.lr_interval)
        weights = saved[network]
        content[f"net{letter}_dict"] = OrderedDict(
            (f"module.{theirs}", _plain(weights[ours])) for ours, theirs in names.items()
        )
        content[f"optimizer{letter}"] = _adam_to_published(
            saved["optimizers"][network], network, cfg, rate, average if letter == "G" else None
        )
        content[f"scheduler{letter}"] = _scheduler(cfg, letter, epoch, rate)
    return content


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _adam_to_published(
    saved: Mapping[str, Any],
    network: str,
    cfg: Config,
    rate: float,
    average: Mapping[str, torch.Tensor] | None,
) -> dict[str, Any]:
    number_of = {name: i for i, name in enumerate(_trained(network, cfg))}
    ours = [n for group in saved["param_groups"] for n in group["params"]]
    names, o = _names(network, cfg), cfg.optim
    state: dict[int, dict[str, torch.Tensor]] = {}
    for i, name in enumerate(names):
        entry = saved["state"].get(ours[number_of[name]]) if name in number_of else None
        if entry is not None:
            state[i] = {"step": torch.tensor(float(entry["step"]))}
            state[i] |= {key: _plain(entry[key]) for key in _MOMENTS}
            if average is not None:
                state[i]["ema"] = _plain(average[name])
    group = {"lr": rate, "betas": (o.beta1, o.beta2), "eps": o.eps, **_ADAM}
    group["initial_lr"] = o.lr_g if network == "generator" else o.lr_d
    return {"state": state, "param_groups": [{**group, "params": list(range(len(names)))}]}


def _scheduler(cfg: Config, letter: str, epoch: int, rate: float) -> dict[str, Any]:
    stepped = epoch if cfg.optim.lr_decay == "cosine" else 0
    return {
        "T_max": max(cfg.run.steps // cfg.optim.lr_interval, 1),
        "eta_min": cfg.optim.lr_min,
        "base_lrs": [cfg.optim.lr_g if letter == "G" else cfg.optim.lr_d],
        "last_epoch": stepped,
        "_step_count": stepped + 1,
        "_is_initial": False,
        "_get_lr_called_within_step": False,
        "_last_lr": [rate],
    }


def _args(cfg: Config) -> dict[str, Any]:
    """The published command line of this run."""
    model, o = to_dict(cfg)["model"], cfg.optim
    own = ("kind", "schedule", "tanh", "hidden", "hidden_layers", "point_features")
    args = {name: value for name, value in model.items() if name not in own}
    args["attn_resolutions"] = tuple(args["attn_resolutions"])
    dataset = "celeba_256"
    if cfg.discriminator.kind == "small":
        dataset = "stackmnist" if cfg.data.source == "stacked_mnist" else "cifar10"
    elif cfg.data.lsun_class is not None:
        dataset = "lsun"
    return {
        **_ARGS,
        **args,
        "not_use_tanh": not cfg.model.tanh,
        "use_geometric": cfg.model.schedule == "geometric",
        "dataset": dataset,
        "ngf": cfg.discriminator.ngf,
        "t_emb_dim": cfg.discriminator.t_emb_dim,
        "seed": cfg.run.seed,
        "batch_size": cfg.run.batch_size,
        "num_epoch": max(cfg.run.steps // o.lr_interval, 1),
        "lr_g": o.lr_g,
        "lr_d": o.lr_d,
        "beta1": o.beta1,
        "beta2": o.beta2,
        "no_lr_decay": o.lr_decay == "none",
        "use_ema": o.ema_decay > 0,
        "ema_decay": o.ema_decay,
        "r1_gamma": cfg.loss.r1_gamma,
        "lazy_reg": cfg.loss.lazy_reg,
    }
