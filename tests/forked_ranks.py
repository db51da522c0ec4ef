"""Ranks without torchrun, from one process that has imported everything and forks them.

Starting Python and importing torch takes longer than a tiny run. ``ForkedRanks`` is the side of the
tests; run as a program, this file reads a request per line (JSON) and answers with the exit codes.
"""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from pathlib import Path


class ForkedRanks:
    """Starts ranks; ``close`` ends what is left of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def start(self, world: int, script: Path | str, *arguments: object) -> None:
        """Have SCRIPT's ``main(*arguments)`` called by every rank; its result is the exit code."""
        self.count += 1
        self.output, self.ids = (self.folder / f"{self.count}.{x}" for x in ("out", "ids"))
        request = {
            "world": world,
            "script": str(script),
            "arguments": [str(a) for a in arguments],
            "output": str(self.output),
            "ids": str(self.ids),
        }
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def process_ids(self) -> list[int]:
        """Of the ranks started last; empty before they were started."""
        return json.loads(self.ids.read_text()) if self.ids.exists() else []

    def wait(self) -> tuple[list[int], str]:
        """Exit codes in rank order (negative: a signal) and what the ranks printed."""
        assert self.process.stdout is not None
        answer = self.process.stdout.readline()
        return json.loads(answer), self.output.read_text()

    def run(self, world: int, script: Path | str, *arguments: object) -> tuple[list[int], str]:
        """``start`` and ``wait``."""
        self.start(world, script, *arguments)
        return self.wait()

    def close(self) -> None:
        """End everything that this object has started."""
        self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def serve() -> None:
    """Answer requests until there are no more."""
    import torch

    import ddgan_fast.cli
    import ddgan_fast.commands.train
    import ddgan_fast.training.trainer  # noqa: F401 - before the fork, so that it is done once

    torch.set_num_threads(1)
    for line in sys.stdin:
        # A process per request: the store starts threads, and such a process must not fork.
        if (leader := os.fork()) == 0:
            answer = lead(**json.loads(line))
            print(json.dumps(answer), flush=True)
            os._exit(0)
        os.waitpid(leader, 0)


def lead(world: int, script: str, arguments: list[str], output: str, ids: str) -> list[int]:
    """Start the ranks of one request, keep their store, and wait for them."""
    import torch.distributed as dist

    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    os.environ |= {
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RUN_ID": "test",
    }
    children = [os.fork() or be_rank(rank, script, arguments, output) for rank in range(world)]
    Path(ids).write_text(json.dumps(children))
    store = dist.TCPStore(
        "127.0.0.1",
        port,
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    del store
    return codes


def be_rank(rank: int, script: str, arguments: list[str], output: str) -> int:
    """Run the script as one rank; does not return."""
    os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
    descriptor = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    code = 70
    try:
        code = runpy.run_path(script)["main"](*arguments)
        sys.stdout.flush()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code or 0)


if __name__ == "__main__":
    serve()
