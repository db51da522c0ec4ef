"""``bench loader``: nothing is measured before the loaders agree; CPU time is all of it."""

import json
import multiprocessing
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from loader_sets import pictures
from PIL import Image

from ddgan_fast.benchmarks import gpu_loader, loader, photographs
from ddgan_fast.benchmarks.gpu_units import Child
from ddgan_fast.cli import main

pytest.importorskip("lmdb", reason='lmdb is not installed: pip install "ddgan_fast[lmdb]"')


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "photographs"
    path.mkdir()
    for i, pixels in enumerate(pictures(2, 80)):
        Image.fromarray(pixels).save(path / f"{i}.png")
    return path


def test_command(folder, tmp_path, capsys):
    output = tmp_path / "loader.json"
    command = ["bench", "loader", "--images", str(folder), "--count", "9", "--size", "32"]
    command += ["--batch", "4", "--workers", "1", "--rounds", "2", "--seconds", "0.001"]
    assert main([*command, "--json", str(output)]) == 0
    rows = {row["provider"]: row for row in json.loads(output.read_text())["rows"]}
    assert rows.keys() - {"dali"} == {"ring", "workers", "synthetic", *loader.REFERENCES}
    for row in rows.values():
        assert row["case"] == "loader" and row["rounds"] == 2 and row["img_s"] > 0
        assert 0 < row["cpu_ms_p20"] <= row["cpu_ms_p50"] <= row["cpu_ms_p80"]
        assert row["cores_for_node"] == pytest.approx(3.2 * row["cpu_ms_p50"], rel=1e-3)
        assert row["less_cpu_than"].keys() == rows.keys() - {row["provider"]}
    ratio = rows["reference"]["cpu_ms_p50"] / rows["ring"]["cpu_ms_p50"]
    assert rows["ring"]["less_cpu_than"]["reference"]["p50"] == pytest.approx(ratio, rel=1e-2)
    assert "times less CPU per image than reference" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["ring", "dali", "reference", "reference_jpeg"])
def test_nothing_is_told_of_loaders_that_disagree(wrong):
    images = pictures(4, 8)
    plan = loader.Plan(4, 0, 4)
    raw = torch.from_numpy(images[plan.batch(0)[0]])
    floats = loader.to_model_input(raw, None)
    batches = {"ring": raw, "workers": raw, "dali": raw}
    batches |= {"reference": floats.flip(3), "reference_jpeg": floats}

    def provider(name, batch):
        @contextmanager
        def open_():
            yield iter([batch])

        return loader.Provider(name, "", 1, open_)

    loader._agree([provider(*item) for item in batches.items()], images, plan)
    batches[wrong] = batches[wrong].roll(1, 0)
    with pytest.raises(RuntimeError, match=f"loader {wrong} delivers other pixels"):
        loader._agree([provider(*item) for item in batches.items()], images, plan)


def _work(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def _child(seconds, done, leave):
    _work(seconds)
    done.set()
    leave.wait(60)


def test_cpu_time_is_that_of_children_too():
    context = multiprocessing.get_context("fork")
    done, leave = context.Event(), context.Event()
    before = loader.cpu_seconds()
    child = context.Process(target=_child, args=(0.3, done, leave))
    child.start()
    assert done.wait(60)
    spent = loader.cpu_seconds() - before
    leave.set()
    child.join()
    assert spent >= 0.3


def test_patches(folder):
    found, origin = photographs.patches(11, 32, folder)
    assert found.shape == (11, 32, 32, 3) and origin == "photographs of photographs"
    first = pictures(2, 80)[0]
    np.testing.assert_array_equal(found[0], first[:32, :32])
    np.testing.assert_array_equal(found[3], first[32:64, 32:64])
    assert len({patch.tobytes() for patch in found}) == 11


def test_photographs_that_are_too_small(folder):
    with pytest.raises(ValueError, match="none of the 2 photographs reaches 256 x 256"):
        photographs.patches(1, 256, folder)


def test_without_photographs_there_are_those_of_scikit_learn(monkeypatch, tmp_path):
    pytest.importorskip("sklearn")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found, origin = photographs.patches(2, 256)
    assert found.std() > 10 and "scikit-learn" in origin


def test_photographs_that_were_fetched_come_first(monkeypatch, tmp_path, folder):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "ddgan_fast").mkdir()
    folder.rename(tmp_path / "ddgan_fast" / "photographs")
    found, origin = photographs.patches(1, 32)
    assert origin == "photographs of Debian's mate-backgrounds"
    np.testing.assert_array_equal(found[0], pictures(2, 80)[0][:32, :32])


def test_without_any_photograph_that_is_said(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} holds no photographs"):
        photographs.patches(1, 32, tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(RuntimeError, match=r"no photographs here: run tools/photographs\.sh"):
        photographs.patches(1, 32)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--count", "0"], "--count is 0: it must be at least 1."),
        (["--json", "nowhere/x.json"], "--json: there is no folder nowhere."),
    ],
)
def test_values_that_cannot_be_are_refused(capsys, words, sentence):
    assert main(["bench", "loader", *words]) == 2
    assert sentence in capsys.readouterr().err


def test_the_part_of_the_gpu_suite(tmp_path, folder):
    records = tmp_path / "loader.jsonl"
    child = Child(
        "loader", records, "cpu", True, time.monotonic() + 100, tmp_path, tmp_path, str(folder)
    )
    assert child.run(gpu_loader.units(child)) == 0
    found = [json.loads(line) for line in records.read_text().splitlines()]
    assert [r["status"] for r in found if r.get("status") in ("ok", "failed")] == ["ok", "ok"]
    rows = {(r["row"]["case"], r["row"]["provider"]): r["row"] for r in found if "row" in r}
    assert rows["fed_step", "ring"]["speedup"]["synthetic"]["p50"] > 0
    assert rows["fed_step", "ring"]["wait_s"] >= 0 and ("fed_step", "synthetic") in rows
    assert rows["decode", "workers"]["largest_difference"] == 0
    assert rows["decode", "dali"].get("largest_difference", 0) == 0
    assert "needs a GPU" in rows["decode", "dali_mixed"]["status"]
