"""What is read from a run's log."""

import json

import pytest

from ddgan_fast.run_log import Follower, read_records, seconds_trained


def test_seconds_of_training_are_those_up_to_the_step(tmp_path):
    lines = [{"step": 10, "sec_per_step": 0.5}, {"step": 30, "sec_per_step": 0.1}]
    lines.append({"step": 40, "sec_per_step": 9.0})
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(x) + "\n" for x in lines) + '{"st')
    records = read_records(log)

    assert seconds_trained(records, 30) == pytest.approx(7.0)
    assert seconds_trained(records) == pytest.approx(97.0)
    assert seconds_trained(read_records(tmp_path / "none"), 30) is None


def test_a_log_that_is_not_there_yet_has_nothing_new(tmp_path):
    follower = Follower(tmp_path / "log.jsonl")
    assert not follower.look() and follower.records == []
    follower.path.write_text('{"step": 10}\n')
    assert follower.look()
    follower.path.unlink()
    assert not follower.look() and follower.records == [{"step": 10}]
