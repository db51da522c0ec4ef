"""The loader in a run: its waiting is told, its errors end every rank, bytes reach the kernel."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest
import torch
from loader_sets import encode, pictures
from tiny_runs import final_state, tensors_of, tiny

from ddgan_fast import diffusion
from ddgan_fast.config import save_yaml
from ddgan_fast.data import sources
from ddgan_fast.data.loading import make_loader
from ddgan_fast.data.plan import Plan
from ddgan_fast.training import feed, trainer


@pytest.mark.parametrize("loader", ["ring", "workers"])
def test_waiting_for_slow_data_is_told(tmp_path, monkeypatch, loader):
    fetch = sources.Synthetic.fetch

    def slow(self, indices):
        time.sleep(0.5)
        return fetch(self, indices)

    monkeypatch.setattr(sources.Synthetic, "fetch", slow)
    options = {"run__steps": 2, "run__tick": 1, "run__checkpoint_every": 2, "data__loader": loader}
    trainer.train(tiny(tmp_path, **options), device="cpu", quiet=True)
    lines = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    shares = [line["wait_share"] for line in lines if "wait_share" in line]
    assert len(shares) == 2 and all(0 < share < 1 for share in shares)
    assert shares[0] > 0.05


@pytest.mark.parametrize(("asked", "given"), [(60.0, 600.0), (900.0, 900.0)])
def test_slow_storage_gets_the_time_that_was_asked_for(tmp_path, monkeypatch, asked, given):
    limits = []

    def watched(*arguments, timeout, **options):
        limits.append(timeout)
        return make_loader(*arguments, timeout=timeout, **options)

    monkeypatch.setattr(feed, "make_loader", watched)
    trainer.train(tiny(tmp_path, run__steps=1, run__timeout_s=asked), device="cpu", quiet=True)
    assert limits == [given]


def test_every_loader_trains_the_same(tmp_path, capsys):
    weights = {}
    for loader in ("ring", "workers", "resident"):
        cfg = tiny(tmp_path / loader, run__steps=2, data__loader=loader)
        trainer.train(cfg, device="cpu")
        weights[loader] = tensors_of(final_state(tmp_path / loader))
        words = {"ring": "one thread", "workers": "1 thread decodes", "resident": "whole set"}
        assert f"Loader: {words[loader]}" in capsys.readouterr().out.replace("the whole", "whole")
    for name, value in weights["ring"].items():
        assert all(torch.equal(value, other[name]) for other in weights.values()), name


def test_a_bad_record_ends_every_rank_with_a_sentence(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i, pixels in enumerate(pictures(24, 8)):
        (folder / f"{i:02}.png").write_bytes(encode(pixels, "png"))
    # The second rank meets it in its third step.
    bad = int(Plan(24, 1024, 8).batch(2, 1, 2)[0][0])
    (folder / f"{bad:02}.png").write_bytes(b"damaged")
    options = {"data__source": "folder", "data__path": str(folder), "data__limit": None}
    options |= {"data__cache": "none", "data__loader": "workers", "run__seed": 1024}
    cfg = tiny(tmp_path / "run", **options, run__steps=1000, run__checkpoint_every=1000)
    save_yaml(cfg, tmp_path / "cfg.yaml")
    # Not under the launcher: it would end the other rank before that has noticed by itself.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "ddgan_fast", "train", str(tmp_path / "cfg.yaml")]
    together = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [*command, "--device", "cpu"],
            env=os.environ | together | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        other, failing = (process.communicate(timeout=120)[1] for process in processes)
    finally:
        for process in processes:
            process.kill()
    assert f"ddgan-fast: [rank 1] {folder}/{bad:02}.png cannot be used as an image" in failing
    assert "ddgan-fast: a message to the other ranks failed: rank 1" in other
    assert "Traceback" not in other + failing
    assert [process.returncode for process in processes] == [1, 2]
    assert not list((tmp_path / "run").glob("state-*"))


def test_bytes_and_flips_reach_the_forward_diffusion(tmp_path, monkeypatch):
    seen = []
    q_sample_pair = diffusion.q_sample_pair

    def watched(x0, *arguments, flip=None, **options):
        seen.append((x0.dtype, tuple(x0.shape), None if flip is None else flip.dtype))
        return q_sample_pair(x0, *arguments, flip=flip, **options)

    monkeypatch.setattr(diffusion, "q_sample_pair", watched)
    trainer.train(tiny(tmp_path, run__steps=1), device="cpu", quiet=True)
    assert set(seen) == {(torch.uint8, (8, 8, 8, 3), torch.bool)}
