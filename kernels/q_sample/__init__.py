"""Forward diffusion of a batch to the pair (x_t, x_{t+1})."""
