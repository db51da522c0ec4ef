"""Where a training step's time and memory go: the work of ``ddgan-fast profile``.

Nothing in the training code knows of it. ``timeline`` deals the time to phases, whose borders
``phases`` finds; ``session`` takes the steps; ``trace``, ``costs``, ``modules``, ``memory`` and
``ceilings`` measure; ``figures`` sums up, ``hints`` draws conclusions and ``report`` prints.
"""

from .profiler import profile

__all__ = ["profile"]
