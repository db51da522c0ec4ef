"""The clock of checkpoints, on a small preset."""

import re
import sys

from benchmarks import checkpointing


def test_both_ways_are_timed_and_nothing_is_left(tmp_path, monkeypatch, capsys):
    words = ["checkpointing", "--preset", "digits", "--dir", str(tmp_path), "--rounds", "2"]
    monkeypatch.setattr(sys, "argv", [*words, "--device", "cpu"])

    checkpointing.main()

    printed = capsys.readouterr().out
    assert re.search(r"state of \d+ MB; medians of 2, ms:", printed)
    assert len(re.findall(r"(?:waits|thread) +\d", printed)) == 3
    assert not list(tmp_path.iterdir())
