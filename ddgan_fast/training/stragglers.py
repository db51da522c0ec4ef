"""Which rank holds up the others: time spent waiting for data, and computing, rank by rank."""

from __future__ import annotations

import time

import torch

from ddgan_fast.training.parallel import Ranks

_LONGER = 1.2
_LEAST_SHARE = 0.05


class RankTimes:
    """Collects every rank's times at a tick; the ranks meet there anyway.

    Args:
        ranks: this process among its peers.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._cpu = time.process_time()

    def read(self, seconds: float, waited: float) -> tuple[dict[str, float], str | None]:
        """Gather the times since the last call.

        Args:
            seconds: wall time of this rank's steps.
            waited: the part of it spent waiting for data.

        Returns:
            On rank 0 of several, scalars for the log, and a sentence when one rank waits for data
            much longer than the others; nothing elsewhere.
        """
        if self._ranks.world == 1:
            return {}, None
        cpu, before = time.process_time(), self._cpu
        self._cpu = cpu
        # A GPU's driver spins while it waits: there the processor's time says nothing.
        busy = cpu - before if self._ranks.device.type == "cpu" else float("nan")
        own = torch.tensor([seconds, waited, busy], dtype=torch.float64)
        parts = self._ranks.gather(own)
        if parts is None:
            return {}, None
        return compare(torch.stack(parts), self._ranks.hosts)


def compare(times: torch.Tensor, hosts: tuple[str, ...]) -> tuple[dict[str, float], str | None]:
    """Scalars and a sentence about the ranks' times.

    Args:
        times: [W, 3]: seconds of wall time, of waiting for data, of CPU time (NaN: unknown).
        hosts: name of each rank's machine.
    """
    shares = times[:, 1] / times[:, 0].clamp(min=1e-9)
    slowest = int(shares.argmax())
    median = float(shares.median())
    worst = float(shares[slowest])
    scalars = {
        "rank/wait_share_max": worst,
        "rank/wait_share_median": median,
        "rank/waits_longest": slowest,
    }
    cpu = times[:, 2]
    if not cpu.isnan().any():
        scalars |= {
            "rank/cpu_s_max": float(cpu.max()),
            "rank/cpu_s_median": float(cpu.median()),
            "rank/cpu_most": int(cpu.argmax()),
        }
    if worst <= _LONGER * median or worst - median < _LEAST_SHARE:
        return scalars, None
    return scalars, (
        f"Rank {slowest} ({hosts[slowest]}) waited for data {worst:.0%} of the time, the median "
        f"rank {median:.0%}: all ranks wait for it, so look at its disk, network and CPU load."
    )
