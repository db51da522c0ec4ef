"""``prepare``: the same set from every way of making it, whatever happens on the way."""

import errno
import fcntl
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddgan_fast.cli import main
from ddgan_fast.data import prepare as module
from ddgan_fast.data import prepare_finish, prepare_pool, prepare_progress, prepare_shard
from ddgan_fast.data.images import decode_image
from ddgan_fast.data.plan import Plan
from ddgan_fast.data.prepare import prepare
from ddgan_fast.data.prepare_request import Request
from ddgan_fast.data.prepare_source import open_source
from ddgan_fast.data.records import Records
from ddgan_fast.data.shards import is_shards, open_shards
from ddgan_fast.data.shards_check import verify
from ddgan_fast.data.shards_format import dataset_digest
from ddgan_fast.data.torch_loader import Loader

N = 23


def photo(i, height=12, width=10):
    return np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)


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


def make(source, out, **options):
    defaults = {"resolution": 8, "shard_images": 4, "workers": 1}
    return prepare(Request(str(source), str(out), **{**defaults, **options}))


def content(folder):
    """Every file below a folder."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def command(source, out, *options, resolution=8, shard_images=4):
    words = ["prepare", str(source), str(out), "--resolution", str(resolution)]
    return [*words, "--shard-images", str(shard_images), "--workers", "2", *options]


class Watched(Records):
    """Other records; counts what is read, and does something before."""

    def __init__(self, inner, hook=lambda i: None):
        self.inner, self.hook, self.seen = inner, hook, []
        self.kind, self.path, self.fingerprint = inner.kind, inner.path, inner.fingerprint
        self.labels, self.class_names, self.flips = inner.labels, inner.class_names, inner.flips

    def __len__(self):
        return len(self.inner)

    def name(self, i):
        return self.inner.name(i)

    def read(self, i):
        self.seen.append(i)
        self.hook(i)
        return self.inner.read(i)


@pytest.fixture
def watch(monkeypatch):
    """Makes prepare() read through a Watched, which is returned."""

    def start(source, hook=lambda i: None):
        records = Watched(open_source(source, "auto", "train", None, 8), hook)
        monkeypatch.setattr(module, "open_source", lambda *args: records)
        return records

    return start


# What comes out


def test_images_labels_and_classes(source, tmp_path):
    outcome = make(source, tmp_path / "out")
    shards = open_shards(tmp_path / "out")
    assert outcome.made == 6 and len(shards) == N and shards.shape == (8, 8, 3)
    assert shards.class_names == ("a", "b") and shards.labels.tolist() == [0] * 12 + [1] * 11
    files = sorted(source.rglob("*.*"))
    expected = np.stack([decode_image(f.read_bytes(), "x", 8, 3) for f in files])
    np.testing.assert_array_equal(shards.fetch(np.arange(N)), expected)
    hashes = np.stack([np.frombuffer(hashlib.sha256(x.tobytes()).digest(), "u1") for x in expected])
    assert shards.digest == dataset_digest((8, 8, 3), N, [hashes], shards.labels)
    assert shards.digest != dataset_digest((8, 8, 3), N, [hashes], None)
    assert not (tmp_path / "out" / ".progress").exists()


@pytest.mark.parametrize("options", [{"shard_images": 7}, {"shard_images": 999}, {"encoded": True}])
def test_digest_does_not_depend_on_how(source, tmp_path, options):
    one = make(source, tmp_path / "one").manifest
    other = make(source, tmp_path / "other", **options).manifest
    assert other.digest == one.digest


def test_two_processes_make_the_same_bytes(source, tmp_path):
    (source / "a" / "04.jpg").write_bytes(b"no image")
    make(source, tmp_path / "one", max_bad=1)
    make(source, tmp_path / "two", max_bad=1, workers=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_digest_sees_pixels_labels_and_channels(source, tmp_path):
    seen = {make(source, tmp_path / "0").manifest.digest}
    seen.add(make(source, tmp_path / "1", channels=1).manifest.digest)
    seen.add(make(source, tmp_path / "2", filter="lanczos").manifest.digest)
    seen.add(make(source, tmp_path / "3", limit=22).manifest.digest)
    (source / "a").rename(source / "c")  # the same images, of another class, in another order
    seen.add(make(source, tmp_path / "4").manifest.digest)
    assert len(seen) == 5


@pytest.mark.parametrize("name", ["bilinear", "bicubic", "lanczos", "box"])
def test_filters(tmp_path, name):
    (tmp_path / "in").mkdir()
    pixels = photo(1, 40, 40)
    Image.fromarray(pixels).save(tmp_path / "in" / "x.png")
    make(tmp_path / "in", tmp_path / "out", filter=name)
    resized = Image.fromarray(pixels).resize((8, 8), Image.Resampling[name.upper()])
    np.testing.assert_array_equal(open_shards(tmp_path / "out").fetch([0])[0], np.asarray(resized))


def test_crop_none_rejects_what_is_not_square(source, tmp_path):
    Image.fromarray(photo(99, 10, 10)).save(source / "a" / "00.png")
    make(source, tmp_path / "out", crop="none", max_bad=N, shard_images=N)
    assert len(open_shards(tmp_path / "out")) == 1
    assert "10x13, not square" in (tmp_path / "out" / "rejects.jsonl").read_text()


def test_duplicates_are_kept(tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(6):
        Image.fromarray(photo(1 if i % 2 else i)).save(tmp_path / "in" / f"{i}.png")
    manifest = make(tmp_path / "in", tmp_path / "out").manifest
    images = open_shards(tmp_path / "out").fetch(np.arange(6))
    assert (images[1::2] == images[1]).all() and manifest.duplicates == 2


def test_fewer_images_than_a_batch_train(source, tmp_path):
    make(source, tmp_path / "out", limit=3)
    shards = open_shards(tmp_path / "out")
    with Loader(shards, Plan(3, 0, 16)) as loader:
        assert next(loader).images.shape == (16, 8, 8, 3)


def test_shards_are_a_source_too(source, tmp_path):
    make(source, tmp_path / "big", resolution=16)
    make(tmp_path / "big", tmp_path / "small")
    make(tmp_path / "small", tmp_path / "again", shard_images=9)
    small, again = open_shards(tmp_path / "small"), open_shards(tmp_path / "again")
    assert small.digest == again.digest and again.class_names == ("a", "b")
    assert again.manifest.source["fingerprint"] == small.digest


def test_source_stays_as_it_is(source, tmp_path):
    before = content(source), sorted(p.stat().st_mtime_ns for p in source.rglob("*"))
    make(source, tmp_path / "out")
    assert before == (content(source), sorted(p.stat().st_mtime_ns for p in source.rglob("*")))


# Stopping and going on


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


def start(source, out):
    words = command(source, out, resolution=128, shard_images=8)
    return subprocess.Popen(
        [sys.executable, "-m", "ddgan_fast", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
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


def test_interrupt_says_how_to_go_on(many, tmp_path):
    source, digest = many
    process = start(source, tmp_path / "out")
    wait_until(lambda: module.progress_of(tmp_path / "out") > 0 or process.poll() is not None)
    children = processes_below(process.pid)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "shards are complete. The same command goes on." in error
    assert "Traceback" not in error
    wait_until(lambda: not any(map(alive, children)))
    assert not list((tmp_path / "out").glob(".*.tmp"))
    again = make(source, tmp_path / "out", resolution=128, shard_images=8)
    assert again.manifest.digest == digest and again.made < 15


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


# Bad records


BAD = {
    "zero byte": lambda data: b"",
    "web page": lambda data: b"<html>404</html>",
    "cut": lambda data: data[: len(data) // 2],
    "no end": lambda data: data[:-30],
    "flipped": lambda data: data[:60] + bytes([data[60] ^ 255]) + data[61:],
}


@pytest.mark.parametrize(("kind", "workers"), [*((kind, 1) for kind in BAD), ("cut", 2)])
def test_bad_records_are_listed_and_leave_no_hole(source, tmp_path, kind, workers):
    bad = source / "a" / "06.png"
    bad.write_bytes(BAD[kind](bad.read_bytes()))
    with pytest.raises(RuntimeError, match=r"1 records are unusable, more than --max-bad 0 allows"):
        make(source, tmp_path / "out", workers=workers)
    (reject,) = map(json.loads, (tmp_path / "out" / "rejects.jsonl").read_text().splitlines())
    assert reject["record"] == 3 and reject["name"] == str(bad)
    assert str(bad) in reject["reason"] and "cannot be used as an image (" in reject["reason"]
    assert not (tmp_path / "out" / "manifest.json").exists()
    outcome = make(source, tmp_path / "out", max_bad=1, workers=workers)
    assert outcome.made == 0 and outcome.manifest.rejects == 1 and outcome.manifest.n == N - 1
    assert verify(tmp_path / "out") == []
    bad.unlink()
    clean = make(source, tmp_path / "clean").manifest
    assert outcome.manifest.digest == clean.digest
    assert open_shards(tmp_path / "out").labels.tolist() == [0] * 11 + [1] * 11


def test_unreadable_records_are_rejected(source, tmp_path, watch):
    def fail(i):
        if i in (2, 5):
            raise OSError(f"record {i}: Input/output error")

    watch(source, fail)
    assert make(source, tmp_path / "out", max_bad=2).manifest.n == N - 2
    assert "record 5: Input/output error" in (tmp_path / "out" / "rejects.jsonl").read_text()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_shard_of_rejects_only_is_a_failure(source, tmp_path, workers):
    for name in sorted(source.rglob("*.*"))[4:8]:
        name.write_bytes(b"")
    with pytest.raises(
        RuntimeError, match=r"Every record from 4 to 7 is unusable.*the first: .*08"
    ):
        make(source, tmp_path / "out", max_bad=100, workers=workers)
    assert not list((tmp_path / "out").glob(".*.tmp"))


def test_a_larger_max_bad_must_be_large_enough(source, tmp_path):
    for name in ("a/00.png", "b/05.webp", "b/07.jpg"):
        (source / name).write_bytes(b"")
    with pytest.raises(RuntimeError, match="3 records are unusable, more than --max-bad 2"):
        make(source, tmp_path / "out", max_bad=2)
    assert make(source, tmp_path / "out", max_bad=3).made == 0


# What is refused


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"filter": "box"}, r"--filter was bilinear, now box"),
        ({"resolution": 9}, r"--resolution was 8, now 9"),
        ({"channels": 1}, r"--channels was 3, now 1"),
        ({"crop": "none"}, r"--crop was center, now none"),
        ({"encoded": True}, r"--encoded was False, now True"),
        ({"shard_images": 5}, r"--shard-images was 4, now 5"),
        ({"limit": 9}, r"the number of records \(--limit\) was 23, now 9"),
    ],
)
@pytest.mark.parametrize("complete", [True, False])
def test_another_request_in_the_same_folder(source, tmp_path, change, words, complete):
    if not complete:
        (source / "a" / "00.png").write_bytes(b"")
    try:
        make(source, tmp_path / "out")
    except RuntimeError:
        assert not complete
    before = content(tmp_path / "out")
    with pytest.raises(ValueError, match=rf"begun otherwise \({words}\): choose another folder"):
        make(source, tmp_path / "out", **change)
    assert content(tmp_path / "out") == before


def test_another_source_in_the_same_folder(source, tmp_path):
    make(source, tmp_path / "out")
    (source / "a" / "00.png").write_bytes((source / "a" / "00.png").read_bytes() + b"\0")
    with pytest.raises(ValueError, match="the source was source with other content"):
        make(source, tmp_path / "out")


def test_moved_source_is_the_same_source(source, tmp_path):
    make(source, tmp_path / "out")
    source.rename(tmp_path / "elsewhere")
    assert make(tmp_path / "elsewhere", tmp_path / "out").made == 0


def test_places(source, tmp_path):
    for inside in (source, source / "a", source / "new" / "folder"):
        with pytest.raises(ValueError, match="lies inside the source"):
            make(source, inside)
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(ValueError, match="lies inside the source"):
        make(source, tmp_path / "link" / "out")
    with pytest.raises(ValueError, match="is not empty and holds no shards"):
        make(source, tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file: give a folder"):
        make(source, tmp_path / "file")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        make(tmp_path / "nothing", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError):
        make(tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (source / "new").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resolution": 0}, "--resolution is 0: it must be at least 1"),
        ({"limit": 0}, "--limit is 0"),
        ({"shard_images": 0}, "--shard-images is 0"),
        ({"workers": 0}, "--workers is 0"),
        ({"max_bad": -1}, "--max-bad is -1"),
        ({"channels": 2}, "--channels is 2: allowed are 1, 3, 4"),
        ({"filter": "nearest"}, "--filter is nearest: allowed are bilinear, bicubic, lanczos, box"),
        ({"crop": "left"}, "--crop is left: allowed are center, none"),
    ],
)
def test_bad_values(source, tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        make(source, tmp_path / "out", **options)


# The disk


@pytest.mark.parametrize("encoded", [False, True])
def test_too_small_a_disk_is_seen_first(source, tmp_path, monkeypatch, encoded):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match=r"needs about 0\.02 GB more, but 0\.00 GB are free"):
        make(source, tmp_path / "out" / "deep", encoded=encoded)
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fills_up_meanwhile(source, tmp_path, monkeypatch):
    write, written = prepare_shard._write, []

    def fill_up(work, task, tick, file):
        if task.number == 2:
            file.write(b"half a shard")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(task.number)
        return write(work, task, tick, file)

    monkeypatch.setattr(prepare_shard, "_write", fill_up)
    with pytest.raises(OSError, match=r"train-00002\.tar cannot be written \(No space left on"):
        make(source, tmp_path / "out")
    assert sorted(f.name for f in (tmp_path / "out").iterdir() if f.is_file()) == [
        "train-00000.tar",
        "train-00001.tar",
    ]
    monkeypatch.setattr(prepare_shard, "_write", write)
    assert make(source, tmp_path / "out").made == 4


# The command


def test_progress_in_lines(monkeypatch, capsys):
    monkeypatch.setattr(prepare_progress, "_LINE_EVERY_S", 0)
    with prepare_progress.Meter(4000, 1000) as meter:
        meter.advance(0)
        time.sleep(0.01)
        meter.advance(1500)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "preparing: 1,000 of 4,000 images, ? img/s, ? left"
    assert re.fullmatch(r"preparing: 2,500 of 4,000 images, [\d,]+ img/s, 0:00:\d\d left", second)


def test_progress_in_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with prepare_progress.Meter(4000, verb="verifying") as meter:
        meter.advance(2500)
        meter._bar.refresh()
    shown = sys.stderr.getvalue()
    assert "verifying" in shown and "2500/4000" in shown and " img/s, 0:00:0" in shown


def test_command(source, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(command(source, out)) == 0
    first = capsys.readouterr().out
    assert f"23 images 8x8x3 are in {out}: 6 shards" in first and f"--data {out}" in first
    assert main(command(source, out)) == 0
    assert "are already in" in capsys.readouterr().out
    assert main(["prepare", "--verify", str(out)]) == 0
    assert "is sound: 6 shards, 23 images." in capsys.readouterr().out
    assert main(["prepare", "--info", str(out)]) == 0
    text = capsys.readouterr().out
    for words in ("23 of 8x8x3, pixels", "2 (11 to 12 images each): a, b", "folder source"):
        assert words in text
    with Image.open(out / "contact-sheet.png") as sheet:
        assert sheet.size == (5 * 49 + 1, 5 * 49 + 1)
    assert main(["prepare", "--verify", str(out)]) == 0


def test_command_fails_with_one_sentence(source, tmp_path, capsys):
    out = tmp_path / "out"
    (source / "a" / "00.png").write_bytes(b"")
    assert main(command(source, out)) == 1
    assert main(command(source, out, "--max-bad", "1")) == 0
    assert "1 records left out" in capsys.readouterr().out
    with open(out / "train-00002.tar", "r+b") as file:
        file.seek(700)
        file.write(b"\1\2\3")
    assert main(["prepare", "--verify", str(out)]) == 1
    found = capsys.readouterr()
    assert "train-00002.tar, image 000000007 is damaged" in found.out and "1 faults" in found.err
    for words in (["prepare"], ["prepare", "x"], ["prepare", "x", "y", "--info", "z"]):
        assert main(words) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert main(["prepare", "--info", str(source)]) == 2
    assert "holds no manifest.json" in capsys.readouterr().err
