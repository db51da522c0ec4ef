"""Who is missing, and when a rank gives up waiting."""

import os
import threading
import time

import pytest
import torch.distributed as dist

from ddgan_fast.training import watchdog
from ddgan_fast.training.watchdog import Entry, Watchdog, missing_rank


def entry(rank, phase="D step", step=7, seconds=100.0, silent=0.0):
    return Entry(rank, f"host{rank}", phase, step, seconds, silent=silent)


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ([None, entry(2)], "rank 1 has never been heard of"),
        ([entry(1), entry(2, "ended", 6)], "rank 2 (host2) has ended at step 6"),
        (
            [entry(1, silent=9.0), entry(2, "data wait", 6)],
            'rank 1 (host1) has given no sign of life for 9 s and was last in phase "D step" at',
        ),
        ([entry(1, silent=9.0), entry(2, silent=8.0)], "(and 1 more ranks)"),
        ([entry(1), entry(2, step=1_234)], "the other ranks wait for this one"),
        (
            [entry(1, step=6), entry(2, "data wait", 7)],
            'furthest behind, rank 1 (host1) has been in phase "D step" at step 6 for 100 s',
        ),
        ([entry(1), entry(2, "data wait", seconds=1.0)], "furthest behind, rank 2 (host2)"),
        ([entry(1, "G step"), entry(2, "saving")], "furthest behind, rank 2 (host2)"),
        ([entry(1), entry(2)], "all ranks are in this phase of step 7 and wait for one another"),
        ([], "nothing is known"),
    ],
)
def test_missing_rank_is_the_one_that_the_others_wait_for(others, words):
    # A rank that is alone behind the others is found first.
    own = entry(0, step=6 if "this one" in words else 7)
    said = missing_rank(own, dict(enumerate(others, 1)))
    assert words in said


@pytest.fixture
def ended(monkeypatch):
    """What watchdogs said when they ended the process, instead of ending it."""
    said = []

    def end(self, why):
        said.append(why)
        self._closing.set()

    monkeypatch.setattr(Watchdog, "_end", end)
    return said


@pytest.fixture
def two(ended):
    """Two ranks' watchdogs, whose time-out is 0.5 s, on one store."""
    store = dist.HashStore()
    pair = [Watchdog(rank, 2, 0.5, store) for rank in range(2)]
    yield pair
    for one in pair:
        one.stop()


def wait_until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_silent_rank_is_named(two, ended):
    two[0].start()
    two[1].enter("G step", 5)
    two[1]._publish(two[1]._store)  # the last that is heard of it
    two[0].enter("D step", 6)
    wait_until(lambda: ended)
    assert 'time-out: this rank has been in phase "D step" at step 6 for' in ended[0]
    assert "rank 1 (" in ended[0] and "no sign of life" in ended[0]
    assert 'was last in phase "G step" at step 5' in ended[0]


def test_rank_that_never_came_is_named(two, ended):
    two[0].start()
    two[0].enter("data", 0)
    wait_until(lambda: ended)
    assert "rank 1 has never been heard of" in ended[0]


def test_alone_nobody_is_known_by_name():
    assert Watchdog().who_is_missing() == "another rank has ended"


def test_rank_that_compiles_is_waited_for_until_it_hangs(two, ended):
    for one in two:
        one._silent_s = 30.0  # a busy machine may hold a thread up
        one.start()
    two[0].enter("D step", 0)
    two[1].enter("compiling", 0)
    wait_until(lambda: two[0]._seconds > 1.5)
    assert not ended, "three time-outs have passed, but compiling may take six"
    two[1].enter("data wait", 0)
    wait_until(lambda: ended)
    assert "rank 1 (" in ended[0] or "this one" in ended[0]


def test_compiling_does_not_take_for_ever(two, ended):
    two[0].start()
    two[1].start()
    for one in two:
        one.enter("compiling", 0)
    wait_until(lambda: ended)
    assert all(one._seconds > 2.5 for one in two)


def test_progress_keeps_a_rank_alive(two, ended):
    for one in two:
        one.start()
    for step in range(8):
        for one in two:
            one.enter("D step", step)
        time.sleep(0.15)
    assert not ended


def test_time_in_which_the_process_was_stopped_does_not_count(two, ended, monkeypatch):
    clock = time.monotonic
    hours = iter([1, 2, 3])
    late = 0.0

    def jumping():
        nonlocal late
        if threading.current_thread().name == "ddgan-watchdog":
            late += 3600 * bool(next(hours, None))
        return clock() + late

    two[1].start()
    monkeypatch.setattr(watchdog.time, "monotonic", jumping)
    two[0].start()
    two[0].enter("D step", 1)
    wait_until(lambda: next(hours, None) is None and two[0]._seconds > 0)
    assert not ended


def test_store_that_does_not_answer(ended):
    class Dead:
        def set(self, key, value):
            if threading.current_thread() is not threading.main_thread():
                raise RuntimeError("connection reset")

    one = Watchdog(0, 2, 0.5, Dead())
    one.start()
    one.enter("D step", 3)
    wait_until(lambda: ended)
    one.stop()
    assert "the rendezvous store does not answer" in ended[0] and "connection reset" in ended[0]


def test_orphan_stops_and_does_not_hang(ended, monkeypatch, capsys):
    signals = []
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setattr(watchdog, "ORPHAN_GRACE_S", 0.3)
    monkeypatch.setattr(watchdog.os, "kill", lambda *call: signals.append(call))
    one = Watchdog(timeout_s=0.5)
    one.start()
    time.sleep(0.2)
    assert not signals
    monkeypatch.setattr(watchdog.os, "getppid", lambda: 1)
    wait_until(lambda: ended)
    one.stop()
    assert signals == [(os.getpid(), watchdog.signal.SIGTERM)]
    assert "torchrun is gone, so this rank saves and stops" in capsys.readouterr().err


def test_alone_without_torchrun_there_is_nothing_to_watch(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    one = Watchdog()
    one.start()
    assert not one._threads
