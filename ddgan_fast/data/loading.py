"""Chooses the loader that suits the data and the device."""

from __future__ import annotations

import torch

from ddgan_fast.data import dali_loader
from ddgan_fast.data.dataset import Dataset
from ddgan_fast.data.plan import Plan
from ddgan_fast.data.resident import fits
from ddgan_fast.data.torch_loader import Loader
from ddgan_fast.validation import CACHES, DALI_DEVICES, LOADERS


def make_loader(
    dataset: Dataset,
    plan: Plan,
    device: str | torch.device = "cpu",
    rank: int = 0,
    world: int = 1,
    start_step: int = 0,
    *,
    loader: str = "auto",
    cache: str = "auto",
    dali_device: str = "cpu",
    timeout: float = 600.0,
) -> Loader:
    """The loader of a rank; its ``note`` says in a sentence which one it is, and why.

    Args:
        dataset: Where the records come from.
        plan: Which records a step takes.
        device: Where the batches go.
        rank: This process's rank.
        world: Number of ranks.
        start_step: Step of the first batch.
        loader: "resident": the whole set on the device; "ring": one thread reads ahead;
            "workers": ``dataset.workers`` threads decode with Pillow; "dali": NVIDIA DALI decodes;
            "auto": "resident" as ``cache`` says, else "dali" for encoded images where it is
            installed, else "workers" or "ring" by what fetching costs.
        cache: "gpu": on the device; "ram" and "none": not there; "auto": there when the set is in
            memory and takes at most 1 GiB.
        dali_device: "cpu" (the same pixels as Pillow), or "mixed": the GPU decodes JPEG.
        timeout: Seconds without a batch after which the data counts as stuck.

    Raises:
        ValueError: The plan, the ranks or the choices do not fit.
        RuntimeError: DALI is asked for and cannot be used here.
    """
    device = torch.device(device)
    _check(loader, cache, dali_device)
    why = ""
    if loader == "auto":
        loader, why = _choose(dataset, device, cache, dali_device)
    source, kind = dataset, loader
    if loader == "dali":
        source, kind = dali_loader.DaliDecoded(dataset, device, dali_device), "ring"
    workers = max(1, dataset.workers)
    note = {
        "resident": f"the whole set lies on {device}",
        "ring": "one thread reads ahead",
        "workers": f"{workers} thread{'s decode' if workers > 1 else ' decodes'} ahead",
        "dali": f"DALI decodes on {'CPU and GPU' if dali_device == 'mixed' else 'the CPU'}",
    }[loader]
    return Loader(
        source,
        plan,
        device,
        rank,
        world,
        start_step,
        kind=kind,
        note=f"Loader: {note}{why}.",
        timeout=timeout,
    )


def _check(loader: str, cache: str, dali_device: str) -> None:
    for name, value, allowed in (
        ("data.loader", loader, LOADERS),
        ("data.cache", cache, CACHES),
        ("data.dali_device", dali_device, DALI_DEVICES),
    ):
        if value not in allowed:
            raise ValueError(f'{name} is "{value}"; allowed are {", ".join(allowed)}.')
    if cache == "gpu" and loader not in ("auto", "resident"):
        raise ValueError(
            f'data.cache "gpu" keeps the data on the device, where loader "{loader}" has nothing '
            'to do: set data.loader to "auto".'
        )


def _choose(
    dataset: Dataset, device: torch.device, cache: str, dali_device: str
) -> tuple[str, str]:
    """The kind of loader, and what could be better."""
    if cache == "gpu" or (fits(dataset, device) and (cache == "auto" or device.type == "cpu")):
        return "resident", ""
    if dali_loader.encoded_records(dataset) is None:
        in_memory = dataset.array is not None
        return ("ring" if in_memory or dataset.workers <= 1 else "workers"), ""
    prepared = getattr(dataset, "kind", None) == "shards"
    advice = "" if prepared else "; ddgan-fast prepare, once, would spare the decoding"
    reason = dali_loader.why_not(dataset, device, dali_device)
    if reason is None:
        return "dali", advice
    return "workers", f" ({reason}{advice})"
