"""Ranks meet although the store remembers those of an earlier attempt."""

import socket
import threading

import pytest
import torch.distributed as dist

from ddgan_fast.training.rendezvous import connect, meet


def meet_all(store, world, timeout_s=30.0):
    names = {}

    def one(rank):
        try:
            names[rank] = meet(store, rank, world, timeout_s)
        except RuntimeError as error:
            names[rank] = str(error)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(world)]
    for thread in reversed(threads):
        thread.start()
    for thread in threads:
        thread.join()
    return names


def test_every_attempt_has_a_corner_of_its_own():
    store = dist.HashStore()
    attempts = [meet_all(store, world) for world in (3, 3, 2)]
    for names in attempts:
        assert len(set(names.values())) == 1
    assert len({names[0] for names in attempts}) == 3


def test_rank_that_does_not_come_is_named_though_it_came_before():
    store = dist.HashStore()
    meet_all(store, 3)
    came = {}
    thread = threading.Thread(target=lambda: came.update(one=meet(store, 1, 3, 30.0)))
    thread.start()
    with pytest.raises(RuntimeError, match=r"1 of 3 ranks did not come .*, rank 2 among them"):
        meet(store, 0, 3, 1.0)
    thread.join()
    assert "one" in came


def test_first_rank_that_is_not_there():
    with pytest.raises(RuntimeError, match=r"rank 0 did not answer rank 1 within 0\.3 s"):
        meet(dist.HashStore(), 1, 2, 0.3)


def test_a_store_that_is_not_there_is_one_sentence(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    with pytest.raises(RuntimeError) as caught:
        connect(0.3)
    said = str(caught.value)
    assert f"store at 127.0.0.1:{port} does not answer within 0.3 s (run.timeout_s): " in said
    assert "\n" not in said
