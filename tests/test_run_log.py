"""What is read from a run's log."""

import json

import pytest

from ddgan_fast.run_log import read_records, seconds_trained


def test_seconds_of_training_are_those_up_to_the_step(tmp_path):
    lines = [{"step": 10, "sec_per_step": 0.5}, {"step": 30, "sec_per_step": 0.1}]
    lines.append({"step": 40, "sec_per_step": 9.0})
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(x) + "\n" for x in lines) + '{"st')
    records = read_records(log)

    assert seconds_trained(records, 30) == pytest.approx(7.0)
    assert seconds_trained(records) == pytest.approx(97.0)
    assert seconds_trained(read_records(tmp_path / "none"), 30) is None
