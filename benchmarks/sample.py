"""The case "sample": all T denoising steps of a batch of new images."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

from ddgan_fast.config import load_config
from ddgan_fast.diffusion import Diffusion
from ddgan_fast.drawing import PRECISIONS, use_graphs
from ddgan_fast.kernels import philox
from ddgan_fast.models import build_generator
from ddgan_fast.training.graphs import CudaRecorder
from ddgan_fast.training.precision import Precision

from .agreement import FLOAT32_ERROR, distance, wake
from .reference_recipe import ReferenceSampler
from .runner import Case, Options, Provider


def build(options: Options, stack: contextlib.ExitStack) -> Case:
    """The case for a preset's generator with random weights.

    Args:
        options: what to build.
        stack: closes what the case holds.

    Raises:
        ValueError: a preset or baseline that cannot be timed.
    """
    cfg, device = load_config(options.preset), options.device
    model, n = cfg.model, options.batch
    generator = build_generator(cfg)
    wake(generator, 0)
    generator = generator.to(device).eval().requires_grad_(False)
    points = model.kind == "mlp"
    if cfg.run.channels_last and not points:
        # torch's stubs lack this overload.
        generator = generator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    shape = (model.num_channels, *[model.image_size] * (0 if points else 2))
    diffusion = Diffusion.from_config(model).to(device)
    seed = philox.seed_tensor(0, 0, 0, device)
    index = philox.positions(n, device)

    precision = Precision(options.precision or "fp32", device.type)
    if precision.name not in PRECISIONS:
        names = ", ".join(PRECISIONS)
        raise ValueError(f"--precision is {precision.name!r}: choose one of {names}.")

    def draw() -> torch.Tensor:
        with torch.no_grad(), precision.settings(), precision.autocast():
            return diffusion.draw(generator, shape, model.nz, seed, index)

    ours: Callable[[], object] = draw
    graph = use_graphs(options.engine, device, 0)
    if graph:
        recorder = CudaRecorder(device)
        recorder.warm_up(draw, 1)
        ours = recorder.record(draw)
    facts = {"preset": options.preset, "batch": n, "timesteps": model.num_timesteps}
    facts["engine"] = "graph" if graph else "eager"
    providers = [Provider("ddgan_fast", precision.name, {"all_steps": ours})]
    shares = {"all_steps": 1.0}
    if options.baseline is None:
        return Case("sample", providers, shares, n, device, facts)
    sampler = ReferenceSampler(cfg, device)
    sampler.generator.load_state_dict(generator.state_dict())
    providers.append(Provider(options.baseline, "fp32", {"all_steps": lambda: sampler.draw(n)}))

    def differences() -> Iterator[str]:
        x, z, noise = sampler.noise(n)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            found = distance(
                diffusion.sample_loop(generator, x, z=z, noise=noise),
                sampler.loop(x, z, noise),
            )
        if not found <= FLOAT32_ERROR:
            yield f"the images are off by {found:.1e} of their length"

    return Case("sample", providers, shares, n, device, facts, differences)
