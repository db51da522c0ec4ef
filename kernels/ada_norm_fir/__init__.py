"""Group normalisation with per-sample scale and shift, SiLU, then FIR resampling by 2."""
