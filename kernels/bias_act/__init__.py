"""Bias and leaky ReLU in one pass, alone or followed by FIR downsampling."""
