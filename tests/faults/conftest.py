"""Runs for the fault tests, with and without a fault."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))  # for tiny_runs

from fault_runs import FAULTY_RANK, short_run
from forked_ranks import ForkedRanks


@pytest.fixture(scope="session")
def forked_ranks(tmp_path_factory):
    """A process from which ranks are forked."""
    ranks = ForkedRanks(tmp_path_factory.mktemp("forked"))
    yield ranks
    ranks.close()


@pytest.fixture(scope="session")
def undisturbed(forked_ranks, tmp_path_factory):
    """The directory of the short run on two ranks, without any fault."""
    folder = tmp_path_factory.mktemp("undisturbed")
    codes, output = forked_ranks.run(2, FAULTY_RANK, short_run(folder))
    assert codes == [0, 0], output
    return folder / "run"
