"""Prepared sets and raw sources through every loader: the same batches from each."""

import os

import numpy as np
import pytest
import torch
from loader_sets import encode, pictures

from ddgan_fast.config import load_config
from ddgan_fast.data import build_dataset, dali_loader
from ddgan_fast.data.loading import make_loader
from ddgan_fast.data.plan import Plan
from ddgan_fast.data.prepare import prepare
from ddgan_fast.data.prepare_request import Request

N, SIZE = 13, 32
PLAN = Plan(N, 3, 8)


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch):
    """Waiting for the disk is most of the time of so small sets."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(params=["jpeg", "png", "webp"])
def sets(request, tmp_path):
    """The same pictures as a folder of files, as encoded shards and as raw shards."""
    paths = {"folder": tmp_path / "folder"}
    paths["folder"].mkdir()
    for i, pixels in enumerate(pictures(N, SIZE)):
        (paths["folder"] / f"{i:02}.{request.param}").write_bytes(encode(pixels, request.param))
    for name, encoded in (("encoded", True), ("raw", False)):
        paths[name] = tmp_path / name
        options = {"resolution": SIZE, "encoded": encoded, "shard_images": 5, "workers": 1}
        prepare(Request(str(paths["folder"]), str(paths[name]), **options))
    return paths


def opened(path, **options):
    overrides = {f"data.{name}": value for name, value in options.items()}
    cfg = load_config("cifar10", {"data.path": str(path), "data.cache": "none", **overrides})
    return build_dataset(cfg)


def batches(dataset, start=0, count=5, **options):
    with make_loader(dataset, PLAN, "cpu", start_step=start, **options) as loader:
        return [next(loader) for _ in range(count)], loader.note


def test_the_same_batches_from_everywhere(sets):
    found = {
        "raw, ring": batches(opened(sets["raw"])),
        "raw, memory": batches(opened(sets["raw"], cache="ram")),
        "raw, device": batches(opened(sets["raw"], cache="gpu"), cache="gpu"),
        "raw, later": batches(opened(sets["raw"]), start=2, count=3),
        "encoded": batches(opened(sets["encoded"]), loader="workers"),
        "folder": batches(opened(sets["folder"]), loader="workers"),
    }
    assert found["raw, ring"][1] == "Loader: one thread reads ahead."
    assert "whole set" in found["raw, memory"][1] and "whole set" in found["raw, device"][1]
    dataset = opened(sets["encoded"])
    if dali_loader.why_not(dataset, torch.device("cpu"), "cpu") is None:
        found["encoded, DALI"] = batches(dataset)
        found["folder, DALI"] = batches(opened(sets["folder"]))
        found["folder, DALI, later"] = batches(opened(sets["folder"]), start=3, count=2)
        assert found["encoded, DALI"][1] == "Loader: DALI decodes on the CPU."
        assert "DALI decodes on the CPU; ddgan-fast prepare" in found["folder, DALI"][1]
    truth = {batch.step: batch for batch in found["raw, ring"][0]}
    for name, (other, _) in found.items():
        for batch in other:
            assert torch.equal(batch.images, truth[batch.step].images), (name, batch.step)
            assert torch.equal(batch.flip, truth[batch.step].flip), (name, batch.step)


@pytest.mark.parametrize("sets", ["png"], indirect=True)
def test_a_damaged_shard_is_named_with_the_image(sets):
    dataset = opened(sets["raw"])
    order = np.concatenate([PLAN.batch(step)[0] for step in range(2)])
    shard = sets["raw"] / "train-00001.tar"  # images 5 to 9
    os.truncate(shard, 2 * (512 + 128 + SIZE * SIZE * 3))
    assert set(order) >= set(range(N))
    with (
        make_loader(dataset, PLAN) as loader,
        pytest.raises(OSError, match=r"train-00001\.tar, image 00000000[6-9]: the file ends"),
    ):
        for _ in range(2):
            next(loader)
