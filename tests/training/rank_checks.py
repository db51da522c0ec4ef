"""What one of several ranks does for test_parallel.py."""

import os

import torch
from torch import nn

from ddgan_fast.training.parallel import Vote, start


def main(what: str, out: str) -> int:
    """Run one check; its result goes to OUT.<rank>.pt."""
    torch.save({"exchange": exchange, "vote": vote, "agree": agree}[what](), f"{out}.{rank()}.pt")
    return 0


def rank() -> int:
    return int(os.environ["RANK"])


def exchange() -> dict:
    """Gradients of a small network, exchanged in fp32 and in bf16, and this rank's own ones."""
    found = {}
    for dtype in (torch.float32, torch.float64):
        random = torch.Generator().manual_seed(rank())
        x = torch.randn(16, 40, generator=random, dtype=torch.float64).to(dtype)
        for reduction in ("own", "fp32", "bf16"):
            with start("cpu", 60.0, "fp32" if reduction == "own" else reduction) as ranks:
                torch.manual_seed(0)
                network = nn.Sequential(nn.Linear(40, 30), nn.SiLU(), nn.Linear(30, 1)).to(dtype)
                wrapped = network if reduction == "own" else ranks.wrap(network)
                wrapped(x).square().sum().backward()
            grads = [p.grad.clone() for p in network.parameters()]
            found[f"{reduction} {dtype}"] = torch.cat([g.flatten() for g in grads])
    return found


def vote() -> list[bool]:
    """The answers when rank 1 puts its flag up at the third of five calls."""
    with start("cpu", 60.0) as ranks:
        cast = Vote(ranks)
        return [cast(rank() == 1 and call == 2) for call in range(5)]


def agree() -> list[str]:
    """The complaint of equal and unequal configurations and facts."""
    said = []
    for config, facts in (
        ({"run": {"seed": 1, "threads": rank()}, "data": {"path": f"/disk{rank()}"}}, {}),
        ({"run": {"seed": 1 + rank()}}, {}),
        ({"run": {"seed": 1}}, {"torch": f"2.{rank()}"}),
    ):
        with start("cpu", 60.0) as ranks:
            try:
                ranks.agree(config, facts)
                said.append("")
            except ValueError as error:
                said.append(str(error))
    return said
