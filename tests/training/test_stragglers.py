"""Which rank holds up the others."""

import math

import pytest
import torch

from ddgan_fast.training.parallel import Ranks
from ddgan_fast.training.stragglers import RankTimes, compare

HOSTS = ("a", "b", "c", "d")


def test_rank_that_waits_for_data_is_named():
    times = torch.tensor(
        [[10.0, 0.1, 5.0], [10.0, 4.1, 3.0], [10.0, 0.2, 6.0], [10.0, 0.3, 5.5]]
    ).double()
    scalars, said = compare(times, HOSTS)
    assert scalars["rank/wait_share_max"] == pytest.approx(0.41)
    assert scalars["rank/wait_share_median"] == pytest.approx(0.02)
    assert (scalars["rank/waits_longest"], scalars["rank/cpu_most"]) == (1, 2)
    assert (scalars["rank/cpu_s_max"], scalars["rank/cpu_s_median"]) == (6.0, 5.0)
    assert said.startswith("Rank 1 (b) waited for data 41% of the time, the median rank 2%:")


@pytest.mark.parametrize(
    "waits",
    [
        [0.01, 0.02, 0.01, 0.01],  # twice as long, but of nothing
        [5.0, 5.9, 5.0, 5.0],  # 18 % longer
        [3.0, 3.0, 3.0, 3.0],
    ],
)
def test_ranks_that_are_alike_are_not_worth_a_sentence(waits):
    times = torch.tensor([[10.0, wait, math.nan] for wait in waits], dtype=torch.float64)
    scalars, said = compare(times, HOSTS)
    assert said is None
    assert sorted(scalars) == [
        "rank/wait_share_max",
        "rank/wait_share_median",
        "rank/waits_longest",
    ]


def test_one_rank_has_nobody_to_compare_with():
    assert RankTimes(Ranks(0, 1, torch.device("cpu"))).read(1.0, 0.9) == ({}, None)
