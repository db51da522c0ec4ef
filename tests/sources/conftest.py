"""Sources are read without a trace: no new file beside them, no cache but in the test's folder."""

import pytest


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory, monkeypatch):
    home = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home


def listing(folder):
    """Every file below a folder with its size and time."""
    return {
        str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in folder.rglob("*")
    }


@pytest.fixture
def unchanged(tmp_path):
    """Call it before reading; afterwards nothing below tmp_path may have changed."""
    before = []
    yield lambda: before.append(listing(tmp_path))
    assert all(seen == listing(tmp_path) for seen in before)
