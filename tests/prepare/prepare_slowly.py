"""``ddgan-fast prepare`` on a source that lets the first shard through, and then takes its time."""

import sys
import time

from ddgan_fast.cli import main
from ddgan_fast.data import prepare
from ddgan_fast.data.records import Records


class Slow(Records):
    """Other records, with a pause before each but the first eight."""

    def __init__(self, inner):
        self.inner = inner
        self.kind, self.path, self.fingerprint = inner.kind, inner.path, inner.fingerprint

    def __len__(self):
        return len(self.inner)

    def name(self, i):
        return self.inner.name(i)

    def read(self, i):
        if i >= 8:
            time.sleep(1)
        return self.inner.read(i)


if __name__ == "__main__":
    open_source = prepare.open_source
    prepare.open_source = lambda *args: Slow(open_source(*args))
    sys.exit(main(sys.argv[1:]))
