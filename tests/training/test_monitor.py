"""Statistics stay on the device until read; the log survives kills; the console suits its place."""

import errno
import io
import json
import math
import os
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from ddgan_fast.training import sinks
from ddgan_fast.training.monitor import DeviceStats, Monitor

TICK = {"seconds": 2.0, "wait_seconds": 0.5, "lr": {"G": 1e-4, "D": 2e-4}}


def quiet(run_dir, start_step=0, **options):
    options = {"tensorboard": False, "console": False, **options}
    return Monitor(run_dir, 1000, start_step, batch_size=32, **options)


def records(run_dir):
    return [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]


def test_means_weights_and_reset():
    stats = DeviceStats("cpu")
    for value in (1.0, 2.0, 6.0):
        stats.add("a", torch.tensor(value))
    stats.add("b", torch.tensor(1.0), weight=torch.tensor(3.0))
    stats.add("b", torch.tensor(5.0), weight=1)
    stats.add("number", 4)
    assert stats.read() == {"a": 3.0, "b": 2.0, "number": 4.0}
    assert stats.read() == {}
    stats.add("a", torch.tensor(7.0))
    assert stats.read() == {"a": 7.0}


def test_where_nothing_was_added_there_is_nothing_to_read():
    assert DeviceStats("cpu").read() == {}


def test_means_per_timestep():
    stats = DeviceStats("cpu")
    stats.add("D", torch.tensor([1.0, 10.0, math.nan]), weight=torch.tensor([3, 1, 0]))
    stats.add("D", torch.tensor([5.0, math.nan, math.nan]), weight=torch.tensor([1, 0, 0]))
    assert stats.read() == {"D": pytest.approx(18 / 5), "D/t0": 2.0, "D/t1": 10.0}


def test_samples_are_told_apart_by_timestep():
    values = torch.tensor([1.0, 2.0, 3.0, 10.0])
    t = torch.tensor([0, 2, 0, 2])
    stats = DeviceStats("cpu")
    stats.add_samples("D", values, t, 4)
    stats.add_samples("plain", values)
    stats.add_samples("skipped", values * math.nan, t, 4, weight=torch.tensor(0.0))
    assert stats.read() == {"D": 4.0, "D/t0": 2.0, "D/t2": 6.0, "plain": 4.0}


def test_not_finite_is_shown_not_hidden():
    stats = DeviceStats("cpu")
    stats.add("a", torch.tensor(math.nan))
    stats.add("b", torch.tensor(math.inf))
    read = stats.read()
    assert math.isnan(read["a"]) and read["b"] == math.inf


def test_a_million_small_values_are_not_lost_in_rounding():
    stats = DeviceStats("cpu")
    stats.add("a", torch.tensor(1e9))
    for _ in range(1000):
        stats.add("a", torch.tensor(0.01))
    assert stats.read()["a"] * 1001 == pytest.approx(1e9 + 10, abs=1e-3)


@pytest.mark.gpu
def test_adding_never_waits_for_the_gpu():
    stats = DeviceStats("cuda")
    values, t = torch.ones(4, device="cuda"), torch.arange(4, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        stats.add("a", values[0])
        stats.add("b", values, weight=values)
        stats.add("c", 3.0)
        stats.add_samples("d", values, t, 4, weight=values[0])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert stats.read()["d/t3"] == 1.0


RANKS = """
    import os, sys
    import torch, torch.distributed as dist
    from ddgan_fast.training.monitor import DeviceStats

    torch.set_num_threads(1)
    rank = 0 if os.fork() else 1
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=2)
    stats = DeviceStats("cpu")
    for name in ("b", "a") if rank else ("a", "b"):  # the order must not matter
        value = torch.tensor([1.0, 5.0])[rank] + (name == "b")
        stats.add(name, value, weight=rank * 2 + 1)
    assert stats.read(reduce=True) == {"a": 4.0, "b": 5.0}
    stats.add("a", 1.0 + rank)
    assert stats.read()["a"] == 1.0 + rank
    open(f"{sys.argv[1]}.{rank}", "w").close()
    dist.barrier()
    dist.destroy_process_group()
    os.wait() if rank == 0 else os._exit(0)
"""


def test_means_over_ranks(tmp_path):
    store = tmp_path / "store"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(RANKS), str(store)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("store.*"))) == 2


def test_a_log_line_says_it_all(tmp_path):
    with quiet(tmp_path) as monitor:
        monitor.tick(10, {"G/loss": 0.75, "D/r1": math.nan, "x": -math.inf}, **TICK)
        (record,) = records(tmp_path)
    assert record.pop("time").endswith("+00:00")
    assert record == {
        "step": 10,
        "images": 320,
        "img_s": 160.0,
        "sec_per_step": 0.2,
        "wait_share": 0.25,
        "lr/G": 1e-4,
        "lr/D": 2e-4,
        "G/loss": 0.75,
        "D/r1": "nan",
        "x": "-inf",
    }
    assert "NaN" not in (tmp_path / "log.jsonl").read_text()


def test_resume_drops_what_comes_again_and_broken_lines(tmp_path):
    with quiet(tmp_path) as monitor:
        for step in (10, 20, 30):
            monitor.tick(step, {}, **TICK)
    log = tmp_path / "log.jsonl"
    good = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([good[0], b"\0\0\n", b"[1]\n", *good[1:], good[2][:20]]))
    with quiet(tmp_path, start_step=20) as monitor:
        monitor.tick(30, {}, **TICK)
    assert [record["step"] for record in records(tmp_path)] == [10, 20, 30]
    assert records(tmp_path)[2]["img_s"] == 160.0, "speed counts from the step of the resume"
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]

    # A last line without its end is broken even when it parses: the next would be glued to it.
    log.write_bytes(log.read_bytes()[:-1])
    quiet(tmp_path, start_step=1000).close()
    assert [record["step"] for record in records(tmp_path)] == [10, 20]
    quiet(tmp_path, start_step=0).close()
    assert records(tmp_path) == []


@pytest.mark.parametrize(
    ("fails", "reason"), [(True, "No space left on device"), (False, "the disk is full")]
)
def test_full_disk_loses_a_line_not_the_run(tmp_path, capsys, fails, reason):
    class Full(io.FileIO):
        def write(self, data):
            written = super().write(bytes(data)[:7])
            if fails:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return written

    with quiet(tmp_path, console=True) as monitor:
        monitor.tick(10, {}, **TICK)
        real, monitor._log._file = monitor._log._file, Full(tmp_path / "log.jsonl", "a")
        monitor.tick(20, {}, **TICK)
        monitor._log._file = real
        monitor.tick(30, {}, **TICK)
    assert [record["step"] for record in records(tmp_path)] == [10, 30]
    assert f"log.jsonl ({reason}); going on." in capsys.readouterr().out


def test_console_lines_are_spaced_and_the_last_one_is_shown(tmp_path, capsys, monkeypatch):
    now = 100.0
    monkeypatch.setattr(sinks.time, "monotonic", lambda: now)
    with quiet(tmp_path, console=True) as monitor:
        for step in range(10, 160, 10):
            monitor.tick(step, {"D/real": 0.5, "D/fake": 0.25, "G/loss": 1.5}, **TICK)
            now += 1.0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "step 10/1,000",
        "step 110/1,000",
        "step 150/1,000",
    ]
    assert lines[0] == "step 10/1,000  160 img/s  ETA 0:03:18  D 0.75  G 1.5  data 25%"


def test_the_end_of_the_run_is_shown_once(tmp_path, capsys):
    with quiet(tmp_path, start_step=990, console=True) as monitor:
        monitor.tick(995, {}, **TICK)
        monitor.tick(1000, {}, **TICK)
    assert capsys.readouterr().out.splitlines()[1:] == [
        "step 1,000/1,000  80 img/s  ETA 0:00:00  data 25%"
    ]


def test_silence(tmp_path, capsys):
    with quiet(tmp_path) as monitor:
        monitor.say("hello")
        monitor.tick(1000, {}, **TICK)
    assert capsys.readouterr().out == ""


def test_time_left():
    pace = sinks.Pace(1_000_000)
    assert pace.eta(5, {}) == "?"
    assert pace.eta(10_000, {"sec_per_step": 0.1}) == "1 d 3:30:00"
    smoothed = pace.eta(999_999, {"sec_per_step": 10.1})
    assert smoothed == "0:00:03", "one slow tick moves the estimate only partly"


def test_bar_fits_the_terminal_and_words_stand_above(tmp_path):
    from rich.console import Console

    # Alone on their lines: neither markup nor wrapping may change what is said.
    words = "[red]Saved[/red] " + "runs/digits/" * 9 + "state-000000100.pt"
    for width in (80, 120):
        screen = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
        bar = sinks.Bar(6000, 100, screen)
        values = {"img_s": 3210.0, "sec_per_step": 0.01, "wait_share": 0.02}
        bar.update(1200, values | {"D/real": 0.61, "D/fake": 0.6, "G/loss": 0.9, "D/r1": 0.0123})
        bar.say(words)
        bar.close()
        output = screen.file.getvalue()
        assert words + "\n" in output
        last = [
            line for line in re.split(r"[\r\n]|\x1b\[[\d?]*[A-Za-z]", output) if "img/s" in line
        ][-1]
        assert len(last) <= width
        for part in ("1,200/6,000", "3,210 img/s", "D 1.21", "G 0.9", "R1 0.0123", "data 2%"):
            assert part in last
        assert "ETA 0:00:48" in last and "…" not in last


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs pseudo-terminals")
def test_bar_in_a_terminal_gives_the_cursor_back_after_an_error(tmp_path):
    script = """
        import sys
        from ddgan_fast.training.monitor import Monitor
        with Monitor(sys.argv[1], 100, 0, batch_size=8, tensorboard=False) as monitor:
            monitor.tick(40, {"G/loss": 0.5}, seconds=1.0, wait_seconds=0.1, lr=1e-4)
            monitor.say("a word")
            raise KeyError
    """
    ours, theirs = os.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    done = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    os.close(theirs)
    output = b""
    while True:
        try:
            chunk = os.read(ours, 4096)
        except OSError:  # the other side closed
            break
        if not chunk:
            break
        output += chunk
    os.close(ours)
    done.wait()
    text = output.decode()
    assert "40/100" in text and "320 img/s" in text and "a word" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is visible again"


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def test_tensorboard_shows_a_resumed_run_once(tmp_path):
    from PIL import Image

    picture = tmp_path / "grid.png"
    Image.fromarray(np.full((4, 6, 3), 7, np.uint8)).save(picture)
    with quiet(tmp_path, tensorboard=True) as monitor:
        for step in (10, 20, 30):
            monitor.tick(step, {"G/loss": float(step)}, **TICK)
        monitor.image("samples", 10, picture)
        monitor.image("grey", 10, np.zeros((4, 6), np.uint8))
        monitor.image("alpha", 10, np.zeros((4, 6, 4), np.uint8))
    with quiet(tmp_path, start_step=20, tensorboard=True) as monitor:
        monitor.tick(30, {"G/loss": 31.0}, **TICK)
    accumulator = events(tmp_path)
    assert [(e.step, e.value) for e in accumulator.Scalars("G/loss")] == [
        (10, 10.0),
        (20, 20.0),
        (30, 31.0),
    ]
    assert sorted(accumulator.Tags()["images"]) == ["alpha", "grey", "samples"]
    assert (accumulator.Images("samples")[0].width, accumulator.Images("samples")[0].height) == (
        6,
        4,
    )


def test_without_tensorboard_a_sentence_and_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with quiet(tmp_path, tensorboard=True, console=True) as monitor:
        monitor.tick(10, {}, **TICK)
        monitor.image("x", 10, np.zeros((2, 2), np.uint8))
    assert "No TensorBoard events are written" in capsys.readouterr().out
    assert len(records(tmp_path)) == 1


def test_a_run_that_goes_back_is_shown_once(tmp_path):
    with quiet(tmp_path, tensorboard=True) as monitor:
        for step in (10, 20, 30):
            monitor.tick(step, {"G/loss": float(step)}, **TICK)
        monitor.go_back(10)
        assert [record["step"] for record in records(tmp_path)] == [10]
        for step in (20, 30):
            monitor.tick(step, {"G/loss": step + 1.0}, **TICK)
    assert [(r["step"], r["G/loss"]) for r in records(tmp_path)] == [(10, 10), (20, 21), (30, 31)]
    assert records(tmp_path)[1]["img_s"] == records(tmp_path)[2]["img_s"]
    shown = [(event.step, event.value) for event in events(tmp_path).Scalars("G/loss")]
    assert shown == [(10, 10.0), (20, 21.0), (30, 31.0)]


def test_going_back_without_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with quiet(tmp_path, tensorboard=True) as monitor:
        monitor.go_back(0)
        monitor.tick(10, {}, **TICK)
    assert len(records(tmp_path)) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_full_disk_ends_the_events_and_not_the_run(tmp_path, monkeypatch, capsys):
    record_writer = pytest.importorskip("tensorboard.summary.writer.record_writer")

    def full(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with quiet(tmp_path, tensorboard=True, console=True) as monitor:
        monitor.tick(10, {"G/loss": 1.0}, **TICK)
        with monkeypatch.context() as patch:
            patch.setattr(record_writer.RecordWriter, "write", full)
            monitor.tick(20, {"G/loss": 2.0}, **TICK)
        monitor.tick(30, {"G/loss": 3.0}, **TICK)
        monitor.image("x", 30, np.zeros((2, 2), np.uint8))
        monitor.go_back(20)
    sentence = "TensorBoard events end here (No space left on device); going on."
    assert capsys.readouterr().out.count(sentence) == 1
    assert [record["step"] for record in records(tmp_path)] == [10, 20]
    assert [event.step for event in events(tmp_path).Scalars("G/loss")] == [10]
