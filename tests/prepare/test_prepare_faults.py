"""``prepare`` with bad records and full disks, and what the command prints."""

import errno
import io
import json
import os
import re
import shutil
import sys
import time

import pytest
from PIL import Image
from prepare_cases import N, Watched, command, make

from ddgan_fast.cli import main
from ddgan_fast.data import prepare as module
from ddgan_fast.data import prepare_finish, prepare_progress, prepare_shard
from ddgan_fast.data.prepare_source import open_source
from ddgan_fast.data.shards import open_shards
from ddgan_fast.data.shards_check import verify

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


def test_labels_are_those_of_the_kept(source, tmp_path):
    (source / "a" / "20.webp").write_bytes(b"")  # record 10; 10 to 14 are a shard: a, a, b, b, b
    make(source, tmp_path / "out", max_bad=1, shard_images=5)
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

    def no_room(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(prepare_finish, "_save", no_room)
        with pytest.raises(OSError, match=r"out cannot be written \(No space left on device\)"):
            make(source, tmp_path / "out")
    assert make(source, tmp_path / "out").made == 0


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
    (out / "contact-sheet.png").unlink()
    (out / "contact-sheet.png").mkdir()  # as good as a folder that nothing can be written into
    before = sorted(out.iterdir())
    assert main(["prepare", "--info", str(out)]) == 0
    text = capsys.readouterr().out
    assert "23 of 8x8x3, pixels" in text and text.endswith("No contact sheet: Is a directory.\n")
    assert sorted(out.iterdir()) == before
    (out / "contact-sheet.png").rmdir()
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


def test_a_source_without_records_makes_nothing(source, tmp_path, monkeypatch):
    class Empty(Watched):
        def __len__(self):
            return 0

    records = Empty(open_source(source, "auto", "train", None, 8))
    monkeypatch.setattr(module, "open_source", lambda *args: records)
    with pytest.raises(ValueError, match=f"{source} holds no images: check the path"):
        make(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
