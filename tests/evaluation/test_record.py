"""Records of measurements on a disk that fills up."""

import json
import resource

import pytest

from ddgan_fast.evaluation import record


@pytest.fixture
def room():
    """Lets files grow to so many bytes only, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("left", [5, 0])
def test_a_full_disk_leaves_the_records_as_they_were(tmp_path, room, left):
    path = tmp_path / "metrics.jsonl"
    record.append(path, {"step": 1})
    size = path.stat().st_size
    room(size + left)
    with pytest.raises(OSError, match="the disk is full" if left else "too large"):
        record.append(path, {"step": 2, "metrics": {"fid": float("nan")}})
    assert path.stat().st_size == size
    room(resource.RLIM_INFINITY)
    record.append(path, {"step": 3})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 3]
