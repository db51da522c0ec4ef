"""From a checkpoint to samples: loads a generator and draws images or points with it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from . import convert
from .config import Config, from_dict, load_config
from .diffusion import Diffusion
from .drawing import PRECISIONS, Drawer, use_graphs
from .fitting import (
    Tensors,
    check_agreement,
    check_revealed,
    check_shapes,
    check_single,
    need,
    revealed,
)
from .guidance import Guidance, bind
from .kernels import philox
from .models import build_generator
from .models.labels import told
from .samplers import choose, sample_shape
from .training.checkpoint import list_emas, list_states, load_ema, load_state
from .training.parallel import choose_device
from .validation import validate_model

WEIGHTS = ("ema", "raw")

# A step that training never reaches. The sample grids of a run use it too, so that sampling with
# the run's seed shows the same images.
_NOISE_STEP = -1
_POINTS_AT_ONCE = 16_384
_IMAGES_AT_ONCE = {"cpu": 64, "cuda": 1024}
_CPU_BUDGET = 4 << 30

Recipe = str | os.PathLike[str] | Config


class LoadedGenerator(nn.Module):
    """A trained generator in evaluation mode, with what sampling needs.

    With ``cfg.loss.kind`` "ddpm" it predicts the noise of x_{t+1} instead of x_0.

    Args:
        cfg: its configuration.
        weights: its tensors under our names.
        step: training steps behind it; None where the file does not say.
        source: the file it comes from.

    Attributes:
        cfg, step, source: as given.
        diffusion: the diffusion it inverts.
        network: the bare generator.
        label: class of samples for which none is named; None is the null class.

    Raises:
        ValueError: the tensors do not fit the configuration, or are not a generator's.
    """

    def __init__(self, cfg: Config, weights: Tensors, step: int | None, source: Path) -> None:
        super().__init__()
        if cfg.loss.kind == "classifier":
            raise ValueError(
                f"{source} holds a classifier, which draws nothing: give it to the option "
                "--classifier, beside the DDPM that it guides."
            )
        validate_model(cfg.model)
        with torch.random.fork_rng(devices=[]):  # the initial weights are drawn in vain
            network = build_generator(cfg)
        check_shapes(dict(network.state_dict()), weights, cfg, source)
        network.load_state_dict(weights)
        if cfg.run.channels_last:
            # torch's stubs lack this overload.
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.cfg, self.step, self.source = cfg, step, source
        self.network = network
        self.diffusion = Diffusion.from_config(cfg.model)
        self.label: int | None = None
        self.requires_grad_(False).eval()

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of a sample inside the networks: (C, H, W), or (D,) for points."""
        return sample_shape(self.cfg.model)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.diffusion.q_tables.device

    def forward(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        z: torch.Tensor,
        label: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predict x_0 [N, C, H, W] from x_{t+1} of that shape, t int64 [N] and z [N, nz].

        ``label`` int64 [N] are classes, of a model that knows any.
        """
        if label is None and self.label is not None:
            label = torch.full_like(t, self.label)
        return self.network(x, t, z, **told(label))


def load_generator(
    path: str | os.PathLike[str],
    *,
    weights: str = "ema",
    config: Recipe | None = None,
    device: torch.device | str = "cpu",
) -> LoadedGenerator:
    """Load a generator from any checkpoint, ours or published; no code in the file is run.

    Args:
        path: ``ema-*.safetensors``, ``state-*.pt``, a run directory (its newest checkpoint), a
            published ``netG_*.pth`` or a published ``content.pth``.
        weights: "ema" (averaged) or "raw".
        config: preset, YAML file or ``Config`` of a ``netG_*.pth``, which does not hold one; with
            other files it must agree with theirs.
        device: where the generator goes.

    Raises:
        FileNotFoundError: no such file, or no checkpoint in the directory.
        ValueError: a file that is no checkpoint, lacks these weights or does not fit ``config``.
        UnreadableError: a damaged file.
    """
    if weights not in WEIGHTS:
        raise ValueError(f'weights is {weights!r}: choose "ema" (averaged) or "raw".')
    path = Path(path)
    target = choose_device(str(device))
    given = load_config(config) if isinstance(config, str | os.PathLike) else config
    file = _newest(path, weights) if path.is_dir() else path
    if file.is_file() and file.suffix not in (".safetensors", ".pt"):
        return _load_published(file, weights, given).to(target)
    own, tensors, step, file = read_checkpoint(file, weights)
    check_agreement(own, given, file)
    return LoadedGenerator(own, tensors, step, file).to(target)


def read_checkpoint(
    path: str | os.PathLike[str], weights: str = "ema"
) -> tuple[Config, Tensors, int, Path]:
    """Configuration, tensors, step and file of one of our checkpoints, or a run's newest.

    Raises:
        FileNotFoundError: no such file, or no checkpoint in the directory.
        ValueError: a file that is no checkpoint of ours, or lacks these weights.
        UnreadableError: a damaged file.
    """
    path = Path(path)
    file = _newest(path, weights) if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"there is no checkpoint {file}.")
    if file.suffix == ".safetensors":
        tensors, stored, step = load_ema(file)
        own = from_dict(stored)
        check_single(own, weights, file)
        return own, tensors, step, file
    if file.suffix == ".pt":
        state = load_state(file)
        name = "ema" if weights == "ema" else "generator"
        return from_dict(state["config"]), state[name], int(state["step"]), file
    raise ValueError(f"{file} is neither ema-*.safetensors nor state-*.pt of a run.")


def _newest(run_dir: Path, weights: str) -> Path:
    """The newest checkpoint in a run directory that holds these weights."""
    files = list_emas(run_dir) if weights == "ema" else list_states(run_dir)
    if not files:
        name = "ema-*.safetensors" if weights == "ema" else "state-*.pt"
        raise FileNotFoundError(f"the folder {run_dir} holds no checkpoint {name} of a run.")
    return files[-1]


def _load_published(file: Path, weights: str, given: Config | None) -> LoadedGenerator:
    content = convert.read_published(file)
    step: int | None = None
    if "netG_dict" in content:
        values, step = content["netG_dict"], int(content["global_step"])
        cfg = convert.config_of_args(content["args"]) if content["args"] else need(given, file)
        check_agreement(cfg, given, file)
    else:
        values, cfg = content, need(given, file, content)
        check_single(cfg, weights, file)
    validate_model(cfg.model)
    check_revealed(revealed(values), cfg, file)
    try:
        if "netG_dict" in content and weights == "ema":
            tensors = convert.ema_of_content(content, cfg)
        else:
            tensors = convert.generator_from_published(values, cfg)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return LoadedGenerator(cfg, tensors, step, file)


def generate(
    model: LoadedGenerator,
    n: int,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    start: int = 0,
    stride: int = 1,
    say: Callable[[str], None] | None = None,
    engine: str = "auto",
    precision: str = "fp32",
    sampler: str | None = None,
    steps: int | None = None,
    eta: float | None = None,
    guidance: Guidance | None = None,
) -> Iterator[np.ndarray]:
    """Draw n samples, batch by batch.

    All noise follows from (seed, sample number): sample k is the same, up to rounding, in any
    batch split and on any device. The Philox key is ``philox.seed_tensor(seed, -1, 0)``.

    Args:
        model: the generator.
        n: how many.
        seed: picks the samples; 0 to 2**63 - 1.
        batch_size: how many at once; default what the memory is thought to hold. When memory runs
            out, the batch is halved.
        device: move the model there first; default: it stays where it is.
        start: number of the first sample.
        stride: from one sample's number to the next one's, where several processes share the work.
        say: told when a batch had to be made smaller; default: a line on stderr.
        engine: "graph" (one CUDA graph per batch size), "eager", or "auto" (graph on GPUs where
            there are some batches to draw).
        precision: "fp32", "tf32", "bf16" or "fp16".
        sampler: of a DDPM: "ancestral" (default), "ddim", "dpmpp" or "heun"; see ``samplers``.
        steps: of its sampler; default all T. Alone it means "ddim".
        eta: noise of "ddim", 0 (default) to 1.
        guidance: classes of the samples, and how strongly they are shown; default: drawn uniformly
            for a model that knows classes.

    Yields:
        uint8 [b, H, W, C], or float32 points [b, D].

    Raises:
        ValueError: a negative count, seed or start, a stride or batch size below 1, no such engine
            here, no such precision, or a sampler or guidance that the model does not have.
        RuntimeError: not even one sample fits into memory.
    """
    for name, value, least in (
        ("n", n, 0),
        ("seed", seed, 0),
        ("start", start, 0),
        ("stride", stride, 1),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}: it must be at least {least}.")
    if seed >= 2**63:
        raise ValueError(f"seed is {seed}: it must be below 2**63.")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"the batch size is {batch_size}: it must be at least 1.")
    if device is not None:
        model.to(choose_device(str(device)))
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}: choose one of {', '.join(PRECISIONS)}.")
    chosen = choose(model.cfg, sampler, steps, eta)
    condition = bind(model.cfg, guidance, model.device)
    evaluations = chosen.evaluations if chosen else model.cfg.model.num_timesteps
    at_once = condition.at_once if condition else 1
    size = batch_size or max(1, guess_batch(model) // at_once)
    drawer = Drawer(
        model,
        philox.seed_tensor(seed, _NOISE_STEP, 0, model.device),
        graphs=use_graphs(engine, model.device, n // size, evaluations),
        precision=precision,
        sampler=chosen,
        condition=condition,
    )
    numbers = range(start, start + n * stride, stride)
    return _draw_all(drawer, numbers, size, model.device, say or _to_stderr)


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _draw_all(
    drawer: Drawer,
    numbers: range,
    size: int,
    device: torch.device,
    say: Callable[[str], None],
) -> Iterator[np.ndarray]:
    too_many, done = 0, 0
    while done < len(numbers):
        part = numbers[done : done + size]
        count = len(part)
        samples = _attempt(drawer, part, device)
        if samples is None:
            if count == 1:
                raise RuntimeError(
                    f"not even one sample fits into the memory of {device}: end other "
                    "programs that use it, or sample with --device cpu."
                )
            too_many, size = max(too_many, count), count // 2
            continue
        if too_many:
            say(f"{too_many} samples at once do not fit into memory; going on with {size}.")
            too_many = 0
        yield samples
        done += count


def _attempt(drawer: Drawer, numbers: range, device: torch.device) -> np.ndarray | None:
    """Samples of these numbers, or None when memory ran out."""
    first, end, step = numbers.start, numbers.stop, numbers.step
    index = torch.arange(first, end, step, dtype=torch.int64, device=device)
    try:
        # A graph's memory is overwritten by the next batch.
        return drawer.draw(index).to("cpu", copy=True).numpy()
    except (torch.OutOfMemoryError, MemoryError):
        pass
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # what the CPU's allocator says
            raise
    # Only here has the failed attempt let go of its tensors.
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return None


def guess_batch(model: LoadedGenerator) -> int:
    """How many samples at once the free memory should hold, on the safe side."""
    cfg = model.cfg.model
    if cfg.kind == "mlp":
        return _POINTS_AT_ONCE
    areas = [
        mult * cfg.num_channels_dae * (cfg.image_size >> level) ** 2
        for level, mult in enumerate(cfg.ch_mult)
    ]
    # Skip connections live until the way up; a dozen temporaries of the widest resolution.
    per_image = 4 * ((cfg.num_res_blocks + 2) * sum(areas) + 12 * max(areas))
    if model.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(model.device)
        budget = free * 2 // 5
    else:
        budget = _CPU_BUDGET
    most = _IMAGES_AT_ONCE.get(model.device.type, 64)
    return max(1, min(most, budget // per_image))
