"""What ranks exchange: gradients in two precisions, votes, and whether they were started alike."""

import os
from pathlib import Path

import pytest
import torch
from forked_ranks import ForkedRanks

from ddgan_fast.training.parallel import Ranks, choose_device, transport
from ddgan_fast.training.watchdog import Watchdog

CHECKS = Path(__file__).with_name("rank_checks.py")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Runs a check on two ranks; returns what each of them found."""
    folder = tmp_path_factory.mktemp("ranks")
    ranks = ForkedRanks(folder)

    def run(what):
        codes, output = ranks.run(2, CHECKS, what, folder / what)
        assert codes == [0, 0], output
        return [torch.load(folder / f"{what}.{rank}.pt") for rank in range(2)]

    yield run
    ranks.close()


def test_gradients_exchanged_in_bf16_are_the_mean_but_for_its_rounding(two_ranks):
    first, second = two_ranks("exchange")
    for dtype in (torch.float32, torch.float64):
        own = [rank[f"own {dtype}"] for rank in (first, second)]
        mean, size = sum(own) / 2, sum(g.abs() for g in own) / 2
        assert not torch.equal(*own)
        for reduction in ("fp32", "bf16"):
            name = f"{reduction} {dtype}"
            assert torch.equal(first[name], second[name]), "ranks must stay bit-identical"
            assert first[name].dtype == dtype
        torch.testing.assert_close(first[f"fp32 {dtype}"], mean)
        error = (first[f"bf16 {dtype}"] - mean).abs()
        # With 8 significant bits, rounding changes a number by up to 2^-8 of it: each rank's half,
        # and then their sum.
        unit = 2**-8
        assert (error <= (unit + unit * (1 + unit)) * size).all()
        assert error.max() > 2**-12 * size.max(), "nothing was rounded"


def test_vote_reaches_all_ranks_one_call_later(two_ranks):
    assert two_ranks("vote") == [[False, False, False, True, False]] * 2


def test_ranks_that_were_started_differently_are_told_apart(two_ranks):
    first, second = two_ranks("agree")
    assert first == second
    alike, seed, version = first
    assert alike == ""
    assert "rank 1 (" in seed and "has run.seed = 2, but rank 0 has 1" in seed
    assert "has torch = 2.1, but rank 0 has 2.0" in version


@pytest.mark.parametrize(
    ("device", "name", "local", "expected"),
    [
        ("cpu", None, "2", "gloo"),
        ("cuda:1", None, "2", "nccl"),
        ("cuda:1", "cuda", "2", "nccl"),
        ("cuda:0", "cuda:0", "1", "nccl"),  # one rank per machine
        ("cuda:0", "cuda:0", "2", "gloo"),  # two ranks on one GPU
    ],
)
def test_ranks_that_share_a_gpu_use_gloo(monkeypatch, device, name, local, expected):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    assert transport(torch.device(device), name) == expected


@pytest.mark.parametrize(
    ("name", "local", "chosen"),
    [(None, 1, "cuda:1"), ("cuda", 1, "cuda:1"), ("cuda:0", 1, "cuda:0"), ("cpu", 1, "cpu")],
)
def test_every_rank_has_a_gpu_of_its_own_unless_one_is_named(monkeypatch, name, local, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device(name, local) == torch.device(chosen)
    with pytest.raises(ValueError, match="device cuda:2 is asked for, but there are 2 GPUs: start"):
        choose_device(None, 2)


def test_nccl_is_told_with_what_was_set_for_it(monkeypatch):
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "nccl")
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 27, 3))
    for name in [name for name in os.environ if name.startswith(("NCCL_", "TORCH_NCCL_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    ranks = Ranks(0, 2, torch.device("cuda"), reduction="bf16", watchdog=Watchdog(timeout_s=90))
    assert ranks.describe() == (
        "Gradients are exchanged by NCCL 2.27.3 in bf16, time-out 90 s, NCCL_SOCKET_IFNAME=ib0."
    )
