"""``prepare`` stopped, killed and started again, whenever that happens."""

import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from prepare_cases import N, command, content, make, photo

from ddgan_fast.data import prepare as module
from ddgan_fast.data import prepare_finish, prepare_pool, prepare_shard
from ddgan_fast.data.shards import is_shards, open_shards
from ddgan_fast.data.shards_check import verify

SLOWLY = str(Path(__file__).with_name("prepare_slowly.py"))


def test_finished_set_is_left_alone(source, tmp_path, watch):
    make(source, tmp_path / "out")
    before = content(tmp_path / "out")
    records = watch(source)
    assert make(source, tmp_path / "out", workers=2).made == 0
    assert records.seen == [] and content(tmp_path / "out") == before


def test_only_missing_shards_are_made(source, tmp_path, watch):
    def stop(i):
        if i == 9:
            raise KeyboardInterrupt

    watch(source, stop)
    with pytest.raises(KeyboardInterrupt):
        make(source, tmp_path / "out")
    assert is_shards(tmp_path / "out")
    with pytest.raises(ValueError, match="is not finished: give the same"):
        open_shards(tmp_path / "out")
    (tmp_path / "out" / ".train-00002.tar.999.tmp").write_bytes(b"left by a killed process")
    records = watch(source)
    assert make(source, tmp_path / "out").made == 4
    assert records.seen == list(range(8, N))
    make(source, tmp_path / "whole")
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.parametrize("fault", ["no note", "half a note", "no shard", "short shard"])
def test_a_shard_counts_only_whole(source, tmp_path, watch, fault):
    (source / "b" / "01.jpg").write_bytes(b"no image")
    with pytest.raises(RuntimeError):
        make(source, tmp_path / "out")  # all shards are there, but a record was bad
    note = tmp_path / "out" / ".progress" / "train-00001.tar.npz"
    shard = tmp_path / "out" / "train-00001.tar"
    if fault.endswith("note"):
        note.write_bytes(note.read_bytes()[: note.stat().st_size // 2])
        if fault == "no note":
            note.unlink()
    else:
        os.truncate(shard, shard.stat().st_size - 1)
        if fault == "no shard":
            shard.unlink()
    records = watch(source)
    assert make(source, tmp_path / "out", max_bad=1).made == 1
    assert records.seen == [4, 5, 6, 7] and verify(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("place", "made"),
    [
        ((prepare_shard, "file_sha256"), 1),  # members are renamed, but nothing knows yet
        ((prepare_finish, "_save"), 0),
        ((prepare_finish, "dataset_digest"), 0),
        ((shutil, "rmtree"), 0),  # the manifest is there already
    ],
)
def test_killed_at_the_end(source, tmp_path, monkeypatch, place, made):
    (source / "a" / "04.jpg").write_bytes(b"no image")  # so that later shards are renumbered
    make(source, tmp_path / "whole", max_bad=1)

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*place, stop)
        with pytest.raises(KeyboardInterrupt):
            make(source, tmp_path / "out", max_bad=1)
    assert make(source, tmp_path / "out", max_bad=1).made == made
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.parametrize("encoded", [False, True])
def test_lost_shards_of_a_finished_set_are_made_again(source, tmp_path, encoded):
    (source / "a" / "04.jpg").write_bytes(b"no image")  # so that later shards are renumbered
    make(source, tmp_path / "out", max_bad=1, encoded=encoded)
    before = content(tmp_path / "out")
    (tmp_path / "out" / "train-00003.tar").unlink()
    os.truncate(tmp_path / "out" / "train-00004.tar", 600)
    (tmp_path / "out" / "train-00001.crc").unlink()
    assert make(source, tmp_path / "out", encoded=encoded).made == 3
    assert content(tmp_path / "out") == before


def test_a_lost_shard_that_comes_out_otherwise_is_refused(source, tmp_path):
    Image.fromarray(photo(0, 12, 10)).save(source / "a" / "00.png", compress_level=0)
    make(source, tmp_path / "out")
    (tmp_path / "out" / "train-00000.tar").unlink()
    # As many bytes, other pixels: the fingerprint cannot see it.
    Image.fromarray(photo(9, 12, 10)).save(source / "a" / "00.png", compress_level=0)
    with pytest.raises(RuntimeError, match="would not be what it was: the source, or the library"):
        make(source, tmp_path / "out")
    assert not (tmp_path / "out" / "train-00000.tar").exists()


def processes_below(pid):
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [int(child) for child in found]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A source that takes a while, its set's digest, and how long it took to make."""
    folder = tmp_path_factory.mktemp("many")
    for i in range(120):
        Image.fromarray(photo(i, 160, 160)).save(folder / f"{i:03}.png", compress_level=1)
    out = tmp_path_factory.mktemp("digest") / "out"
    digest = make(folder, out, resolution=128, shard_images=8).manifest.digest
    return folder, digest


def start(source, out, how=("-m", "ddgan_fast")):
    words = command(source, out, resolution=128, shard_images=8)
    return subprocess.Popen(
        [sys.executable, *how, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Else it would ignore Ctrl-C when these tests run in the background.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def killed_and_finished(many, out, moments):
    source, digest = many
    for shards in moments:
        process = start(source, out)
        # When so many shards are there, and a little later: anywhere in the work on the next.
        wait_until(
            lambda: module.progress_of(out) >= shards or process.poll() is not None  # noqa: B023
        )
        time.sleep(random.random() * 0.05)
        children = processes_below(process.pid)
        process.kill()
        process.communicate()
        wait_until(lambda: not any(map(alive, children)))  # noqa: B023
    outcome = make(source, out, resolution=128, shard_images=8)
    assert outcome.manifest.digest == digest and verify(out) == []
    names = {f.name for f in out.iterdir()}
    expected = {"manifest.json", "rejects.jsonl"}
    expected |= {f"train-{k:05}.{kind}" for k in range(15) for kind in ("tar", "crc")}
    assert names == expected


def test_two_kills(many, tmp_path):
    killed_and_finished(many, tmp_path / "out", [0, 5])


@pytest.mark.slow
def test_ten_kills(many, tmp_path):
    killed_and_finished(many, tmp_path / "out", [0, 0, 1, 3, 4, 6, 8, 10, 12, 14])


@pytest.mark.parametrize("moment", ["starting", "at work"])
def test_interrupt_says_how_to_go_on(many, tmp_path, moment):
    source, digest = many
    process = start(source, tmp_path / "out", [SLOWLY])
    begun = tmp_path / "out" / ".progress" / "job.json"
    wait_until(
        begun.exists if moment == "starting" else lambda: module.progress_of(tmp_path / "out")
    )
    if moment == "starting":
        wait_until(lambda: len(processes_below(process.pid)) == 3)
    children = processes_below(process.pid)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "shards are complete. The same command goes on." in error
    assert "Traceback" not in error
    wait_until(lambda: not any(map(alive, children)))
    assert not list((tmp_path / "out").glob(".*.tmp"))
    if moment == "at work":
        assert module.progress_of(tmp_path / "out") == 1, "shards in hand are left, not finished"
    again = make(source, tmp_path / "out", resolution=128, shard_images=8)
    assert again.manifest.digest == digest and again.made <= 15 - (moment == "at work")


def test_a_dead_worker_is_one_sentence(source, tmp_path, monkeypatch):
    class Broken:
        def result(self):
            raise prepare_pool.BrokenProcessPool

    with pytest.raises(RuntimeError, match=r"was killed.*fewer --workers"):
        prepare_pool._result(Broken())


def test_one_process_at_a_time(source, tmp_path):
    (tmp_path / "out" / ".progress").mkdir(parents=True)
    with open(tmp_path / "out" / ".progress" / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RuntimeError, match="another process is preparing"):
            make(source, tmp_path / "out")
    make(source, tmp_path / "out")
