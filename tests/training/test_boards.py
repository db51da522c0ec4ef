"""TensorBoard and W&B: histograms by timestep, pictures, and boards that fail without the run."""

import json
import math
import sys
import types

import numpy as np
import pytest
import torch

from ddgan_fast.config import load_config
from ddgan_fast.training import histograms
from ddgan_fast.training.monitor import DeviceStats, Monitor
from ddgan_fast.training.trainer import train

TICK = {"seconds": 2.0, "wait_seconds": 0.5, "lr": 1e-4}
PROJECT = "ddgan"


def binned(values):
    """Counts by the bins' edges, computed by NumPy."""
    edges = histograms.Histograms((), torch.device("cpu"))._edges
    counts = np.histogram(np.clip(values, -99.9, 99.9), edges)[0]
    where = np.flatnonzero(counts)
    return counts[where[0] : where[-1] + 1], edges[where[0] : where[-1] + 2]


def test_samples_are_counted_by_timestep():
    torch.manual_seed(0)
    values, t = torch.randn(1000).exp(), torch.randint(0, 4, (1000,))
    weight = (torch.arange(1000) % 3 > 0).double()
    stats = DeviceStats("cpu", ("D/real",))
    for part in (slice(0, 500), slice(500, 1000)):
        stats.add_samples("D/real", values[part], t[part], 4, weight=weight[part])
        stats.add_samples("D/fake", values[part], t[part], 4)
    means = stats.read()
    found = stats.histograms()
    assert set(found) == {f"D/real/t{i}" for i in range(4)}
    for i in range(4):
        chosen = values[(t == i) & (weight > 0)].double().numpy()
        counts, edges = binned(chosen)
        assert found[f"D/real/t{i}"].counts.tolist() == counts.tolist()
        np.testing.assert_array_equal(found[f"D/real/t{i}"].edges, edges)
        assert means[f"D/real/t{i}"] == pytest.approx(chosen.mean())
    assert stats.read() == {} and stats.histograms() == {}


def test_far_values_and_what_is_skipped():
    stats = DeviceStats("cpu", ("a",))
    values = torch.tensor([1e6, -math.inf, math.nan, 0.5])
    stats.add_samples("a", values, torch.tensor([0, 0, 1, 3]), 4,
                      weight=torch.tensor([1.0, 1, 0, 1]))
    stats.read()
    found = stats.histograms()
    assert set(found) == {"a/t0", "a/t3"}, "a skipped update counts nothing"
    assert found["a/t0"].counts.sum() == 2 and found["a/t0"].counts[[0, -1]].tolist() == [1, 1]
    edges = found["a/t3"].edges
    assert edges[0] <= 0.5 <= edges[1] and edges[1] - edges[0] < 0.2


def test_many_timesteps_are_told_apart_as_ten():
    stats = DeviceStats("cpu", ("a",))
    stats.add_samples("a", torch.ones(1000), torch.arange(1000), 1000)
    means = stats.read()
    found = stats.histograms()
    assert set(found) == {f"a/t{i}" for i in range(0, 1000, 100)} == set(means) - {"a"}
    assert {row.counts.sum() for row in found.values()} == {100}


def test_what_a_graph_repeats_is_counted_again():
    stats = DeviceStats("cpu", ("a",))
    stats.add_samples("a", torch.ones(3), torch.zeros(3, dtype=torch.int64), 2)
    (counts,) = (x for x in stats.tensors() if x.numel() > 2)
    stats.read()
    assert counts.sum() == 0, "the same tensor, emptied in place"
    counts += 1
    stats.add("b", 1.0)
    stats.read()
    assert stats.histograms()["a/t1"].counts.sum() == len(counts) / 2


@pytest.mark.gpu
def test_counting_never_waits_for_the_gpu():
    stats = DeviceStats("cuda", ("a",))
    values, t = torch.ones(4, device="cuda"), torch.arange(4, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            stats.add_samples("a", values, t, 4, weight=values[0])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    stats.read()
    assert stats.histograms()["a/t3"].counts.tolist() == [3.0]


def test_histograms_in_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    values = {"D/real/t0": histograms.Histogram(np.array([1.0, 3.0]), np.array([0.0, 1.0, 2.0]))}
    with Monitor(tmp_path, 100, 0, batch_size=8, console=False) as monitor:
        monitor.tick(10, {"D/real/t0": 1.0}, **TICK)
        monitor.histograms(10, values)
        monitor.histograms(20, values)
        monitor.go_back(10)
        monitor.histograms(20, values)
    accumulator = EventAccumulator(str(tmp_path), size_guidance={"histograms": 0})
    accumulator.Reload()
    first, second = accumulator.Histograms("histograms/D/real/t0")
    assert "D/real/t0" in accumulator.Tags()["scalars"]
    assert accumulator.Tags()["histograms"] == ["histograms/D/real/t0"], "not the scalar's name"
    shown = first.histogram_value
    assert (first.step, second.step) == (10, 20)
    assert (shown.min, shown.max, shown.num, shown.sum) == (0.0, 2.0, 4.0, 5.0)
    assert (list(shown.bucket_limit), list(shown.bucket)) == ([1.0, 2.0], [1.0, 3.0])


class FakeWandb(types.ModuleType):
    """Notes what it is asked for; fails on demand."""

    def __init__(self, key=True, fails=()):
        super().__init__("wandb")
        self.key, self.fails = key, fails
        self.begun, self.logged, self.axes, self.finished = [], [], [], 0

    def login(self, prompt=True):
        assert not prompt
        return self.key

    def init(self, **options):
        self.maybe("init")
        self.begun.append(options)
        return self

    def maybe(self, what):
        if what in self.fails:
            raise RuntimeError(f"{what} is broken\nin detail")

    def define_metric(self, name, step_metric=None):
        self.axes.append((name, step_metric))

    def log(self, values):
        self.maybe("log")
        self.logged.append(values)

    def finish(self):
        self.maybe("finish")
        self.finished += 1

    def Settings(self, **values):
        return values

    def Histogram(self, np_histogram):
        return ("histogram", *np_histogram)

    def Image(self, pixels):
        return ("image", pixels.shape)


@pytest.fixture
def fake(monkeypatch):
    def put(**options):
        module = FakeWandb(**options)
        monkeypatch.setitem(sys.modules, "wandb", module)
        return module

    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return put


def monitor(folder, **options):
    return Monitor(folder, 100, 0, batch_size=8, tensorboard=False, wandb=PROJECT,
                   config={"run": {"seed": 1}}, **options)


def test_a_run_in_wandb(tmp_path, fake):
    module = fake()
    run = tmp_path / "digits"
    counts = histograms.Histogram(np.array([2.0]), np.array([0.0, 1.0]))
    with monitor(run, console=False) as board:
        board.tick(10, {"G/loss": 0.5, "D/r1": math.nan}, **TICK)
        board.histograms(10, {"D/real/t0": counts})
        board.histograms(10, {})
        board.image("samples", 10, np.zeros((4, 6, 3), np.uint8))
        board.go_back(0)
        board.scalars(5, {"metrics/fid": 3.0})
    (begun,) = module.begun
    assert (begun["project"], begun["name"], begun["mode"]) == (PROJECT, "digits", None)
    assert begun["config"] == {"run": {"seed": 1}} and begun["dir"] == str(run)
    assert module.axes == [("step", None), ("*", "step")]
    scalars, distribution, picture, metrics = module.logged
    assert scalars["step"] == 10 and scalars["G/loss"] == 0.5 and math.isnan(scalars["D/r1"])
    assert distribution["histograms/D/real/t0"][0] == "histogram"
    assert picture == {"step": 10, "samples": ("image", (4, 6, 3))}
    assert metrics == {"step": 5, "metrics/fid": 3.0}
    assert module.finished == 1


def test_a_resumed_run_goes_on_in_its_own(tmp_path, fake):
    module = fake()
    for name in ("a", "a", "b"):
        monitor(tmp_path / name, console=False).close()
    first, again, other = (begun["id"] for begun in module.begun)
    assert first == again != other
    assert {begun["resume"] for begun in module.begun} == {"allow"}


def test_without_a_key_nothing_is_asked(tmp_path, fake, capsys, monkeypatch):
    module = fake(key=False)
    monitor(tmp_path).close()
    assert module.begun[0]["mode"] == "offline"
    assert "wandb sync" in capsys.readouterr().out
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monitor(tmp_path).close()
    assert module.begun[1]["mode"] == "disabled" and capsys.readouterr().out == ""
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "a key that W&B need not be asked for")
    monitor(tmp_path).close()
    assert module.begun[2]["mode"] is None and capsys.readouterr().out == ""


@pytest.mark.parametrize(("key", "mode"), [("known", None), (None, "offline")])
def test_an_older_wandb_tells_its_key_otherwise(tmp_path, fake, monkeypatch, key, mode):
    module = fake()
    monkeypatch.setattr(module, "login", lambda: True)  # asks, as it knows no other way
    module.api = types.SimpleNamespace(api_key=key)
    monitor(tmp_path, console=False).close()
    assert module.begun[0]["mode"] == mode


def test_without_the_package_a_sentence_and_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with monitor(tmp_path) as board:
        board.tick(100, {}, **TICK)
        board.image("x", 100, np.zeros((2, 2), np.uint8))
    out = capsys.readouterr().out
    assert out.count("W&B") == 1 and "pip install 'ddgan_fast[wandb]'" in out
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("what", ["init", "log", "finish"])
def test_a_failing_wandb_is_told_once(tmp_path, fake, capsys, what):
    module = fake(fails=(what,))
    with monitor(tmp_path) as board:
        for step in (10, 20, 30):
            board.scalars(step, {"a": 1.0})
    out = capsys.readouterr().out
    assert out == f"W&B fails ({what} is broken); going on without it.\n"
    assert len(module.logged) == (3 if what == "finish" else 0)


def test_training_shows_itself(tmp_path, fake):
    module = fake()
    changes = {"run.steps": 4, "run.tick": 2, "run.batch_size": 16, "run.dir": str(tmp_path),
               "run.wandb": PROJECT, "run.sample_every": 4, "run.sample_count": 4,
               "model.hidden": 16, "discriminator.hidden": 16}
    train(load_config("gaussians25", changes), device="cpu", quiet=True)
    assert module.begun[0]["config"]["run"]["wandb"] == PROJECT
    named = {name for record in module.logged for name in record}
    assert {"G/loss", "D/real/t0", "histograms/D/real/t0", "histograms/G/loss/t1"} <= named
    counted = sum(value[1].sum() for record in module.logged for name, value in record.items()
                  if name.startswith("histograms/D/fake"))
    assert counted == 4 * 16, "each sample of each step once"
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert not any("histogram" in name for line in lines for name in line)


def test_nothing_is_counted_for_nobody(tmp_path):
    changes = {"run.steps": 2, "run.tick": 1, "run.batch_size": 16, "run.dir": str(tmp_path),
               "run.tensorboard": False, "run.sample_every": 0, "model.hidden": 16,
               "discriminator.hidden": 16}
    result = train(load_config("gaussians25", changes), device="cpu", quiet=True)
    assert result.finished
    assert DeviceStats("cpu").tensors() == []
