"""torch.compile for the parts of a step: a switch per part, caches that outlive the process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..kernels._build import cache_folder

# Kinds of calls that a part is compiled for. All engines of a process share the compiled code, and
# torch by itself refuses the ninth.
_MOST_KINDS = 64


class Compilable(nn.Module):
    """A module that runs as it is, or compiled, on the same parameters.

    Data-parallel wrappers go around it, so that a run can change its mind.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self._compiled: Callable[..., Any] | None = None
        self.paused = False
        """Run the module itself for a while, and keep what was compiled."""

    def compile_by(self, backend: str) -> None:
        """From now on compile, at the first call of each kind."""
        # Not a submodule: its parameters would count twice.
        compiled = torch.compile(self.inner, backend=backend, fullgraph=True, dynamic=False)
        object.__setattr__(self, "_compiled", compiled)

    def compile_no_more(self) -> None:
        """Run the module itself again."""
        object.__setattr__(self, "_compiled", None)

    def forward(self, *args: Any) -> Any:
        if self._compiled is None or self.paused:
            return self.inner(*args)
        with tracing_gradients():
            return self._compiled(*args)


@contextlib.contextmanager
def tracing_gradients() -> Iterator[None]:
    """Let the compiler follow torch.autograd.grad inside a module, as R1 needs it.

    Inside DistributedDataParallel it must not cut the module at the buckets of gradients, as it
    does by default: R1's gradient crosses the cuts.
    """
    import torch._dynamo

    with torch._dynamo.config.patch(
        trace_autograd_ops=True, optimize_ddp=False, recompile_limit=_MOST_KINDS
    ):
        yield


def missing() -> str | None:
    """Why this torch cannot compile a training step, or None."""
    import torch._dynamo

    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        return f"torch {torch.__version__} cannot trace torch.autograd.grad, which R1 needs"
    return None


def keep_caches() -> Path:
    """Let compiled code outlive the process, where nothing else was asked for; returns where.

    All ranks of a node and all later runs share the folder.
    """
    folder = cache_folder() / "compiled" / f"torch-{torch.__version__}"
    chosen = Path(os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor")))
    os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))
    return chosen


def cache_counts() -> tuple[int, int]:
    """Pieces of code that this process took from the cache on disk, and that it compiled."""
    from torch._dynamo.utils import counters

    found = counters["inductor"]
    return found["fxgraph_cache_hit"], found["fxgraph_cache_miss"]
