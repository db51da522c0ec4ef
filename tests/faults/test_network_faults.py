"""Two nodes, each a network namespace with its own torchrun, and the link between them cut."""

import os
import subprocess
import sys
import time

import pytest
from fault_runs import (
    FAULTY_RANK,
    STEPS,
    assert_same_weights,
    end_processes_of,
    logged_steps,
    processes_of,
    short_run,
    state_steps,
    wait_until,
)

pytestmark = pytest.mark.slow

NODES = {"a": "10.98.1", "b": "10.98.2"}


class Network:
    """Namespaces a and b, and a third one that routes between them, or does not."""

    def __init__(self) -> None:
        self.name = f"ddgan{os.getpid()}"

    def open(self) -> None:
        for part in ("hub", *NODES):
            self.ip("netns", "add", self.name + part)
            self.ip("-n", self.name + part, "link", "set", "lo", "up")
        for node, net in NODES.items():
            own, hub = self.name + node, self.name + "hub"
            near, far = f"{node}{os.getpid()}", f"h{node}{os.getpid()}"
            self.ip("link", "add", near, "netns", own, "type", "veth", "peer", far, "netns", hub)
            self.ip("-n", own, "addr", "add", f"{net}.2/24", "dev", near)
            self.ip("-n", hub, "addr", "add", f"{net}.1/24", "dev", far)
            self.ip("-n", own, "link", "set", near, "up")
            self.ip("-n", hub, "link", "set", far, "up")
            self.ip("-n", own, "route", "add", "default", "via", f"{net}.1")
        self.join()

    def join(self) -> None:
        self.forward("1")

    def cut(self) -> None:
        """From now on packets are lost, and nobody is told."""
        self.forward("0")

    def forward(self, value: str) -> None:
        setting = f"echo {value} > /proc/sys/net/ipv4/ip_forward"
        self.ip("netns", "exec", self.name + "hub", "sh", "-c", setting)

    def start(self, node: str, command: list[str], output) -> subprocess.Popen:
        interface = f"{node}{os.getpid()}"
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name + node, *command],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": interface},
        )

    def close(self) -> None:
        for part in ("hub", *NODES):
            subprocess.run(["ip", "netns", "del", self.name + part], capture_output=True)

    def ip(self, *words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def network():
    net = Network()
    try:
        net.open()
    except (OSError, subprocess.CalledProcessError):
        net.close()
        pytest.skip("network namespaces are not permitted here")
    yield net
    net.close()


@pytest.fixture
def two_nodes(network, tmp_path):
    """Starts torchrun on both nodes; nothing of it outlives the test."""
    started = {}

    def start(config, *fault, restarts=0):
        for number, node in enumerate(NODES):
            command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2"]
            # Neither namespace knows its address by the machine's name.
            command += ["--nproc-per-node=1", f"--rdzv-conf=is_host={1 - number}"]
            command += ["--rdzv-backend=c10d"]
            command += [f"--rdzv-endpoint={NODES['a']}.2:29400", "--rdzv-id=test"]
            command += [f"--local-addr={NODES[node]}.2", f"--max-restarts={restarts}"]
            command += [str(word) for word in (FAULTY_RANK, config, *fault)]
            with open(tmp_path / f"output.{node}", "w") as output:
                started[node] = network.start(node, command, output)
        return started

    yield start
    end_processes_of(tmp_path)
    for process in started.values():
        process.wait(30)


def outputs(tmp_path):
    return {node: (tmp_path / f"output.{node}").read_text() for node in NODES}


def test_rank_killed_on_one_node_is_started_again_on_both(two_nodes, undisturbed, tmp_path):
    config = short_run(tmp_path, run__timeout_s=60.0)
    fault = ("SIGKILL", 1, "G step", 7, tmp_path / "struck")
    for node, process in two_nodes(config, *fault, restarts=2).items():
        assert process.wait(240) == 0, outputs(tmp_path)[node]
    assert (tmp_path / "struck.1").exists()
    said = "".join(outputs(tmp_path).values())
    assert f"Going on from {tmp_path}/run/state-000000006.pt" in said
    assert logged_steps(tmp_path / "run") == list(range(1, STEPS + 1))
    assert_same_weights(tmp_path / "run", undisturbed)


def test_link_cut_for_five_seconds_changes_nothing(network, two_nodes, undisturbed, tmp_path):
    nodes = two_nodes(short_run(tmp_path, run__timeout_s=60.0))
    assert wait_until(lambda: (tmp_path / "run" / "log.jsonl").exists(), 120), outputs(tmp_path)
    assert wait_until(lambda: logged_steps(tmp_path / "run"), 60)
    network.cut()
    time.sleep(2)
    during = logged_steps(tmp_path / "run")
    time.sleep(3)
    assert logged_steps(tmp_path / "run") == during, "the link was not cut"
    network.join()
    for process in nodes.values():
        assert process.wait(120) == 0, outputs(tmp_path)
    assert logged_steps(tmp_path / "run") == list(range(1, STEPS + 1))
    assert_same_weights(tmp_path / "run", undisturbed)


def test_link_cut_for_ever_ends_every_rank_with_a_sentence(network, two_nodes, tmp_path):
    config = short_run(tmp_path, run__steps=100_000, run__checkpoint_every=3)
    two_nodes(config)
    assert wait_until(lambda: (tmp_path / "run" / "log.jsonl").exists(), 120), outputs(tmp_path)
    assert wait_until(lambda: len(logged_steps(tmp_path / "run")) > 6, 60)
    network.cut()
    ranks = [p for p in processes_of(config) if f"{FAULTY_RANK}" in command_line(p)]
    ranks = [p for p in ranks if "torch.distributed.run" not in command_line(p)]
    assert len(ranks) == 2
    assert wait_until(lambda: not set(ranks) & set(processes_of(config)), 60), outputs(tmp_path)
    said = outputs(tmp_path)
    assert "time-out:" in said["a"] and "rank 1 (" in said["a"], said["a"]
    assert "no sign of life" in said["a"]
    assert "time-out:" in said["b"] and "the rendezvous store does not answer" in said["b"], said
    last = logged_steps(tmp_path / "run")[-1]
    assert last - 3 <= state_steps(tmp_path / "run")[-1] <= last


def command_line(process: int) -> str:
    try:
        with open(f"/proc/{process}/cmdline") as file:
            return file.read().replace("\0", " ")
    except OSError:
        return ""
