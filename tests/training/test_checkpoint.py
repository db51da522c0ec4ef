"""Checkpoints: what is written is read back, and damage to a file never goes unnoticed."""

import errno
import os
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from ddgan_fast import files
from ddgan_fast.training import checkpoint
from ddgan_fast.training.checkpoint import (
    CheckpointError,
    latest_state,
    list_emas,
    list_states,
    load_state,
    save_ema,
    save_state,
    step_of,
)


def payload(step):
    generator = torch.Generator().manual_seed(step)
    net = torch.nn.Linear(3, 5)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(2, 3, generator=generator)).sum().backward()
    optimizer.step()
    return {
        "G": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "float64": torch.randn(4, dtype=torch.float64, generator=generator),
        "bfloat16": torch.randn(4, generator=generator).bfloat16(),
        "config": {"preset": "digits", "ch_mult": (1, 2), "path": None, "lr": 1.5e-4},
    }


def assert_equal(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_state_round_trip_and_plain_torch_load(tmp_path):
    content = payload(1)
    path = save_state(tmp_path / "run", 7, content, keep=3)
    assert path == tmp_path / "run" / "state-000000007.pt"
    assert_equal(load_state(path), {**content, "step": 7})
    assert_equal(torch.load(path, weights_only=True), {**content, "step": 7})
    assert names(tmp_path / "run") == ["state-000000007.pt"]


@pytest.mark.parametrize(
    ("bad", "where"),
    [
        ({"a": [1, np.float64(2)]}, r"payload\['a'\]\[1\] is a numpy.float64"),
        ({"a": {"b": torch.nn.Linear(1, 1)}}, r"payload\['a'\]\['b'\] is a torch.nn"),
        ({"a": {(1, 2): 3}}, r"payload\['a'\] has the key \(1, 2\)"),
    ],
)
def test_a_payload_that_could_not_be_loaded_is_refused(tmp_path, bad, where):
    with pytest.raises(TypeError, match=where):
        save_state(tmp_path, 1, bad, keep=3)
    assert names(tmp_path) == []


def test_pruning_keeps_the_newest_and_their_snapshots(tmp_path):
    for step in range(1, 8):
        save_ema(tmp_path, step, {"w": torch.ones(1)}, {})
        save_state(tmp_path, step, {"x": step}, keep=1 if step < 6 else 4)
        if step == 5:
            assert [step_of(p) for p in list_states(tmp_path)] == [3, 4, 5], "never fewer than 3"
    assert [step_of(p) for p in list_states(tmp_path)] == [4, 5, 6, 7]
    assert [step_of(p) for p in list_emas(tmp_path)] == [4, 5, 6, 7]


def test_steps_sort_as_numbers(tmp_path):
    for step in (999_999_999, 1_000_000_000):
        save_state(tmp_path, step, {"x": step}, keep=3)
    path, content = latest_state(tmp_path, print)
    assert path.name == "state-1000000000.pt" and content["step"] == 1_000_000_000


def test_damaged_newer_states_never_push_out_good_ones(tmp_path):
    for step in range(1, 6):
        save_state(tmp_path, step, {"x": step}, keep=5)
    for step in (3, 4, 5):
        (tmp_path / f"state-{step:09d}.pt").write_bytes(b"")
    assert latest_state(tmp_path, lambda _: None)[1]["x"] == 2
    shutil.move(tmp_path / "state-000000002.pt", tmp_path / "state-000000001.pt")
    save_state(tmp_path, 2, {"x": "again"}, keep=3)
    assert latest_state(tmp_path, lambda _: None)[1]["x"] == "again"


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


def lose_the_last_byte(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path):
    path.write_bytes(b"")


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)


def fill_with_zeros(path):
    path.write_bytes(bytes(path.stat().st_size))


def replace_by_a_foreign_file(path):
    torch.save({"x": 1}, path)


DAMAGES = {
    truncate: "cut short",
    lose_the_last_byte: "cut short",
    empty: "empty",
    flip_a_bit: "changed after it was written",
    fill_with_zeros: "cut short",
    replace_by_a_foreign_file: "not written by ddgan_fast",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_state_is_named_skipped_and_left(tmp_path, damage):
    for step in (10, 20):
        save_state(tmp_path, step, payload(step), keep=3)
    newest = tmp_path / "state-000000020.pt"
    damage(newest)
    with pytest.raises(CheckpointError, match=DAMAGES[damage]) as caught:
        load_state(newest)
    assert str(newest) in str(caught.value) and "\n" not in str(caught.value)

    reports = []
    path, content = latest_state(tmp_path, reports.append)
    assert path.name == "state-000000010.pt" and content["step"] == 10
    assert len(reports) == 1 and str(newest) in reports[0]
    assert newest.exists()


def test_every_bit_of_a_small_state_is_covered(tmp_path):
    path = save_state(tmp_path, 1, {"x": 1}, keep=3)
    good = path.read_bytes()
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << (position % 8)
        path.write_bytes(bad)
        with pytest.raises(CheckpointError):
            load_state(path)


def test_all_damaged_never_starts_from_scratch(tmp_path):
    for step in (1, 2):
        empty(save_state(tmp_path, step, {}, keep=3))
    reports = []
    with pytest.raises(CheckpointError, match="none of the 2 training states"):
        latest_state(tmp_path, reports.append)
    assert len(reports) == 2


def test_nothing_to_resume(tmp_path):
    assert latest_state(tmp_path / "absent", pytest.fail) is None
    (tmp_path / "state-best.pt").write_bytes(b"")
    assert latest_state(tmp_path, pytest.fail) is None
    with pytest.raises(FileNotFoundError):
        load_state(tmp_path / "state-000000001.pt")


def test_leftovers_of_killed_processes_go(tmp_path):
    save_state(tmp_path, 1, {}, keep=3)
    for name in (".state-000000002.pt.77.tmp", ".ema-000000002.safetensors.77.tmp", ".mine.tmp"):
        (tmp_path / name).write_bytes(b"half")
    latest_state(tmp_path, pytest.fail)
    assert names(tmp_path) == [".mine.tmp", "state-000000001.pt"]


def save_both(folder, what, step):
    if what == "state":
        return save_state(folder, step, {"x": torch.zeros(250_000)}, keep=3)
    return save_ema(folder, step, {"x": torch.zeros(250_000)}, {})


@pytest.mark.parametrize("what", ["state", "ema"])
def test_too_little_space_is_found_before_writing(tmp_path, monkeypatch, what):
    save_both(tmp_path, what, 1)
    before = names(tmp_path)
    usage = shutil.disk_usage(tmp_path)._replace(free=900_000)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(checkpoint, "atomic_open", lambda _: pytest.fail("it wrote"))
    with pytest.raises(CheckpointError) as caught:
        save_both(tmp_path, what, 2)
    message = str(caught.value)
    for word in ("step 2", "No space left", "1,000,", "900,000 are free", "-000000002."):
        assert word in message
    assert names(tmp_path) == before


@pytest.mark.parametrize("what", ["state", "ema"])
def test_disk_that_fills_up_halfway(tmp_path, monkeypatch, what):
    save_both(tmp_path, what, 1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    class Full:
        def __init__(self, file):
            self.file, self.room = file, 500_000

        def write(self, data):
            part = bytes(data[: self.room])
            self.room -= len(part)
            self.file.write(part)
            if len(part) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return len(part)

        def __getattr__(self, name):
            return getattr(self.file, name)

    real = checkpoint._write
    monkeypatch.setattr(
        checkpoint, "_write", lambda p, w, n, write: real(p, w, n, lambda file: write(Full(file)))
    )
    with pytest.raises(CheckpointError, match=r"step 2 .*No space left"):
        save_both(tmp_path, what, 2)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_real_write_error_of_the_system(tmp_path):
    script = """
        import resource, signal, sys, torch
        from ddgan_fast.training.checkpoint import CheckpointError, save_state, save_ema
        save_state(sys.argv[1], 1, {"x": 1}, keep=3)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        x = {"x": torch.zeros(250_000)}
        for save, last in ((save_state, 3), (save_ema, {})):
            try:
                save(sys.argv[1], 2, x, last)
            except CheckpointError as error:
                print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.count("step 2 was not saved") == 2, done
    assert done.stdout.count("File too large") == 2
    assert names(tmp_path) == ["state-000000001.pt"]


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError) as caught:
        save_state(tmp_path / "file" / "run", 1, payload(1), keep=3)
    said = str(caught.value)
    assert "(Not a directory)" in said and "an unknown number are free" in said


def test_interrupted_save_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_state(tmp_path, 1, {}, keep=3)
    assert names(tmp_path) == []


KILLS = """
    import os, random, signal, sys, time
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    from ddgan_fast import files
    from ddgan_fast.training.checkpoint import (
        latest_state, list_states, load_ema, save_ema, save_state, step_of
    )

    run, start = Path(sys.argv[1]), 0
    die = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)

    def save_loop(step):
        while True:
            step += 1
            x = {"x": torch.full((400_000,), float(step))}
            save_ema(run, step, x, {"step": step})
            save_state(run, step, x, keep=3)

    def killed(prepare, random_moment):
        pid = os.fork()
        if pid == 0:
            prepare()
            save_loop(start)
        if random_moment:
            while max(map(step_of, list_states(run)), default=0) <= start:
                time.sleep(0.001)
            time.sleep(random.uniform(0, 0.2))
            os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL

    def die_in_write():
        from ddgan_fast.training import archive
        writer, calls = archive._HashingWriter.write, []
        def write(self, data):
            calls.append(data)
            return writer(self, data) if len(calls) < 4 else die()
        archive._HashingWriter.write = write

    def die_before_rename():
        files.os.replace = die

    def die_after_rename():
        replace = os.replace
        files.os.replace = lambda *names: (replace(*names), die())

    def die_in_pruning():
        Path.unlink = die

    points = [die_in_write, die_before_rename, die_after_rename, die_in_pruning]
    random.seed(3)
    for prepare in [lambda: None] * 6 + points:
        killed(prepare, prepare not in points)
        path, state = latest_state(run, lambda text: print("DAMAGED", text))
        tensors, config, step = load_ema(run / f"ema-{state['step']:09d}.safetensors")
        assert step == config["step"] == state["step"] >= start
        assert state["x"].unique().tolist() == tensors["x"].unique().tolist() == [step]
        assert not list(run.glob(".*.tmp"))
        start = step
    print("reached", start)
"""


def test_kill_at_any_moment_leaves_a_run_that_resumes(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLS), str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "DAMAGED" not in done.stdout
    assert int(done.stdout.split()[-1]) >= 6
