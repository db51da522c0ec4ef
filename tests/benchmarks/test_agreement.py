"""Distance of two results."""

import math

import pytest
import torch

from benchmarks.agreement import distance


def test_a_distance_is_relative_and_infinite_where_nothing_can_be_compared():
    want = torch.tensor([3.0, 4.0])
    assert distance(want + torch.tensor([0.3, -0.4]), want) == pytest.approx(0.1, rel=1e-6)
    assert distance(torch.tensor([[3.0, 4.0]]), want) == math.inf
    assert distance(torch.tensor([3.0, math.nan]), want) == math.inf
