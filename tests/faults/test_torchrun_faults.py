"""Under torchrun: a killed rank, a signal to everybody, and torchrun itself killed."""

import os
import signal
import subprocess
import sys

import pytest
from fault_runs import (
    FAULTY_RANK,
    STEPS,
    assert_nothing_half_written,
    assert_same_weights,
    end_processes_of,
    logged_steps,
    processes_of,
    short_run,
    state_steps,
    wait_until,
)
from tiny_runs import final_state

pytestmark = pytest.mark.slow


@pytest.fixture
def torchrun(tmp_path):
    """Starts FAULTY_RANK under torchrun; nothing of it outlives the test."""
    started = []

    def start(*arguments, restarts=0):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node=2", f"--max-restarts={restarts}", str(FAULTY_RANK)]
        output = open(tmp_path / "output", "w+")  # noqa: SIM115 - read when the process has ended
        process = subprocess.Popen(
            command + [str(a) for a in arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        started.append((process, output))
        return process

    yield start
    end_processes_of(tmp_path)
    for process, output in started:
        process.wait(30)
        output.close()


def output_of(tmp_path):
    return (tmp_path / "output").read_text()


def test_killed_rank_costs_the_steps_since_the_last_state(torchrun, undisturbed, tmp_path):
    config = short_run(tmp_path)
    process = torchrun(config, "SIGKILL", 1, "G step", 7, tmp_path / "struck", restarts=2)
    assert process.wait(240) == 0, output_of(tmp_path)
    assert (tmp_path / "struck.1").exists()
    output = output_of(tmp_path)
    assert f"Going on from {tmp_path}/run/state-000000006.pt" in output, output
    assert "a message to the other ranks failed: rank 1" in output, output
    assert logged_steps(tmp_path / "run") == list(range(1, STEPS + 1))
    assert state_steps(tmp_path / "run") == [6, 9, 12]
    assert_same_weights(tmp_path / "run", undisturbed)
    assert_nothing_half_written(tmp_path / "run")


def test_sigterm_to_torchrun_and_all_ranks(torchrun, undisturbed, tmp_path):
    config = short_run(tmp_path, run__steps=100_000, run__checkpoint_every=100_000)
    process = torchrun(config)
    assert wait_until(lambda: (tmp_path / "run" / "log.jsonl").exists(), 120)
    assert wait_until(lambda: logged_steps(tmp_path / "run"), 60)
    everybody = [process.pid, *processes_of(config)]
    for member in set(everybody):
        os.kill(member, signal.SIGTERM)
    process.wait(120)
    assert wait_until(lambda: not processes_of(config), 30)
    output = output_of(tmp_path)
    assert output.count("Stopped by SIGTERM after step") == 1, output
    [stopped] = state_steps(tmp_path / "run")
    assert stopped == logged_steps(tmp_path / "run")[-1] == final_state(tmp_path / "run")["step"]
    assert_nothing_half_written(tmp_path / "run")


def test_ranks_notice_that_torchrun_was_killed(torchrun, tmp_path):
    config = short_run(tmp_path, run__steps=100_000, run__checkpoint_every=100_000)
    process = torchrun(config)
    assert wait_until(lambda: (tmp_path / "run" / "log.jsonl").exists(), 120)
    assert wait_until(lambda: logged_steps(tmp_path / "run"), 60)
    assert len(processes_of(config)) == 3
    process.kill()
    assert wait_until(lambda: not processes_of(config), 30), output_of(tmp_path)
    output = output_of(tmp_path)
    # The first rank that notices may stop the other one before it does.
    assert "torchrun is gone, so this rank saves and stops" in output
    assert output.count("Stopped by") == 1, output
    [stopped] = state_steps(tmp_path / "run")
    assert stopped == logged_steps(tmp_path / "run")[-1]
    assert_nothing_half_written(tmp_path / "run")
