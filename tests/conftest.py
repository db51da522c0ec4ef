"""What every test runs under: one thread for each test process, and GPU tests only with a GPU."""

import os

import pytest

# Read by torch when it is imported, and by the processes that tests start. More threads than idle
# cores make these small steps ten times slower, and their sums differ in the last bit.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips the tests marked gpu where there is no CUDA device."""
    marked = [item for item in items if "gpu" in item.keywords]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
