"""The README's table of memory per preset: ``python -m benchmarks.memory_table`` writes it anew.

All of it is computed, by running each preset's training step on tensors without memory.
"""

from __future__ import annotations

from ddgan_fast import tables
from ddgan_fast.config import Config, load_config
from ddgan_fast.training.footprint import Memory, estimate_memory
from ddgan_fast.training.memory import estimated_micro_batch

from . import readme

BEGIN = "<!-- written by `python -m benchmarks.memory_table` -->"
END = "<!-- end of the table of memory -->"
# Images on one GPU where the preset's source trained: the presets' files name it.
PUBLISHED = {
    "celebahq256": 4,
    "lsun_church256": 8,
    "cifar10": 64,
    "stacked_mnist": 64,
    "digits": 64,
    "gaussians25": 512,
}
PRECISION = "bf16"
CARD = 11e9
# CUDA itself, workspaces of libraries, what the allocator loses: assumed, not measured.
RESERVE = 1.5e9


def row(preset: str) -> list[str]:
    """One preset: its parts at the published batch, and what fits a card of 11 GB."""
    images = PUBLISHED[preset]
    cfg = load_config(preset)
    plain = estimate_memory(cfg, images, PRECISION)
    row = [preset, str(images)]
    row += [_size(n) for n in (plain.weights, plain.gradients, plain.adam, plain.ema)]
    row += [_size(plain.activations), f"**{_size(plain.total)}**"]
    sides = finest(cfg)
    if not sides:
        return [*row, "-", _fitting(cfg)]
    again = load_config(preset, {"run.recompute": sides})
    return [*row, _again(estimate_memory(again, images, PRECISION), sides), _fitting(cfg, again)]


def finest(cfg: Config) -> list[int]:
    """The two finest resolutions, whose blocks keep the most; none where nothing is large."""
    size = cfg.model.image_size
    return [] if cfg.model.kind == "mlp" or size < 32 else [size, size // 2]


def _again(memory: Memory, sides: list[int]) -> str:
    listed = ", ".join(map(str, sides))
    return f"[{listed}]: {_size(memory.activations)}, **{_size(memory.total)}**"


def _fitting(*configs: Config) -> str:
    """The largest micro-batch of the whole batch on one card, plainly and with recomputation."""
    batch = configs[0].run.batch_size
    sizes = [
        estimated_micro_batch(cfg, batch, PRECISION, int(CARD - RESERVE)) for cfg in configs
    ]
    text = f"{sizes[0]} of {batch}"
    return text if sizes[-1] == sizes[0] else f"{text}; recomputing {sizes[-1]}"


def _size(count: int) -> str:
    """Decimal units, as cards are sold by."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def table(presets: list[str]) -> str:
    """The table in Markdown."""
    header = ["preset", "images per GPU", "weights", "gradients", "Adam", "EMA"]
    header += ["activations", "together", "`run.recompute`: activations, together"]
    header += ["micro-batch that fits 11 GB"]
    return tables.markdown(header, [row(preset) for preset in presets])


def main() -> None:
    """Write the table into README.md."""
    readme.write(BEGIN, END, table(list(PUBLISHED)))


if __name__ == "__main__":
    main()
