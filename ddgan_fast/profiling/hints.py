"""What the figures of a profile suggest, each conclusion with the number that it follows from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .figures import GAPS, REDUCTION
from .phases import EMA, OPTIMISER, PASS, WAIT
from .timeline import REST

Profile = dict[str, Any]

_WAIT, _GAPS, _R1, _UPDATE, _REDUCTION, _REST = 0.05, 0.15, 0.15, 0.15, 0.1, 0.05
"""Shares of the step above which something is worth a sentence."""
_EXTRA = 1.02
_SMALL_KERNEL_US, _MANY_KERNELS = 8.0, 300
_LARGE_OPERATOR, _FAR = 0.15, 0.5
_SPARE_MEMORY = 0.5
_UNEQUAL = 0.05


def hints(found: Profile) -> list[str]:
    """Sentences, the costliest first as far as costs are known; each names its figure."""
    rules = (
        _data, _passes, _gaps, _small_kernels, _precision, _fallbacks, _r1, _recompute, _layout,
        _updates, _reduction, _operators, _agreement,
    )  # fmt: skip
    told = [hint for rule in rules for hint in rule(found)]
    return [text for _, text in sorted(told, key=lambda hint: -hint[0])]


Hints = Iterator[tuple[float, str]]
"""Milliseconds that are at stake, and the sentence."""


def _row(found: Profile, name: str) -> tuple[float, float]:
    """Milliseconds and share of a phase."""
    for row in found["phases"]:
        if row["phase"] == name:
            return row["ms"], row["share"]
    return 0.0, 0.0


def _data(found: Profile) -> Hints:
    ms, share = _row(found, WAIT)
    if share < _WAIT:
        return
    data = found["data"]
    advice = []
    if not data["prepared"] and data["source"] not in ("synthetic", "digits", "gaussians25"):
        advice.append("ddgan-fast prepare, once, spares the decoding")
    if data["loader"] == "workers":
        advice.append(f"--data.workers above {data['workers']}")
    if data["loader"] != "resident":
        advice.append("--data.cache gpu or ram where the set fits")
    tried = f": {'; '.join(advice)}" if advice else ""
    yield ms, f"{share:.0%} data wait ({ms:.4g} ms a step): the loader cannot keep up{tried}."


def _passes(found: Profile) -> Hints:
    names = {"discriminator": "D", "discriminator_x0": "D0", "generator": "G"}
    needs = {3: "real, fake, and G's fake", 2: "one fake for each update", 1: "the only update's"}
    for network, row in found["images"].items():
        if row["images"] < _EXTRA * row["needed"]:
            continue
        extra = [p for p in found["phases"] if p["phase"].startswith(PASS)]
        ms = sum(p["ms"] for p in extra) if network == "discriminator" else 0.0
        cost = f", whose forward passes alone take {ms:.4g} ms" if ms else ""
        yield (
            max(ms, 1e-3 * found["step"]["ms_p50"]),
            f"{names[network]} sees {row['images']:.3g} images for each image of the batch where "
            f"the algorithm needs {row['needed']} ({needs[row['needed']]}): "
            f"{row['images'] - row['needed']:.3g} pass(es) too many{cost}.",
        )


def _gaps(found: Profile) -> Hints:
    ms, share = _row(found, GAPS)
    if share < _GAPS:
        return
    if found["device"] == "cpu":
        advice = "Python and autograd between operators; a larger batch spreads it"
        if "compile" not in found["engine"]:
            advice += ", --run.engine compile removes some"
    elif "graph" in found["engine"]:
        advice = "although the step is a CUDA graph: look at the trace"
    else:
        advice = "the GPU waits for the host: try --run.engine graph, or a larger --run.micro_batch"
    yield ms, f"{share:.0%} host gaps ({ms:.4g} ms a step): {advice}."


def _small_kernels(found: Profile) -> Hints:
    kernels = found["kernels"]
    calls = sum(row["calls"] for row in kernels)
    if calls < _MANY_KERNELS:
        return
    small = [row for row in kernels if row["us_each"] < _SMALL_KERNEL_US]
    count, ms = sum(row["calls"] for row in small), sum(row["ms"] for row in small)
    if count > calls / 2 and "graph" not in found["engine"]:
        yield (
            ms,
            f"{count:.0f} of {calls:.0f} kernels take less than {_SMALL_KERNEL_US:g} us each: the "
            "step is bound by launches; --run.engine graph or compile+graph, or a larger batch.",
        )


def _precision(found: Profile) -> Hints:
    if found["dtype"] in ("fp32", "tf32") and found["bf16_usable"]:
        yield (
            0.3 * found["step"]["ms_p50"],
            f"The step of {found['step']['ms_p50']:.4g} ms computes in {found['dtype']} on a GPU "
            "with bf16: try --run.precision bf16.",
        )


def _fallbacks(found: Profile) -> Hints:
    """Ops that run in plain torch although a kernel could run here."""
    states: dict[str, dict[str, dict[str, Any]]] = {}
    for row in found["backends"]:
        states.setdefault(row["op"], {})[row["backend"]] = row
    times = {row["operator"]: row for row in found["operators"]}
    for op, by_name in states.items():
        usable = [n for n in ("cuda", "triton") if by_name.get(n, {}).get("usable")]
        own = times.get(f"ddgan_fast::{op}")
        torch_runs = by_name.get("torch", {}).get("chosen")
        if found["device"] == "cuda" and torch_runs and usable and own:
            yield (
                own["ms"] / 2,
                f"{op} takes {own['ms']:.4g} ms ({own['share']:.0%} of the operators) on its torch "
                f"fallback although the {usable[0]} kernel is usable: unset DDGAN_FAST_BACKEND, or "
                f"DDGAN_FAST_BACKEND={usable[0]}.",
            )


def _r1(found: Profile) -> Hints:
    parts, every = found["step"]["ms_parts"], found["r1_every"]
    if every is None:
        return
    if every == 1:
        share = sum(p["share"] for p in found["phases"] if p["phase"].startswith("R1"))
        if share >= _R1 / 3:
            yield (
                share * found["step"]["ms_p50"],
                f"R1 is applied at every step, and its inner gradient alone takes {share:.0%}, its "
                "backward pass more: --loss.lazy_reg 10 or so (published: 10 or 15) saves most of "
                "it, but trains differently.",
            )
        return
    ms = (parts["with_r1"] - parts["without_r1"]) / every
    share = ms / found["step"]["ms_p50"]
    if share >= _R1:
        yield (
            ms / 2,
            f"R1 takes {share:.0%} of the mean step at --loss.lazy_reg {every} (a step with it "
            f"takes {parts['with_r1']:.4g} ms, without {parts['without_r1']:.4g}): twice the "
            "interval saves half of that, but trains differently.",
        )


def _recompute(found: Profile) -> Hints:
    used = found["memory"].get("allocator")
    if not used:
        return
    part = used["reserved_peak_bytes"] / used["device_bytes"]
    if part >= _SPARE_MEMORY:
        return
    ms = 0.1 * found["step"]["ms_p50"]
    if found["recompute"]:
        sides = ", ".join(map(str, found["recompute"]))
        yield (
            ms,
            f"Blocks at {sides} pixels run again in the backward pass, but the peak is only "
            f"{part:.0%} of the memory: try --run.recompute [].",
        )
    elif found["micro_batches"] > 1:
        yield (
            ms,
            f"The step takes {found['micro_batches']} micro-batches, but the peak is only "
            f"{part:.0%} of the memory: try a larger --run.micro_batch.",
        )


def _layout(found: Profile) -> Hints:
    if found["device"] == "cuda" and not found["channels_last"]:
        yield (
            0.1 * found["step"]["ms_p50"],
            f"The step of {found['step']['ms_p50']:.4g} ms keeps images as NCHW: "
            "--run.channels_last true suits convolutions and our kernels better.",
        )


def _updates(found: Profile) -> Hints:
    rows = [_row(found, name) for name in (OPTIMISER, EMA)]
    ms, share = (sum(column) for column in zip(*rows, strict=True))
    if share >= _UPDATE:
        yield (
            ms / 2,
            f"{share:.0%} optimiser and EMA ({ms:.4g} ms a step), which cost the same for any "
            f"batch: a batch larger than {found['batch']} spreads them.",
        )


def _reduction(found: Profile) -> Hints:
    ms, share = _row(found, REDUCTION)
    if share >= _REDUCTION:
        yield (
            ms,
            f"{share:.0%} waiting for the reduction of gradients ({ms:.4g} ms a step): more images "
            "per rank, or --run.reduction bf16.",
        )


def _operators(found: Profile) -> Hints:
    rows = [row for row in found["operators"] if "of_roofline" in row]
    for row in sorted(rows, key=lambda row: -row["lost_ms"])[:3]:
        if row["share"] >= _LARGE_OPERATOR and row["of_roofline"] < _FAR:
            yield (
                1e-3 * row["lost_ms"],
                f"{row['operator']} takes {row['share']:.0%} of the operators' time "
                f"({row['ms']:.4g} ms in {row['calls']:.4g} calls) and reaches "
                f"{row['of_roofline']:.0%} of what this machine could do ({row['bound']}-bound).",
            )


def _agreement(found: Profile) -> Hints:
    ms, share = _row(found, REST)
    if share >= _REST:
        yield ms, f"{share:.0%} of the step ({ms:.4g} ms) belongs to no phase that has a name."
    off = found["sum_over_step"] - 1
    if abs(off) > _UNEQUAL:
        yield (
            0.0,
            f"The phases add up to {1 + off:.1%} of the step as it is without marks: the machine "
            "was busy or the steps too few; try more --steps.",
        )
