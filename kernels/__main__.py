"""``python -m ddgan_fast.kernels``: compile csrc/ now instead of at its first use."""

import sys

from . import _build, cuda_library


def main() -> int:
    """Print where the library lies."""
    try:
        print(cuda_library.compile_now())
    except _build.BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
