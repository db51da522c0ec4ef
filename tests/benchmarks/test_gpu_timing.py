"""Timing whole networks in the GPU suite: what is left when one provider fails or is wrong."""

import time
from types import SimpleNamespace

import pytest
import torch

from ddgan_fast.benchmarks import gpu_networks, step
from ddgan_fast.benchmarks.gpu_timing import fastest, time_case
from ddgan_fast.benchmarks.gpu_units import Child, read
from ddgan_fast.benchmarks.runner import Case, Provider
from ddgan_fast.kernels import registry


def child(tmp_path, part="step"):
    return Child(part, tmp_path / "records.jsonl", "cpu", True, time.monotonic() + 100,
                 tmp_path, tmp_path)


def rows_of(one):
    return {r["row"]["provider"]: r["row"] for r in read(one.records) if "row" in r}


def full():
    raise torch.OutOfMemoryError("CUDA out of memory")


def case(differences=tuple, **calls):
    providers = [Provider(name, "fp32", {"step": call}) for name, call in calls.items()]
    return Case("step", providers, {"step": 1.0}, 4, torch.device("cpu"), {"preset": "p.yaml"},
                differences)


def test_a_provider_that_fails_costs_its_own_row(tmp_path):
    one = child(tmp_path)
    time_case(one, case(ours=lambda: None, recipe=full, other=lambda: None), 2)
    rows = rows_of(one)
    assert rows["recipe"]["status"] == "failed" and "memory" in rows["recipe"]["error_text"]
    assert rows["recipe"]["preset"] == "p.yaml"
    assert rows["ours"]["agrees"] and rows["ours"]["speedup"].keys() == {"other"}


def test_none_that_works_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="no provider works"):
        time_case(child(tmp_path), case(ours=full), 2)


def test_one_that_is_wrong_leaves_the_others_right(tmp_path):
    one = child(tmp_path)
    with pytest.raises(RuntimeError, match="off by a mile"):
        time_case(one, case(ours=lambda: None, b=lambda: None), 2, wrong={"b": "off by a mile"})
    rows = rows_of(one)
    assert rows["ours"]["agrees"] and not rows["b"]["agrees"]
    assert rows["b"]["disagreement"] == "off by a mile"


def test_what_cannot_be_compared_is_timed_all_the_same(tmp_path):
    one = child(tmp_path)
    with pytest.raises(RuntimeError, match="not compared: CUDA out of memory"):
        time_case(one, case(full, ours=lambda: None), 2)
    assert not rows_of(one)["ours"]["agrees"] and "ms_p50" in rows_of(one)["ours"]


def toy(monkeypatch, seen):
    """Two ways of taking toy steps, the second of which raises."""

    def stepper(base, variant, device, stack, recorder):
        seen.append(variant.backend)
        if variant.backend == "triton":
            raise RuntimeError("no such kernel")
        return step.Stepper(base, device, stack)

    monkeypatch.setattr(gpu_networks, "_stepper", stepper)
    return {"a": gpu_networks.Variant(), "b": gpu_networks.Variant(backend="triton")}


def test_a_backend_that_fails_or_has_killed_a_process_is_left_out(tmp_path, monkeypatch):
    seen = []
    variants = toy(monkeypatch, seen)

    def unit(one):
        gpu_networks._time_variants(one, "ablation", "tiny", 4, variants, (), chain="c")

    one = child(tmp_path)
    assert one.run([("u", lambda: unit(one))]) == 0
    assert seen == ["torch", "triton"]
    assert rows_of(one)["b"]["error_text"] == "no such kernel" and rows_of(one)["a"]["agrees"]
    one.records.unlink()
    dead = child(tmp_path)
    for record in ({"process": 1}, {"unit": "u", "status": "begun"}, {"trying": ["triton"]}):
        dead.write(record)
    again = child(tmp_path)
    assert again.run([("u", lambda: unit(again))]) == 0
    assert seen[2:] == ["torch"] and rows_of(again).keys() == {"a"}


def test_every_backend_is_compared_with_the_recipe(tmp_path, monkeypatch):
    asked = []

    def disagreements(stepper, variant, recipe):
        asked.append(variant.backend)
        return ["off"] if variant.backend == "cuda" else []

    monkeypatch.setattr(gpu_networks, "_disagreements", disagreements)
    variants = {name: gpu_networks.Variant(backend=name) for name in ("torch", "triton", "cuda")}
    ranks = SimpleNamespace(device=torch.device("cpu"))
    stepper = SimpleNamespace(engine=SimpleNamespace(ranks=ranks))
    found = gpu_networks._wrong_backends(stepper, variants, ["triton", "cuda"], recipe=None)
    assert asked == ["triton", "cuda"] and found == {"cuda": "off"}


def test_a_baseline_gets_the_fastest_backend_that_works():
    def call():
        if registry._in_use == "triton":
            raise RuntimeError("no such kernel")
        time.sleep(0.02 if registry._in_use == "torch" else 0.0)

    cpu = torch.device("cpu")
    assert fastest(call, ["torch", "triton", "cuda"], cpu) == "cuda"
    assert fastest(call, ["torch", "triton"], cpu) == "torch"
    assert fastest(call, ["triton"], cpu) == "triton", "the only one is not tried"
