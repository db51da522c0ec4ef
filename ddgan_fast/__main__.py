"""``python -m ddgan_fast`` is the command ``ddgan-fast``: how torchrun starts each rank."""

import sys

from ddgan_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
