"""FIR resampling: insert zeros, pad, convolve, keep every n-th sample."""
