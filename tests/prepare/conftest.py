"""Sources and sets for the tests of ``prepare`` and of its shards."""

import os

import pytest
from PIL import Image
from prepare_cases import SHARD_N, N, Watched, make_set, photo, pixels

from ddgan_fast.data import prepare as module
from ddgan_fast.data.prepare_source import open_source


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch):
    """Waiting for the disk is most of the time of so small sets."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def source(tmp_path):
    """23 images of two classes, mixed sizes and kinds."""
    folder = tmp_path / "source"
    for i in range(N):
        (folder / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        suffix = ("png", "jpg", "webp")[i % 3]
        Image.fromarray(photo(i, 12 + i % 5, 10)).save(folder / "ab"[i % 2] / f"{i:02}.{suffix}")
    return folder


@pytest.fixture
def watch(monkeypatch):
    """Makes prepare() read through a Watched, which is returned."""

    def start(source, hook=None):
        records = Watched(open_source(source, "auto", "train", None, 8), hook)
        monkeypatch.setattr(module, "open_source", lambda *args: records)
        return records

    return start


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """11 images 8x8 without loss, in two classes: sorted, their pixels are pixels(0), ..."""
    folder = tmp_path_factory.mktemp("images")
    for i in range(SHARD_N):
        (folder / f"class{i // 6}").mkdir(exist_ok=True)
        Image.fromarray(pixels(i)).save(folder / f"class{i // 6}" / f"{i:02}.png")
    return folder


@pytest.fixture
def out(images, tmp_path):
    """Those images as a set of three shards."""
    return make_set(images, tmp_path / "out")
