"""Fast training and sampling of denoising diffusion GANs."""

from pathlib import Path as _Path

__version__ = "0.1.0"

# In a source tree the folders kernels/, benchmarks/ and csrc/ lie beside this package and are
# installed inside it; when the tree itself is imported, the parent folder supplies them.
_here = _Path(__file__).resolve().parent
if not (_here / "kernels").is_dir() and (_here.parent / "kernels" / "__init__.py").is_file():
    __path__.append(str(_here.parent))
