"""Group normalisation with per-sample scale and shift, then SiLU."""
