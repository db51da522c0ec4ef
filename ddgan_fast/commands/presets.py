"""``ddgan-fast presets``: the configurations that come along."""

from __future__ import annotations

from collections.abc import Sequence

from ..config import Config, list_presets, load_config
from ..tables import print_table
from ..validation import FILE_SOURCES
from . import Parser


def main(argv: Sequence[str]) -> int:
    """List the presets with one line each."""
    Parser(
        "presets",
        "List the presets that `ddgan-fast train` takes; `ddgan-fast train NAME --dry-run` shows "
        "all options of one.",
    ).parse_args(argv)
    rows = [(name, *_facts(load_config(name))) for name in list_presets()]
    print_table("Presets", ("name", "data", "size", "T", "batch", "steps"), rows)
    return 0


def _facts(cfg: Config) -> tuple[str, str, str, str, str]:
    model = cfg.model
    source, size = cfg.data.source, f"{model.image_size}x{model.image_size}x{model.num_channels}"
    return (
        "--data PATH" if source in FILE_SOURCES else source,
        "points" if model.kind == "mlp" else size,
        str(model.num_timesteps),
        str(cfg.run.batch_size),
        f"{cfg.run.steps:,}",
    )
