"""Typed configuration of a run: what every option means, and where its value comes from.

``load_config`` turns a preset or a YAML file plus dotted overrides into a validated ``Config``.
Options that exist in the published DDGAN code keep their published names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ddgan_fast.files import atomic_open
from ddgan_fast.options import read_yaml, set_options, to_yaml, unknown
from ddgan_fast.validation import validate

__all__ = [
    "Config",
    "DataConfig",
    "DiscriminatorConfig",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "from_dict",
    "list_presets",
    "load_config",
    "save_yaml",
    "to_dict",
    "validate",
]

_PRESETS = Path(__file__).with_name("presets")


@dataclass
class ModelConfig:
    """The generator and the diffusion it inverts: everything that sampling needs."""

    kind: str = "ncsnpp"
    """Network family: "ncsnpp" (images) or "mlp" (2-D points)."""
    image_size: int = 32
    """Height and width of an image in pixels."""
    num_channels: int = 3
    """Channels of an image (1, 3 or 4), or coordinates of a point for kind "mlp"."""
    num_timesteps: int = 4
    """Denoising steps T."""
    schedule: str = "vp"
    """Noise schedule: "vp" or "geometric"."""
    beta_min: float = 0.1
    """Smallest noise rate of the schedule."""
    beta_max: float = 20.0
    """Largest noise rate of the schedule; below 1 for "geometric"."""
    centered: bool = True
    """Images are in [-1, 1]; false: in [0, 1], rescaled inside the network."""
    nz: int = 100
    """Length of the latent z; 0 = none, and norms with learned scales and shifts."""
    z_emb_dim: int = 256
    """Width of the mapped latent."""
    n_mlp: int = 3
    """Hidden layers of the latent mapping after its first."""
    num_channels_dae: int = 128
    """Base width of the generator."""
    ch_mult: tuple[int, ...] = (1, 2, 2, 2)
    """Width multiplier of each resolution, finest first."""
    num_res_blocks: int = 2
    """Residual blocks per resolution on the way down (one more on the way up)."""
    attn_resolutions: tuple[int, ...] = (16,)
    """Resolutions (pixels) with self-attention."""
    dropout: float = 0.0
    """Dropout probability inside residual blocks."""
    resamp_with_conv: bool = True
    """Published option that changes nothing here; resblock_type "ddpm" works with false alone."""
    conditional: bool = True
    """Tell the generator the timestep."""
    fir: bool = True
    """Resample with the FIR filter instead of nearest neighbour and mean."""
    fir_kernel: tuple[float, ...] = (1.0, 3.0, 3.0, 1.0)
    """Taps of the FIR filter; normalised to sum 1."""
    skip_rescale: bool = True
    """Divide residual sums by sqrt 2."""
    resblock_type: str = "biggan"
    """Residual block: "biggan", "biggan_oneadagn" or "ddpm"."""
    progressive: str = "none"
    """Output pyramid: "none" or "output_skip"."""
    progressive_input: str = "residual"
    """Input pyramid: "none", "input_skip" or "residual"."""
    progressive_combine: str = "sum"
    """How the input pyramid joins for "input_skip": "sum" or "cat"."""
    embedding_type: str = "positional"
    """Timestep embedding: "positional"; "fourier" is refused: it takes log 0 at t = 0."""
    fourier_scale: float = 16.0
    """Standard deviation of the Fourier embedding's frequencies."""
    tanh: bool = True
    """Squash the output to [-1, 1]."""
    hidden: int = 512
    """Width of the hidden layers (kind "mlp")."""
    hidden_layers: int = 3
    """Number of hidden layers (kind "mlp")."""
    point_features: int = 0
    """Random Fourier frequencies of the input points (kind "mlp"); 0 = none."""
    num_classes: int = 0
    """Classes that the networks are told; 0 = none."""
    label_dropout: float = 0.1
    """Share of the training samples whose class is hidden, for classifier-free guidance."""


@dataclass
class DiscriminatorConfig:
    """The time-dependent discriminator D(x_t, t, x_{t+1})."""

    kind: str = "small"
    """"small" (32 px), "large" (256 px), "custom", "dense" (few pixels) or "mlp" (points)."""
    ngf: int = 64
    """Base width."""
    t_emb_dim: int = 256
    """Width of the timestep embedding."""
    block_mults: tuple[int, ...] = ()
    """Width of each block in units of ngf (kind "custom")."""
    block_downs: tuple[bool, ...] = ()
    """Whether each block halves the resolution (kind "custom")."""
    hidden: int = 512
    """Width of the hidden layers (kinds "dense" and "mlp")."""
    hidden_layers: int = 3
    """Number of hidden layers (kinds "dense" and "mlp")."""
    point_features: int = 0
    """Random Fourier frequencies of x_t (kind "mlp"); 0 = none."""


@dataclass
class LossConfig:
    """The objective."""

    kind: str = "gan"
    """"gan" (denoising diffusion GAN), "ddpm" (error of the noise, no D) or "classifier"."""
    r1_gamma: float = 0.05
    """Weight gamma of the R1 penalty gamma/2 * E |grad D|^2."""
    lazy_reg: int = 1
    """Apply R1 at every lazy_reg-th step, without rescaling."""
    terms: dict[str, float] = field(default_factory=dict)
    """Weights of terms that join G's adversarial loss, by name: "l1" and "l2" of x_0' - x_0."""
    x0_weight: float = 0.0
    """Weight in G's loss of a second discriminator, which judges x_0' beside x_0; 0 = none."""
    x0_r1_gamma: float | None = None
    """Weight of the R1 penalty of the second discriminator; default that of the first."""


@dataclass
class OptimConfig:
    """Adam for both networks, learning-rate schedule, and the average of the weights."""

    lr_g: float = 1.5e-4
    """Learning rate of the generator."""
    lr_d: float = 1e-4
    """Learning rate of the discriminator."""
    beta1: float = 0.5
    """Adam's first-moment decay."""
    beta2: float = 0.9
    """Adam's second-moment decay."""
    eps: float = 1e-8
    """Adam's epsilon."""
    lr_decay: str = "cosine"
    """"cosine" (to lr_min at the last step) or "none"."""
    lr_min: float = 1e-5
    """Learning rate at the end of the cosine."""
    lr_interval: int = 1
    """Steps between two changes of the learning rate (the published code: an epoch)."""
    ema_decay: float = 0.9999
    """Decay of the exponential moving average of the generator's weights; 0 turns it off."""
    ema_warmup: bool = False
    """Start with a shorter average: decay = min(ema_decay, (1 + step) / (10 + step))."""
    backend: str = "auto"
    """Adam: "auto" and "torch" (torch's fused one), "apex" (NVIDIA's), "foreach" or "loop"."""


@dataclass
class DataConfig:
    """Where the training data comes from."""

    source: str = "auto"
    """"auto" (what lies at the path), one kind of it, "digits", "gaussians25" or "synthetic"."""
    path: str | None = None
    """The data on disk (for short --data)."""
    split: str = "train"
    """Part of sets that have parts: "train", "validation" (val, test, t10k) or "both"."""
    flip: bool = True
    """Mirror half of the images left to right."""
    mode: str = "stream"
    """"stream": every record once per n positions; "epoch": drop an epoch's incomplete batch."""
    workers: int = 2
    """Threads that decode images, per rank."""
    loader: str = "auto"
    """"ring" (a thread reads), "workers" (threads decode), "dali", "resident" or "auto"."""
    dali_device: str = "cpu"
    """Where DALI decodes JPEG: "cpu" (Pillow's pixels) or "mixed" (GPU, some grey levels off)."""
    cache: str = "auto"
    """"gpu", "ram" (decode once), "none" (decode as needed), "auto" (gpu or ram up to 1 GiB)."""
    lsun_class: str | None = None
    """LSUN category (church_outdoor, bedroom, ...) where the path holds several."""
    limit: int | None = None
    """Use only the first so many records."""
    allow_change: bool = False
    """Go on with a saved run although its data changed."""


@dataclass
class RunConfig:
    """The run itself: where, how long, how often."""

    dir: str | None = None
    """Run directory; default runs/<preset>."""
    steps: int = 400_000
    """Training steps (one D and one G update each)."""
    seed: int = 1024
    """Seed of weights, data order and noise."""
    batch_size: int = 128
    """Global batch: images per step over all ranks."""
    micro_batch: int | str | None = None
    """Images per forward pass and rank, "auto" = as many as fit (for short --micro-batch)."""
    precision: str = "auto"
    """"auto" (bf16 on GPUs, fp32 on CPU), "fp32", "tf32", "bf16", "fp16" or "fp64" (tests)."""
    engine: str = "auto"
    """"eager", "compile", "graph" (CUDA graphs), "compile+graph" or "auto" (measured once)."""
    compiler: str = "inductor"
    """Backend of torch.compile: "inductor" or, to check it, "aot_eager"."""
    rewrites: str = "auto"
    """Exact rewrites of the networks: "auto", "all", "none" or a list such as "sdpa, joint_d"."""
    recompute: tuple[int, ...] = ()
    """Resolutions (pixels) whose blocks run again in the backward pass instead of being kept."""
    reduction: str = "fp32"
    """What ranks exchange gradients in: "fp32" or "bf16" (half the bytes, rounded)."""
    timeout_s: float = 600.0
    """Seconds that a rank waits for the others before all of them stop."""
    on_divergence: str = "stop"
    """"stop", or "rollback": return to the last good state, then take new data and noise."""
    max_rollbacks: int = 3
    """Returns to an earlier state that a run may make; at the next sign it stops."""
    threads: int | None = None
    """CPU threads of torch in each process; default torch's own choice."""
    channels_last: bool = True
    """Keep images and weights in NHWC memory order."""
    tick: int = 100
    """Steps between two looks at the statistics (log line, finite check)."""
    checkpoint_every: int = 5000
    """Steps between checkpoints."""
    keep: int = 3
    """How many of the newest checkpoints stay (at least 3)."""
    sample_every: int = 5000
    """Steps between sample grids; 0 = none."""
    sample_count: int = 64
    """Images in a sample grid."""
    evaluate_every: int = 0
    """Steps between two measurements of the samples (metrics.jsonl); 0 = none."""
    evaluate_n: int = 10_000
    """Samples of a measurement."""
    evaluate_metrics: str = "fid"
    """Some of "fid,kid,is,pr,dc,modes" for images; points have "modes"."""
    evaluate_extractor: str = "inception"
    """What sees the images: "inception", "lite0", "digits" or "idx"."""
    evaluate_inception: str | None = None
    """pytorch-fid's weight file, for the extractor "inception"."""
    evaluate_classifier: str | None = None
    """File that "ddgan-fast classifier" wrote, for the extractor "idx"."""
    max_skipped: int = 10
    """Stop after this many steps skipped for a non-finite gradient since the last good tick."""
    tensorboard: bool = True
    """Write TensorBoard events."""
    wandb: str = ""
    """Project of Weights & Biases that the run is shown in; "" = none."""


@dataclass
class Config:
    """Everything that decides a run."""

    preset: str = "custom"
    """Name of the preset or file this configuration came from; names the default run directory."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Generator and diffusion."""
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    """Discriminator."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Objective."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Adam, learning rates, and the average of the weights."""
    data: DataConfig = field(default_factory=DataConfig)
    """Where the training data comes from."""
    run: RunConfig = field(default_factory=RunConfig)
    """Where, how long, how often."""


def list_presets() -> list[str]:
    """Names of the presets that ``load_config`` accepts, in alphabetical order."""
    return sorted(path.stem for path in _PRESETS.glob("*.yaml"))


def load_config(
    name_or_path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None
) -> Config:
    """Reads a preset or a YAML file, applies overrides and validates the result.

    Args:
        name_or_path: a preset (see ``list_presets``), or a YAML file, which may start from a preset
            by ``base: NAME``; options that neither names keep their defaults.
        overrides: dotted names to values, such as ``{"model.num_timesteps": 4}``; strings are read
            as YAML where the option is not text.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown preset or option, a value of the wrong type, or one that cannot work.
    """
    config = _read(os.fspath(name_or_path))
    set_options(config, overrides or {})
    validate(config)
    return config


def from_dict(values: Mapping[str, Any]) -> Config:
    """The configuration of a nested mapping: types are checked, absent options keep their defaults.

    Raises:
        ValueError: an unknown option or a value of the wrong type.
    """
    config = Config()
    set_options(config, values)
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as nested dicts of lists, strings, numbers, booleans and None."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        return list(value) if isinstance(value, tuple) else value

    return plain(asdict(config))


def save_yaml(config: Config, path: str | os.PathLike[str]) -> None:
    """Writes every option, so that ``load_config(path)`` gives the same configuration back."""
    with atomic_open(Path(path)) as file:
        file.write(to_yaml(to_dict(config)).encode())


def _read(name: str) -> Config:
    path = Path(name)
    if name in list_presets():
        path = _PRESETS / f"{name}.yaml"
    elif (path / "config.yaml").is_file():
        raise ValueError(f"{name} is a folder: name the file in it, {path / 'config.yaml'}.")
    elif path.suffix not in (".yaml", ".yml") and not path.is_file():
        raise ValueError(_unknown_preset("preset", name))
    elif not path.is_file():
        raise FileNotFoundError(f"there is no configuration file {name}.")
    values = read_yaml(path)
    base = values.pop("base", None)
    if base is not None and base not in list_presets():
        raise ValueError(_unknown_preset("base preset", base, f" in {path}"))
    config = Config() if base is None else _read(base)
    config.preset = path.stem
    set_options(config, values, f" in {path}")
    return config


def _unknown_preset(what: str, name: object, where: str = "") -> str:
    presets = list_presets()
    listed = f"presets are {', '.join(presets)}, or give a YAML file"
    return unknown(what, name, presets, listed, where)
