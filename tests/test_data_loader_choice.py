"""Which loader is chosen, and that all of them deliver the same batches."""

import re

import numpy as np
import pytest
import torch
from loader_sets import Encoded, Files, Pixels, encode, pictures

from ddgan_fast.config import load_config
from ddgan_fast.data import build_dataset, dali_loader
from ddgan_fast.data.dataset import ArrayDataset
from ddgan_fast.data.loading import make_loader
from ddgan_fast.data.plan import Plan
from ddgan_fast.data.sources import Synthetic

CUDA = torch.device("cuda")


@pytest.fixture
def without_dali(monkeypatch):
    monkeypatch.setattr(dali_loader, "why_not", lambda *of: "DALI is not installed")


def encoded(n=13, workers=2):
    return Encoded(Files([encode(p, "jpeg") for p in pictures(n, 16)]), 16, workers=workers)


def in_memory(n=13):
    return ArrayDataset(pictures(n, 8), "in memory", flips=True)


class Large(ArrayDataset):
    """In memory, and larger than what goes to a GPU unasked; touches no memory."""

    def __init__(self):
        self.array = np.broadcast_to(np.zeros((1, 1024, 1024, 3), np.uint8), (400, 1024, 1024, 3))
        self.shape, self.flips = self.array.shape[1:], True

    def describe(self):
        return "large"


@pytest.mark.parametrize(
    ("dataset", "device", "options", "kind", "words"),
    [
        (in_memory, "cpu", {}, "resident", "whole set lies on cpu"),
        (Large, "cpu", {}, "resident", "whole set"),
        (in_memory, "cuda", {}, "resident", "whole set lies on cuda"),
        (Large, "cuda", {}, "ring", "one thread"),
        (Large, "cuda", {"cache": "gpu"}, "resident", "whole set"),
        (in_memory, "cuda", {"cache": "ram"}, "ring", "one thread"),
        (in_memory, "cuda", {"cache": "none"}, "ring", "one thread"),
        (lambda: Pixels(pictures(9, 8)), "cuda", {}, "ring", "one thread"),
        (lambda: Synthetic(8, 3, 9), "cpu", {}, "ring", "one thread"),
        (lambda: Synthetic(8, 3, 9), "cpu", {"cache": "gpu"}, "resident", "whole set"),
        (encoded, "cpu", {}, "workers", "2 threads decode.*DALI is not installed.*prepare"),
        (encoded, "cpu", {"loader": "ring"}, "ring", "one thread"),
        (in_memory, "cpu", {"loader": "workers"}, "workers", "1 thread decodes"),
        (encoded, "cpu", {"loader": "resident"}, "resident", "whole set"),
    ],
)
def test_choice(without_dali, dataset, device, options, kind, words):
    data = dataset()
    loader = make_loader(data, Plan(len(data), 0, 4), device, **options)
    assert loader.kind == kind
    assert loader.note.startswith("Loader: ") and loader.note.endswith(".")
    assert re.search(words, loader.note), loader.note


def test_a_prepared_set_needs_no_advice(without_dali):
    data = encoded()
    data.kind = "shards"
    assert "prepare" not in make_loader(data, Plan(13, 0, 4)).note


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loader": "fast"}, 'data.loader is "fast"; allowed are auto, ring, workers, dali'),
        ({"cache": "disk"}, 'data.cache is "disk"; allowed are auto, gpu, ram, none'),
        ({"dali_device": "gpu"}, 'data.dali_device is "gpu"; allowed are cpu, mixed'),
        ({"loader": "ring", "cache": "gpu"}, 'set data.loader to "auto"'),
    ],
)
def test_choices_that_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        make_loader(in_memory(), Plan(13, 0, 4), **options)


def test_the_configuration_knows_the_same_choices():
    for field, value in (("loader", "ring"), ("cache", "gpu"), ("dali_device", "mixed")):
        assert getattr(load_config("cifar10", {f"data.{field}": value}).data, field) == value
        with pytest.raises(ValueError, match=f"data.{field}"):
            load_config("cifar10", {f"data.{field}": "other"})


KINDS = ["ring", "workers", "resident"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_every_loader_deals_the_same_global_batches(kind, world):
    dataset, plan = encoded(), Plan(13, 3, 8)
    truth = dataset.fetch(np.arange(13))
    loaders = [make_loader(dataset, plan, "cpu", r, world, 5, loader=kind) for r in range(world)]
    try:
        for step in range(5, 9):
            indices, flips = plan.batch(step)
            batches = [next(loader) for loader in loaders]
            images, flip = torch.empty(8, 16, 16, 3, dtype=torch.uint8), torch.empty(8).bool()
            for rank, batch in enumerate(batches):
                assert batch.step == step
                images[rank::world], flip[rank::world] = batch.images, batch.flip
            np.testing.assert_array_equal(images.numpy(), truth[indices])
            np.testing.assert_array_equal(flip.numpy(), flips)
    finally:
        for loader in loaders:
            loader.close()


@pytest.mark.parametrize("kind", KINDS)
def test_every_record_once_in_n_positions(kind):
    dataset = Pixels(np.arange(13, dtype=np.uint8).repeat(3).reshape(13, 1, 1, 3))
    with make_loader(dataset, Plan(13, 3, 4), loader=kind) as loader:
        seen = torch.cat([next(loader).images[:, 0, 0, 0] for _ in range(26)])
    for epoch in seen[: 13 * 8].reshape(8, 13):
        assert sorted(epoch.tolist()) == list(range(13))


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_record_is_named_by_every_loader(kind):
    dataset = encoded()
    dataset.records.files[7] = dataset.records.files[7][:60]
    plan = Plan(13, 0, 2)
    bad = next(step for step in range(20) if 7 in plan.batch(step)[0])
    with (
        make_loader(dataset, plan, loader=kind) as loader,
        pytest.raises(ValueError, match="image 007 cannot be used as an image"),
    ):
        for _ in range(bad + 1):
            next(loader)


def test_the_whole_set_reaches_the_device_piece_by_piece(monkeypatch):
    monkeypatch.setattr("ddgan_fast.data.resident._CHUNK", 4)
    # Not the images of other tests, which fresh memory may still hold.
    dataset = Encoded(Files([encode(p, "png") for p in pictures(13, 16, seed=5)]), 16)
    with make_loader(dataset, Plan(13, 0, 13), cache="gpu") as loader:
        batch = next(loader)
    order = Plan(13, 0, 13).batch(0)[0]
    np.testing.assert_array_equal(batch.images.numpy(), dataset.fetch(order))


def test_cache_gpu_does_not_fill_the_memory_of_the_host(tmp_path):
    for i, pixels in enumerate(pictures(5, 32)):
        (tmp_path / f"{i}.png").write_bytes(encode(pixels, "png"))
    options = {"data.source": "folder", "data.path": str(tmp_path), "data.cache": "gpu"}
    dataset = build_dataset(load_config("cifar10", options))
    assert dataset.array is None
    assert make_loader(dataset, Plan(5, 0, 2), cache="gpu").kind == "resident"
