"""Sampling the Gaussian posterior q(x_t | x_0, x_{t+1})."""
