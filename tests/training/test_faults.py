"""The fault log survives what it reports, and the way back finds the right state."""

import json
import os
import threading

import pytest

from ddgan_fast.training import faults
from ddgan_fast.training.checkpoint import save_ema, save_state
from ddgan_fast.training.faults import FaultLog, previous_end, read_faults
from ddgan_fast.training.rollback import DivergedError, Returns, find_target, retire


def never(text):
    raise AssertionError(text)


def test_a_line_per_fault(tmp_path):
    log = FaultLog(tmp_path, 2, never)
    assert read_faults(tmp_path) == [] and not (tmp_path / faults.NAME).exists()
    log.add("skipped", 120, "Skipped 1 step.", timestep=3)
    log.add("signal", 130, "Stopped by SIGTERM.")
    first, second = read_faults(tmp_path)
    known = {"step": 120, "kind": "skipped", "rank": 2, "timestep": 3}
    assert {key: first[key] for key in known} == known
    assert first["sentence"] == "Skipped 1 step." and first["time"].endswith("+00:00")
    assert second["kind"] == "signal"


def test_a_line_cut_short_swallows_no_other(tmp_path):
    log = FaultLog(tmp_path, 0, never)
    log.add("save", 1, "one")
    with open(tmp_path / faults.NAME, "ab") as file:
        file.write(b'{"step": 2, "ki')
    log.add("save", 3, "three")
    assert [record["step"] for record in read_faults(tmp_path)] == [1, 3]


def test_ranks_do_not_mix_their_lines(tmp_path):
    def work(rank):
        log = FaultLog(tmp_path, rank, never)
        for step in range(50):
            log.add("skipped", step, "x" * 300)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_faults(tmp_path)) == 200
    assert len((tmp_path / faults.NAME).read_bytes().splitlines()) == 200


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    said = []
    log = FaultLog(tmp_path, 0, said.append)
    log.add("save", 1, "one")
    before = (tmp_path / faults.NAME).read_bytes()
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:7]))
    log.add("save", 2, "two")
    monkeypatch.undo()
    assert (tmp_path / faults.NAME).read_bytes() == before
    assert said == [f"Could not write to {tmp_path / faults.NAME} (the disk is full); going on."]
    log.add("save", 3, "three")
    assert [record["step"] for record in read_faults(tmp_path)] == [1, 3]


def test_a_missing_folder_is_said(tmp_path):
    said = []
    FaultLog(tmp_path / "gone", 0, said.append).add("save", 1, "one")
    assert len(said) == 1 and "No such file" in said[0]


def test_the_end_before_this_start(tmp_path):
    log = FaultLog(tmp_path, 0, never)
    assert "without a word after step 500" in previous_end(tmp_path, 500, 1000)
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 640}) + '\n{"step": 6')
    assert "without a word after step 640" in previous_end(tmp_path, 500, 1000)
    assert previous_end(tmp_path, 500, 500) == "It ended as planned, after step 500."
    log.add("save", 500, "Could not save.")
    log.add("signal", 700, "Stopped by SIGTERM.")
    assert previous_end(tmp_path, 500, 1000) == "It ended at step 700: Stopped by SIGTERM."
    # That end was already told when the run went on after it.
    log.add("resume", 500, "Going on.")
    assert "without a word" in previous_end(tmp_path, 500, 1000)
    log.add("error", 710, "No space left.")
    assert previous_end(tmp_path, 500, 1000) == "It ended at step 710: No space left."


# The way back


def make_states(run_dir, *steps):
    for step in steps:
        save_ema(run_dir, step, {}, {})
        save_state(run_dir, step, {"mark": step}, keep=99)


def names(run_dir):
    return sorted(path.name for path in run_dir.iterdir())


def test_the_newest_state_before_the_first_sign(tmp_path):
    make_states(tmp_path, 100, 200, 300)
    assert find_target(tmp_path, 299, -1, never)[1]["mark"] == 200
    assert find_target(tmp_path, 300, -1, never)[1]["mark"] == 300
    with pytest.raises(DivergedError, match="no state from step 99 or before"):
        find_target(tmp_path, 99, -1, never)


def test_a_state_that_did_not_help_comes_last(tmp_path):
    make_states(tmp_path, 100, 200)
    assert find_target(tmp_path, 250, 200, never)[1]["mark"] == 100
    make_states(tmp_path, 300)
    assert find_target(tmp_path, 350, 200, never)[1]["mark"] == 300
    assert find_target(tmp_path, 150, 100, never)[1]["mark"] == 100


def test_a_damaged_state_is_passed_over(tmp_path):
    make_states(tmp_path, 100, 200)
    file = tmp_path / "state-000000200.pt"
    file.write_bytes(file.read_bytes()[:-40])
    said = []
    assert find_target(tmp_path, 300, -1, said.append)[1]["mark"] == 100
    assert len(said) == 1 and "state-000000200.pt" in said[0]


def test_what_came_after_is_put_aside(tmp_path):
    make_states(tmp_path, 100, 200, 300)
    retire(tmp_path, 100)
    assert names(tmp_path) == [
        "ema-000000100.safetensors",
        "ema-000000200.safetensors.diverged",
        "ema-000000300.safetensors.diverged",
        "state-000000100.pt",
        "state-000000200.pt.diverged",
        "state-000000300.pt.diverged",
    ]
    # The next return keeps its own only.
    make_states(tmp_path, 250)
    retire(tmp_path, 200)
    assert [name for name in names(tmp_path) if name.endswith("diverged")] == [
        "ema-000000250.safetensors.diverged",
        "state-000000250.pt.diverged",
    ]


def test_after_a_return_data_and_draws_go_on_where_they_were():
    first = Returns.of({}).after(diverged=700, target=500)
    assert first == Returns(1, 200, 500)
    # Step 500 has the data of step 700, and step 600 those of step 800.
    second = first.after(diverged=600, target=500)
    assert second == Returns(2, 300, 500)
    assert Returns.of({"returns": {"count": 2, "ahead": 300, "last": 500}}) == second
