"""``python -m ddgan_fast.kernels``: compile csrc/ now instead of at its first use."""

import sys

from . import _build, cuda_library

try:
    print(cuda_library.compile_now())
except _build.BuildError as error:
    sys.exit(str(error))
