"""How the ranks find one another: a key-value store, and a corner of it for this attempt alone."""

from __future__ import annotations

import json
import os
import time
import uuid
from datetime import timedelta
from typing import cast

import torch.distributed as dist

_POLL_S = 0.1


def connect(timeout_s: float, keep: bool = False) -> dist.Store:
    """A new connection to the store at MASTER_ADDR:MASTER_PORT.

    Args:
        timeout_s: how long to wait for an answer.
        keep: the store lives in this process, unless torchrun keeps it.

    Raises:
        RuntimeError: nothing answers there.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    keep = keep and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        return dist.TCPStore(
            host,
            port,
            is_master=keep,
            timeout=timedelta(seconds=timeout_s),
            wait_for_workers=False,
        )
    except dist.DistError as error:
        raise RuntimeError(
            f"the rendezvous store at {host}:{port} does not answer within {timeout_s:g} s "
            f"(run.timeout_s): {' '.join(str(error).split())}"
        ) from error


def meet(store: dist.Store, rank: int, world: int, timeout_s: float) -> str:
    """Wait until all ranks of this attempt are here.

    When torchrun starts the ranks again, the store still holds what the ranks of the last attempt
    wrote, their addresses for instance. So every rank brings a word that no other attempt knows,
    and rank 0 answers with all words and the name of a corner of the store.

    Returns:
        The name, equal on all ranks: a prefix for all further keys.

    Raises:
        RuntimeError: a rank did not come in time; names it.
    """
    deadline = time.monotonic() + timeout_s
    word = uuid.uuid4().hex
    if rank == 0:
        return _receive(store, word, world, timeout_s, deadline)
    store.set(f"hello/{rank}", word)
    while time.monotonic() < deadline:
        if store.check(["welcome"]):
            welcome = json.loads(store.get("welcome"))
            if welcome["words"].get(str(rank)) == word:
                store.set(f"{welcome['name']}/here/{rank}", "")
                return cast(str, welcome["name"])
        time.sleep(_POLL_S)
    raise RuntimeError(
        f"rank 0 did not answer rank {rank} within {timeout_s:g} s (run.timeout_s): it did not "
        "start, or has ended."
    )


def _receive(store: dist.Store, name: str, world: int, timeout_s: float, deadline: float) -> str:
    absent = list(range(1, world))
    words: dict[str, str] = {}
    while absent:
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"{len(absent)} of {world} ranks did not come within {timeout_s:g} s "
                f"(run.timeout_s), rank {absent[0]} among them: look at what they say on their own "
                "hosts."
            )
        found = [other for other in absent if store.check([f"hello/{other}"])]
        heard = {str(other): store.get(f"hello/{other}").decode() for other in found}
        if words != words | heard:
            words |= heard
            store.set("welcome", json.dumps({"name": name, "words": words}))
        absent = [other for other in absent if not store.check([f"{name}/here/{other}"])]
        if absent:
            time.sleep(_POLL_S)
    return name
