"""Ops of denoising diffusion GANs, usable in any network.

Each op is registered with torch.library (schema, fake, autograd) and has a plain-torch
implementation that is the truth for its other backends.
"""

if __name__ == "kernels":
    raise ImportError("import ddgan_fast.kernels: the name `kernels` belongs to another package.")

from . import decompositions
from .ada_norm.op import ada_group_norm_silu
from .ada_norm_fir.op import ada_group_norm_silu_resample
from .bias_act.op import bias_leaky_relu, bias_leaky_relu_down
from .posterior.op import sample_posterior
from .q_sample.op import q_sample_pair
from .registry import backend_report, check_environment, use_backend
from .upfirdn.op import upfirdn2d

decompositions.register()
check_environment()

__all__ = [
    "ada_group_norm_silu",
    "ada_group_norm_silu_resample",
    "backend_report",
    "bias_leaky_relu",
    "bias_leaky_relu_down",
    "q_sample_pair",
    "sample_posterior",
    "upfirdn2d",
    "use_backend",
]
