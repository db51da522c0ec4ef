"""What a CUDA graph does, on the CPU: operators are recorded once and run again on the same memory.

Everything that Python computed while recording is frozen, as in a graph: a learning rate passed as
a number, a step count, a seed. Reading a value back to the host is refused, as in a capture.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

SYNCS = ("aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::is_nonzero")


class ReplayRecorder:
    """A ``graphs.Recorder`` without a GPU."""

    def __init__(self):
        self.recorded = 0

    def warm_up(self, work, times):
        for _ in range(times):
            work()

    def record(self, work):
        log = _Log()
        with log:
            work()
        self.recorded += 1
        return log.replay


class _Log(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.name().split(".")[0]
        if name in SYNCS:
            raise RuntimeError(f"{name} waits for the device inside a recorded step")
        out = func(*args, **kwargs)
        known = {_storage(v) for v in tree_iter((args, kwargs)) if isinstance(v, torch.Tensor)}
        fresh = [
            v if isinstance(v, torch.Tensor) and _storage(v) not in known else None
            for v in tree_iter(out)
        ]
        self.calls.append((func, args, kwargs, fresh))
        return out

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, fresh in self.calls:
            again = list(tree_iter(func(*args, **kwargs)))
            for kept, new in zip(fresh, again, strict=True):
                if kept is not None:
                    kept.copy_(new)


def _storage(tensor):
    return tensor.untyped_storage()._cdata
