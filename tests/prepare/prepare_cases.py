"""Small sources, and short ways to prepare them."""

import numpy as np

from ddgan_fast.data.prepare import prepare
from ddgan_fast.data.prepare_request import Request
from ddgan_fast.data.records import Records

N = 23


def photo(i, height=12, width=10):
    return np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)


def make(source, out, **options):
    defaults = {"resolution": 8, "shard_images": 4, "workers": 1}
    return prepare(Request(str(source), str(out), **{**defaults, **options}))


def content(folder):
    """Every file below a folder."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def command(source, out, *options, resolution=8, shard_images=4):
    words = ["prepare", str(source), str(out), "--resolution", str(resolution)]
    return [*words, "--shard-images", str(shard_images), "--workers", "2", *options]


class Watched(Records):
    """Other records; counts what is read, and does something before."""

    def __init__(self, inner, hook=None):
        self.inner, self.hook, self.seen = inner, hook, []
        self.kind, self.path, self.fingerprint = inner.kind, inner.path, inner.fingerprint
        self.labels, self.class_names, self.flips = inner.labels, inner.class_names, inner.flips

    def __len__(self):
        return len(self.inner)

    def name(self, i):
        return self.inner.name(i)

    def read(self, i):
        self.seen.append(i)
        if self.hook:
            self.hook(i)
        return self.inner.read(i)


SHARD_N = 11
SHAPE = (8, 8, 3)


def pixels(i, shape=SHAPE):
    return np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8)


EXPECTED = np.stack([pixels(i) for i in range(SHARD_N)])


def make_set(source, out, **options):
    """Like make(); the folder of the set."""
    make(source, out, **options)
    return out


def damaged(path, change):
    """Changes the bytes of a file."""
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


def flip(place):
    return lambda data: data.__setitem__(place, data[place] ^ 1)
