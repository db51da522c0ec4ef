"""Drawing batches of samples: precision, and one CUDA graph per batch size."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from .guidance import Condition
from .models.labels import told
from .samplers import Sampler, choose, draw
from .training.graphs import CudaRecorder, Recorder

if TYPE_CHECKING:
    from .sampling import LoadedGenerator

ENGINES = ("auto", "eager", "graph")
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")

Drawn = tuple[torch.Tensor, torch.Tensor | None]

# Recording costs about as much as this many batches.
_WORTH_RECORDING = 4
# A graph holds every kernel of every step.
_MOST_RECORDED = 100


class Drawer:
    """Draws samples of given numbers, each a function of key and number alone.

    Args:
        model: the generator, on its device.
        key: int64[1], Philox key.
        graphs: record a graph for every batch size that comes; else run operator by operator.
        precision: "fp32", "tf32", "bf16" or "fp16" (autocast of the generator).
        sampler: of a model that predicts noise; default its ancestral one.
        condition: classes of the samples, from ``guidance.bind``; default the null class.
        recorder: what records; default CUDA's.
    """

    def __init__(
        self,
        model: LoadedGenerator,
        key: torch.Tensor,
        *,
        graphs: bool = False,
        precision: str = "fp32",
        sampler: Sampler | None = None,
        condition: Condition | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        from .training.precision import Precision

        self._model, self._key = model, key
        self._sampler = sampler or choose(model.cfg)
        self._condition = condition
        self._precision = Precision(precision, model.device.type)
        self._recorder = recorder or (CudaRecorder(model.device) if graphs else None)
        self._recorded: dict[int, tuple[torch.Tensor, Drawn, Callable[[], None]]] = {}

    def draw(self, index: torch.Tensor) -> torch.Tensor:
        """Samples of these numbers, int64 [N] on the device: uint8 [N, H, W, C] or points [N, D].

        With graphs the tensor is overwritten by the next call.

        Raises:
            ValueError: the images hold NaN.
        """
        samples, bad = self._draw(index)
        if bad is not None and bad.item():
            raise ValueError("the images hold NaN: the network that made them has diverged")
        return samples

    def _draw(self, index: torch.Tensor) -> Drawn:
        with torch.no_grad(), self._precision.settings():
            if self._recorder is None:
                return self._samples(index)
            if len(index) not in self._recorded:
                self._record(index)
            own, out, replay = self._recorded[len(index)]
            own.copy_(index)
            replay()
            return out

    def _record(self, index: torch.Tensor) -> None:
        assert self._recorder is not None
        own = index.clone()
        found: list[Drawn] = []

        def work() -> None:
            found[:] = [self._samples(own)]

        self._recorder.warm_up(work, 1)
        replay = self._recorder.record(work)
        self._recorded[len(index)] = own, found[0], replay

    def _samples(self, index: torch.Tensor) -> Drawn:
        model = self._model

        def generator(
            x: torch.Tensor, t: torch.Tensor, z: torch.Tensor, label: torch.Tensor | None = None
        ) -> torch.Tensor:
            # Weights are cast anew at every call: autocast's cache does not belong into a graph.
            with self._precision.autocast(cache=False):
                return model(x, t, z, **told(label))

        drawn = draw(
            generator,
            model.diffusion,
            self._sampler,
            model.cfg.model,
            self._key,
            index,
            condition=self._condition,
        )
        return (drawn, None) if drawn.ndim == 2 else to_bytes(drawn)


def to_bytes(x: torch.Tensor) -> Drawn:
    """Pixels of images [N, C, H, W] as ``images.to_uint8`` makes them, on their device.

    Returns:
        uint8 [N, H, W, C], and bool []: some value was NaN.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    values = torch.floor((wide + 1) / 2 * 255 + 0.5).clamp(0, 255).nan_to_num()
    return values.to(torch.uint8).permute(0, 2, 3, 1).contiguous(), torch.isnan(wide).any()


def use_graphs(engine: str, device: torch.device, batches: int, evaluations: int = 1) -> bool:
    """Whether so many batches, of so many evaluations of the network each, are drawn by graphs.

    Raises:
        ValueError: an engine that does not exist, or graphs without a GPU.
    """
    if engine not in ENGINES:
        raise ValueError(f'the engine is {engine!r}: choose "auto", "eager" or "graph".')
    if engine == "graph" and device.type != "cuda":
        raise ValueError(
            f"the engine is 'graph', but CUDA graphs need a GPU and the model is on {device.type}: "
            'choose "auto" or "eager".'
        )
    worth = batches >= _WORTH_RECORDING and evaluations <= _MOST_RECORDED
    return engine == "graph" or (engine == "auto" and device.type == "cuda" and worth)
