"""``ddgan-fast watch``: reads what a run writes while it writes it, and knows when it is over."""

import fcntl
import json
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import screen
from report_results import log_line, write_run

from ddgan_fast import cli, live, run_log, run_status

QUIET = "no word for"
LOG = "log.jsonl"


def append(run, *steps, steps_of_run=300):
    with open(run / LOG, "a") as file:
        for step in steps:
            file.write(json.dumps(log_line(step, steps_of_run)) + "\n")


def add_fault(run, kind, sentence):
    with open(run / "faults.jsonl", "a") as file:
        record = {"step": 100, "time": "t", "rank": 0, "kind": kind, "sentence": sentence}
        file.write(json.dumps(record) + "\n")


def age(run, seconds):
    for name in (LOG, "config.yaml"):
        os.utime(run / name, (time.time() - seconds,) * 2)


def test_a_finished_run_is_shown_once(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    assert cli.main(["watch", str(run)]) == 0
    out = capsys.readouterr().out
    assert f"digits in {run}: finished\nstep 300 of 300, 100%, 128 img/s, waits" in out
    row = next(line for line in out.splitlines() if "D's loss, real" in line)
    assert row.split()[-4:] == ["0.6", "0.697", "0.6", "0.697"], "now, first, lowest, highest"
    assert "D right, fake       70.0%" in out
    assert "metrics at step 300: fd_digits 13.333, kd_digits nan" in out
    assert "sign at step 40: R1 grew <script>" in out
    assert "left" not in out.splitlines()[1]


@pytest.mark.parametrize(
    ("name", "words"), [("nowhere", "there is no folder"), ("empty", "is no run directory")]
)
def test_no_run_is_one_sentence(tmp_path, capsys, name, words):
    (tmp_path / "empty").mkdir()
    assert cli.main(["watch", str(tmp_path / name)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and words in err and name in err


@pytest.mark.parametrize("every", ["0", "0.01", "4000", "nan"])
def test_looks_are_neither_too_often_nor_too_rare(tmp_path, capsys, every):
    run = write_run(tmp_path / "run", upto=20)
    assert cli.main(["watch", str(run), "--every", every]) == 2
    error = capsys.readouterr().err
    assert f"--every is {every}: it must be from 0.05 to 3600 seconds." in error
    assert error.count("\n") == 1


def test_a_terminal_without_bars_gets_the_numbers(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", upto=100)
    shown = screen.put(monkeypatch, "stdout")
    shown.encoding = "ascii"
    assert cli.main(["watch", str(run), "--once"]) == 0
    text = shown.text()
    assert text.isascii() and "lowest" in text and "training" in text
    row = next(line for line in text.splitlines() if "D's loss, real" in line)
    assert row.replace("|", " ").split()[-4:] == ["0.667", "0.697", "0.667", "0.697"]


def test_a_line_in_the_making_waits_for_its_end(tmp_path):
    run = write_run(tmp_path / "run", upto=100)
    follower = run_log.Follower(run / LOG)
    assert follower.look() and not follower.look()
    whole = json.dumps(log_line(110)) + "\n"
    with open(run / LOG, "a") as file:
        file.write(whole[:40])
        file.flush()
        assert not follower.look()
        assert [r["step"] for r in follower.records][-1] == 100
        file.write(whole[40:])
    assert follower.look()
    assert follower.records[-1] == log_line(110)
    assert len(follower.records) == 11


def test_what_a_run_took_back_is_gone(tmp_path):
    run = write_run(tmp_path / "run", upto=100)
    follower = run_log.Follower(run / LOG)
    follower.look()
    # As the log file does it: the kept lines under a new name, then the name.
    kept = (run / LOG).read_bytes().splitlines(keepends=True)[:4]
    (run / "new").write_bytes(b"".join(kept))
    os.replace(run / "new", run / LOG)
    later = range(50, 130, 10)  # longer than before, so size tells nothing
    append(run, *later, steps_of_run=600)
    assert follower.look()
    expected = [log_line(step) for step in (10, 20, 30, 40)] + [log_line(s, 600) for s in later]
    assert follower.records == expected
    (run / LOG).write_bytes(kept[0])  # cut in place
    assert follower.look()
    assert [r["step"] for r in follower.records] == [10]


def test_steps_that_come_again_replace_the_old_ones(tmp_path):
    run = write_run(tmp_path / "run", upto=100)
    follower = run_log.Follower(run / LOG)
    follower.look()
    append(run, 60, 70)
    follower.look()
    assert [r["step"] for r in follower.records] == [10, 20, 30, 40, 50, 60, 70]


def test_broken_lines_and_files_of_other_versions(tmp_path, capsys):
    run = write_run(tmp_path / "run", upto=20)
    with open(run / LOG, "a") as file:
        file.write('\0\0\n[1]\n{"step": "x"}\n{"step": 30, "D/real": "nan", "G/loss": null}\n')
    (run / "config.yaml").write_text("run: {steps: [1\n")
    assert [r["step"] for r in run_log.read_records(run / LOG)] == [10, 20, 30]
    assert cli.main(["watch", str(run)]) == 0
    assert "step 30, 148 img/s" in capsys.readouterr().out


def test_the_state_is_found_out(tmp_path):
    run = write_run(tmp_path / "run", upto=100)
    watcher = run_status.Watcher(run)
    found = watcher.look()
    assert (found.running, found.state, found.left) == (True, "training", "0:01:40")

    add_fault(run, "signal", "Stopped by SIGTERM.")
    found = watcher.look()
    assert (found.running, found.state) == (False, "ended: Stopped by SIGTERM.")
    add_fault(run, "resume", "Going on.")
    assert watcher.look().running

    age(run, 3600)
    found = watcher.look()
    assert not found.running and found.state.startswith("no word for 60 min")
    append(run, *range(110, 310, 10))
    found = watcher.look()
    assert (found.running, found.state, found.left) == (False, "finished", "")


def test_patience_follows_the_pace(tmp_path):
    run = write_run(tmp_path / "run", upto=100)  # a tick of 5 s
    for seconds, running in ((100, True), (200, False)):
        age(run, seconds)
        assert run_status.Watcher(run).look().running is running
    lines = (run / LOG).read_text().replace('"sec_per_step": 0.5', '"sec_per_step": 50.0')
    (run / LOG).write_text(lines)  # ticks of 500 s
    age(run, 2000)
    assert run_status.Watcher(run).look().running
    (run / LOG).write_text("")
    age(run, 600)
    found = run_status.Watcher(run).look()
    assert (found.running, found.state, found.step) == (True, "starting", 0)


@pytest.mark.skipif(not os.path.exists("/proc/locks"), reason="needs Linux")
def test_a_run_of_this_machine_is_known_by_its_lock(tmp_path):
    run = write_run(tmp_path / "run", upto=100)
    age(run, 1e6)
    with open(run / ".lock", "w") as lock:
        watcher = run_status.Watcher(run)
        assert not watcher.look().running
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert watcher.look().state == "training"
        append(run, *range(110, 310, 10))
        found = watcher.look()
        assert (found.running, found.state) == (True, "finishing"), "it still saves and measures"
    assert watcher.look().state == "finished"


def test_a_run_whose_end_was_moved_to_the_front_is_done():
    status = run_status.Status(False, "finished", 60, 40, "", {}, [])
    assert live.progress(status).startswith("step 60 of 40, 100%")


def test_courses():
    assert live.sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == live.BARS
    assert live.sparkline([0, 0, 7, 7], 2) == "▁█"
    assert live.sparkline([5.0] * 100, 10) == "▁" * 10
    assert live.sparkline([1.0, math.nan, 3.0, None, math.inf], 5) == "▁!█!!"
    assert live.sparkline([math.nan], 5) == "!"
    assert live.sparkline([], 5) == ""


def test_narrow_terminals_and_other_losses(tmp_path):
    from rich.console import Console

    run = write_run(tmp_path / "run", upto=1000, steps=1000)
    status = run_status.Watcher(run).look()
    for width in (40, 80, 200):
        console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
        console.print(live.dashboard(status, "runs/x", width))
        lines = console.export_text().splitlines()
        assert not any("…" in line for line in lines)
        assert max(map(len, lines)) <= width
        assert sum(line.startswith(("t0", "t1", "t2", "t3")) for line in lines) == 4
        assert ("G's loss" in next(x for x in lines if x.startswith("by t"))) == (width > 80)
    bare = [{"step": 1, "G/loss": 0.5}]
    denoiser = run_status.Status(False, "finished", 1, 1, "", {}, bare)
    assert [row[0] for row in live.summary(denoiser)] == ["G's loss"]
    assert "by t" not in drawn(denoiser)


def drawn(status):
    """The dashboard as text."""
    from rich.console import Console

    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(live.dashboard(status, "runs/x", 80))
    return console.export_text()


def test_before_the_first_step_that_is_said(tmp_path):
    run = write_run(tmp_path / "run", upto=10)
    (run / LOG).write_text("")
    (run / "faults.jsonl").unlink()
    text = drawn(run_status.Watcher(run).look())
    assert "digits in runs/x: starting" in text and "No step is logged yet." in text
    assert "course" not in text


def in_terminal(run, *options):
    """A watch in a pseudo-terminal: its process, and the side of the terminal that we read."""
    script = """
        import sys
        from ddgan_fast.commands import watch
        code = watch.main(sys.argv[1:])
        assert "torch" not in sys.modules
        sys.exit(code)
    """
    ours, theirs = os.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "50",
                   "PYTHONUTF8": "1"}
    command = [sys.executable, "-c", textwrap.dedent(script), str(run), *options]
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    return process, ours


def read_until(terminal, word=None):
    """What the terminal shows, up to a word or the end."""
    found = b""
    while word is None or word.encode() not in found:
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # the other side closed
            break
        if not chunk:
            break
        found += chunk
    # What was read may begin or end within a character.
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", found.decode(errors="ignore"))


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs pseudo-terminals")
def test_it_follows_a_run_to_its_end(tmp_path):
    run = write_run(tmp_path / "run", upto=100)
    process, terminal = in_terminal(run, "--every", "0.05")
    first = read_until(terminal, "t3")
    assert "training" in first and "step 100 of 300, 33%, 0:01:40 left" in first
    append(run, *range(110, 210, 10))
    assert "step 200 of 300" in read_until(terminal, "step 200 of 300")
    append(run, *range(210, 310, 10))
    last = read_until(terminal)
    os.close(terminal)
    assert process.wait(30) == 0
    assert "finished" in last and "step 300 of 300" in last and live.BARS[7] in last
    assert QUIET not in last


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs pseudo-terminals")
def test_ctrl_c_leaves_the_run_alone(tmp_path):
    run = write_run(tmp_path / "run", upto=100)
    before = sorted(path.name for path in run.rglob("*"))
    process, terminal = in_terminal(run)
    read_until(terminal, "t3")
    process.send_signal(signal.SIGINT)
    rest = read_until(terminal)
    os.close(terminal)
    assert process.wait(30) == 0 and "Traceback" not in rest
    assert sorted(path.name for path in run.rglob("*")) == before
