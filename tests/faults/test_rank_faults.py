"""A rank that is stopped, hangs, dies or differs: what the others do and say."""

import json
import os
import signal
from types import SimpleNamespace

import pytest
from fault_runs import (
    FAULTY_RANK,
    STEPS,
    assert_nothing_half_written,
    assert_same_weights,
    logged_steps,
    short_run,
    state_steps,
    wait_until,
)

from ddgan_fast.training import trainer
from ddgan_fast.training.watchdog import EXIT_STALLED


def test_sigterm_to_all_ranks_saves_and_the_same_command_goes_on(
    forked_ranks, undisturbed, tmp_path
):
    config = short_run(tmp_path)
    fault = ("SIGTERM", "all", "G step", 4, tmp_path / "struck")
    codes, output = forked_ranks.run(2, FAULTY_RANK, config, *fault)
    assert codes == [0, 0], output
    assert output.count("Stopped by SIGTERM after step") == 1, output
    stopped = state_steps(tmp_path / "run")[-1]
    assert 5 <= stopped < STEPS and stopped == logged_steps(tmp_path / "run")[-1]

    newest = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert newest["rank/wait_share_max"] >= newest["rank/wait_share_median"] >= 0
    assert newest["rank/cpu_s_max"] > 0 and newest["rank/waits_longest"] in (0, 1)

    codes, output = forked_ranks.run(2, FAULTY_RANK, config, *fault)
    assert codes == [0, 0], output
    assert f"Going on from {tmp_path}/run/state-{stopped:09d}.pt" in output
    assert logged_steps(tmp_path / "run") == list(range(1, STEPS + 1))
    assert_same_weights(tmp_path / "run", undisturbed)
    assert_nothing_half_written(tmp_path / "run")


def test_stopped_rank_is_named_and_the_others_end_within_the_time_out(forked_ranks, tmp_path):
    # Late enough that the rank was heard of during its steps.
    fault = ("SIGSTOP", 1, "G step", 31, tmp_path / "struck")
    forked_ranks.start(2, FAULTY_RANK, short_run(tmp_path, run__steps=100), *fault)
    assert wait_until(lambda: len(forked_ranks.process_ids()) == 2, 60)
    stopped = forked_ranks.process_ids()[1]
    assert wait_until((tmp_path / "struck.1").exists, 60)
    # The first rank ends by itself; the stopped one cannot, and torchrun would kill it.
    assert wait_until(lambda: "time-out:" in forked_ranks.output.read_text(), 30)
    os.kill(stopped, signal.SIGKILL)
    codes, output = forked_ranks.wait()
    assert codes == [EXIT_STALLED, -signal.SIGKILL], output
    line = next(line for line in output.splitlines() if "time-out:" in line)
    for words in ("run.timeout_s is 10", "rank 1 (", "no sign of life", "in phase", "at step"):
        assert words in line
    assert '"starting"' not in line
    assert state_steps(tmp_path / "run") == [24, 27, 30]
    assert_nothing_half_written(tmp_path / "run")


def test_ranks_with_different_configurations_are_refused(forked_ranks, tmp_path):
    config = short_run(tmp_path)
    for rank, rate in enumerate(("0.001", "0.002")):
        text = config.read_text().replace("lr_g: 0.001", f"lr_g: {rate}")
        (tmp_path / f"{rank}.yaml").write_text(text)
    codes, output = forked_ranks.run(2, FAULTY_RANK, tmp_path / "{rank}.yaml")
    assert codes == [2, 2], output
    assert output.count("has optim.lr_g = 0.002, but rank 0 has 0.001") == 2, output
    assert "rank 1 (" in output and not (tmp_path / "run").exists()


def test_batch_that_the_ranks_do_not_divide_is_refused(forked_ranks, tmp_path):
    codes, output = forked_ranks.run(2, FAULTY_RANK, short_run(tmp_path, run__batch_size=9))
    assert codes == [2, 2], output
    assert "batch" in output and "2 ranks" in output, output


@pytest.mark.slow
def test_rank_that_hangs_in_its_data_wait_is_named_with_this_phase(forked_ranks, tmp_path):
    fault = ("sleep", 1, "data wait", 4, tmp_path / "struck")
    codes, output = forked_ranks.run(2, FAULTY_RANK, short_run(tmp_path), *fault)
    assert codes == [EXIT_STALLED, EXIT_STALLED], output
    first = next(line for line in output.splitlines() if line.startswith("ddgan-fast: time-out:"))
    assert "furthest behind, rank 1 (" in first
    assert 'has been in phase "data wait" at step 4' in first
    second = next(line for line in output.splitlines() if "[rank 1] time-out:" in line)
    assert "the other ranks wait for this one" in second or "rank 0" in second
    assert state_steps(tmp_path / "run") == [3]


def test_run_directory_that_a_machine_does_not_have(tmp_path):
    path = str(tmp_path / "state-000000002.pt")
    ranks = SimpleNamespace(rank=1, share=lambda _: (path, None))
    run = SimpleNamespace(ranks=ranks, run_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"run\.dir must be on a file system that all"):
        trainer.Run._resume(run, print)
