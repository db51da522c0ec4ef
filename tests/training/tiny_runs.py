"""Small runs for the tests of the trainer, in this process or under torchrun.

Run as a program it is one rank: ``tiny_runs.py CONFIG.yaml OUT DEVICE`` trains, and writes a digest
of the weights after every step, and the first step's gradients, to OUT.<rank>.pt.
"""

import hashlib
import subprocess
import sys
from pathlib import Path

import torch

from ddgan_fast.config import Config, from_dict, load_config, save_yaml, to_dict
from ddgan_fast.training import trainer
from ddgan_fast.training.engine import NETWORKS, Engine

TINY = {
    "model.image_size": 8,
    "model.num_channels": 3,
    "model.num_timesteps": 4,
    "model.nz": 6,
    "model.z_emb_dim": 12,
    "model.n_mlp": 1,
    "model.num_channels_dae": 8,
    "model.ch_mult": [1, 2],
    "model.num_res_blocks": 1,
    "model.attn_resolutions": [4],
    "discriminator.kind": "custom",
    "discriminator.ngf": 4,
    "discriminator.t_emb_dim": 16,
    "discriminator.block_mults": [2, 4],
    "discriminator.block_downs": [False, True],
    "loss.r1_gamma": 1.0,
    "loss.lazy_reg": 3,
    "optim.lr_g": 1e-3,
    "optim.lr_d": 1e-3,
    "optim.lr_interval": 1,
    "optim.ema_decay": 0.9,
    "data.source": "synthetic",
    "data.limit": 50,
    "run.batch_size": 8,
    "run.steps": 6,
    "run.tick": 2,
    "run.checkpoint_every": 2,
    "run.sample_every": 0,
    "run.sample_count": 4,
    "run.tensorboard": False,
}


def tiny(run_dir: Path | str, **overrides: object) -> Config:
    """The tiny configuration; overrides use "__" for the dot, as in ``run__steps=4``."""
    dotted = {name.replace("__", "."): value for name, value in overrides.items()}
    base = to_dict(load_config("cifar10"))
    return load_config_from(base, {**TINY, "run.dir": str(run_dir), **dotted})


def load_config_from(base: dict, overrides: dict) -> Config:
    for name, value in overrides.items():
        section, field = name.split(".")
        base[section][field] = value
    return from_dict(base)


def final_state(run_dir: Path | str) -> dict:
    """The newest training state of a run."""
    newest = sorted(Path(run_dir).glob("state-*.pt"))[-1]
    return torch.load(newest, weights_only=True)


def tensors_of(state: dict) -> dict[str, torch.Tensor]:
    """All weights, averages and moments of a state under flat names."""
    flat = {}
    for part in ("generator", "discriminator", "discriminator_x0", "ema"):
        flat |= {f"{part}.{name}": value for name, value in state.get(part, {}).items()}
    for name, optimizer in state["optimizers"].items():
        for i, entry in optimizer["state"].items():
            flat |= {f"{name}.adam.{i}.{key}": value for key, value in entry.items()}
    return flat


def run_ranks(
    cfg: Config, world: int, out: Path, timeout: float = 120, device: str = "cpu"
) -> list[dict]:
    """Train under torchrun; returns what each rank recorded."""
    config = out.with_suffix(".yaml")
    save_yaml(cfg, config)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={world}", __file__, str(config), str(out), device]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    return [torch.load(f"{out}.{rank}.pt", weights_only=True) for rank in range(world)]


def record(cfg: Config, device: str = "cpu") -> dict:
    """Train in this process; digests of the weights per step, first gradients, losses."""
    recorded: dict = {"digests": [], "gradients": {}, "losses": {}}
    take_step, update = Engine.take_step, Engine.update

    def watched_step(engine, batch):
        take_step(engine, batch)
        digest = hashlib.sha256()
        for module in engine.modules.values():
            for value in module.state_dict().values():
                digest.update(value.contiguous().cpu().numpy().tobytes())
        recorded["digests"].append(digest.hexdigest())

    def watched_update(engine, name, stats, t):
        if engine.step == 0:
            network = NETWORKS[name]
            parameters = engine.modules[network].named_parameters()
            recorded["gradients"] |= {
                f"{network}.{key}": p.grad.clone() for key, p in parameters if p.grad is not None
            }
            recorded["losses"] |= {key: value.clone() for key, value in stats.items()}
        update(engine, name, stats, t)

    Engine.take_step, Engine.update = watched_step, watched_update
    try:
        trainer.train(cfg, device=device, quiet=True)
    finally:
        Engine.take_step, Engine.update = take_step, update
    return recorded


def main(config: str, out: str, device: str) -> None:
    import os

    torch.set_num_threads(1)
    torch.save(record(load_config(config), device), f"{out}.{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
