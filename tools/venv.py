"""Makes, repairs or merely checks the virtual environment that the Makefile's targets run in.

The environment bears a stamp of what it was made from. While the stamp still holds, nothing is
done. An environment that an interrupted or damaging hand left behind is made anew.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INPUTS = ("setup.py", "pyproject.toml", "tools/venv.py")
STAMP = "ddgan_fast.json"
STAMP_KEYS = {"executable", "python", "inputs", "root", "extras", "torch", "paths"}
UNFINISHED = "ddgan_fast.unfinished"
BUILD_TOOL = "setuptools>=77"
TORCH = "torch>=2.11"
# Asking for this very release gives the CPU build wherever a CPU wheel of it is at hand.
CPU_TORCH = "torch==2.13.0"
# The release that the tests of the Triton kernels' machine code were written with. Only where
# there is none: the CUDA builds of torch insist on their own.
TRITON = "triton==3.6.0"

PROBE = """
import importlib.metadata, json, os, sys, sysconfig
facts = {
    "executable": sys.executable,
    "base": os.path.realpath(sys._base_executable),
    "prefix": os.path.realpath(sys.prefix),
    "nested": sys.prefix != sys.base_prefix,
    "version": list(sys.version_info[:3]),
    "site": [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")],
}
for module in ("pip", "ensurepip"):
    try:
        __import__(module)
        facts[module] = True
    except ImportError:
        facts[module] = False
try:
    facts["triton"] = importlib.metadata.version("triton")
except importlib.metadata.PackageNotFoundError:
    facts["triton"] = None
try:
    import torch
    facts["torch"], facts["torch_path"] = torch.__version__, torch.__file__
except Exception:
    facts["torch"] = facts["torch_path"] = None
print()
print(json.dumps(facts))
"""


def probe(python: str | Path) -> dict | None:
    """What an interpreter is and has; None when it does not run."""
    try:
        done = subprocess.run([python, "-c", PROBE], capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.CalledProcessError):
        return None


def fits_torch(facts: dict | None) -> bool:
    """Whether the probed interpreter imports a torch that is new enough."""
    if not facts or not facts["torch"]:
        return False
    return tuple(int(part) for part in re.findall(r"\d+", facts["torch"])[:2]) >= (2, 11)


def has_driver() -> bool:
    """Whether an NVIDIA driver answers."""
    tool = shutil.which("nvidia-smi")
    return tool is not None and subprocess.run([tool], capture_output=True).returncode == 0


def identity() -> list[str]:
    """The interpreter that runs this file, whatever name it was called by."""
    return [os.path.realpath(sys._base_executable), os.path.realpath(sys.prefix)]


def digest() -> str:
    """Hash of the files that decide what is installed."""
    return hashlib.sha256(b"\0".join((ROOT / name).read_bytes() for name in INPUTS)).hexdigest()


def read_stamp(venv: Path) -> dict | None:
    """The stamp of a finished environment; None where there is none of this kind."""
    try:
        stamp = json.loads((venv / STAMP).read_text())
    except (OSError, ValueError):
        return None
    return stamp if isinstance(stamp, dict) and stamp.keys() == STAMP_KEYS else None


def is_whole(stamp: dict) -> bool:
    """Whether all that was there when the stamp was written still is."""
    return all(os.path.exists(path) for path in stamp["paths"])


def is_current(venv: Path, extras: list[str], chosen: bool) -> bool:
    """Whether the environment can be used as it is."""
    stamp = read_stamp(venv)
    return (
        stamp is not None
        and is_whole(stamp)
        and stamp["inputs"] == digest()
        and stamp["root"] == str(ROOT)
        and set(extras) <= set(stamp["extras"])
        and not (chosen and stamp["python"] != identity())
        and not (stamp["torch"] == "cpu" and has_driver())
    )


def must_remake(venv: Path, chosen: bool) -> bool:
    """Whether installing into what is there would be wrong or is not possible."""
    stamp = read_stamp(venv)
    facts = probe(venv / "bin/python")
    if facts is None or not facts["pip"] or facts["version"] < [3, 11] or not facts["nested"]:
        return True
    if (venv / UNFINISHED).exists() or (stamp and not is_whole(stamp)):
        return True
    if chosen and (stamp is None or stamp["python"] != identity()):
        return True
    return stamp is not None and stamp["torch"] == "cpu" and has_driver()


def pip(venv: Path, *args: str) -> bool:
    """Runs pip in the environment; whether it succeeded."""
    quiet = [] if sys.stdout.isatty() else ["--quiet"]
    env = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_USER": "0"}
    command = [venv / "bin/python", "-m", "pip", "install", *quiet, *args]
    return subprocess.run(command, cwd=ROOT, env=env).returncode == 0


def create(venv: Path, interpreter: dict) -> None:
    """An empty environment; one that sees the interpreter's torch where that is new enough."""
    foreign = venv.is_dir() and any(venv.iterdir()) and not (venv / "pyvenv.cfg").is_file()
    if foreign and venv.name != ".venv":
        sys.exit(f"{venv} is not a virtual environment; remove it or name another with VENV=.")
    if not interpreter["ensurepip"]:
        sys.exit(
            f"{interpreter['executable']} cannot make virtual environments (its ensurepip is "
            "missing): install your system's python3-venv package, or name another with PYTHON=."
        )
    keeps_torch = fits_torch(interpreter)
    command = [interpreter["executable"], "-m", "venv", "--clear", str(venv)]
    if keeps_torch:
        command.append("--system-site-packages")
    if subprocess.run(command).returncode != 0:
        sys.exit(f"{interpreter['executable']} could not make the environment {venv}; see above.")
    if keeps_torch and interpreter["nested"]:
        # An environment made from an environment sees only the base interpreter's packages.
        site = Path(probe(venv / "bin/python")["site"][0])
        (site / "parent_environment.pth").write_text("\n".join(dict.fromkeys(interpreter["site"])))


def install_torch(venv: Path, before: str) -> str:
    """Sees to a torch in the environment; the choice made: "kept", "cpu" or "cuda"."""
    facts = probe(venv / "bin/python")
    if fits_torch(facts):
        print(f"Keeping torch {facts['torch']}.", flush=True)
        return before
    if has_driver():
        print("Installing torch with CUDA, as an NVIDIA driver answers.", flush=True)
        choice, installed = "cuda", pip(venv, TORCH)
    else:
        print("Installing the CPU build of torch, as no NVIDIA driver answers.", flush=True)
        choice, installed = "cpu", pip(venv, CPU_TORCH)
        if not installed:
            print(f"{CPU_TORCH} is not to be had here: taking the newest torch.", flush=True)
            installed = pip(venv, TORCH)
    if not installed:
        sys.exit("pip could not install torch (its reason is above); try the same command again.")
    return choice


def install_triton(venv: Path) -> None:
    """Sees to a Triton in the environment; where the tested release is missing, pip finds one."""
    if probe(venv / "bin/python")["triton"] is not None:
        return
    print("Installing Triton, whose interpreter and compiler the tests use.", flush=True)
    if not pip(venv, TRITON):
        print(f"{TRITON} is not to be had here: leaving the choice to pip.", flush=True)


def install(venv: Path, extras: list[str], before: str) -> str:
    """Installs torch and the project with its extras; the choice of torch."""
    choice = install_torch(venv, before)
    if "test" in extras and sys.platform == "linux":
        install_triton(venv)
    print(f"Installing ddgan_fast with the extras {', '.join(extras)}.", flush=True)
    # The build tool in the environment itself spares every install an isolated one of its own.
    project = ["--no-build-isolation", "--editable", f".[{','.join(extras)}]"]
    if not (pip(venv, BUILD_TOOL) and pip(venv, *project)):
        sys.exit("pip could not install ddgan_fast (its reason is above); try the same again.")
    return choice


def works(venv: Path) -> bool:
    """Whether the environment's Python imports what was installed."""
    command = [venv / "bin/python", "-c", "import torch, ddgan_fast"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(done.stderr, end="", file=sys.stderr)
    return done.returncode == 0


def write_stamp(venv: Path, interpreter: dict, extras: list[str], choice: str) -> None:
    """Records what the environment was made from, and the paths whose loss means damage."""
    facts = probe(venv / "bin/python")
    skipped = (".dist-info", ".egg-info", ".pth")
    packages = [
        str(path)
        for site in dict.fromkeys(facts["site"])
        for path in Path(site).iterdir()
        if not path.name.startswith(("__", "~")) and not path.name.endswith(skipped)
    ]
    commands = [str(venv / "bin" / name) for name in ("python", "ddgan-fast")]
    stamp = {
        "executable": interpreter["executable"],
        "python": [interpreter["base"], interpreter["prefix"]],
        "inputs": digest(),
        "root": str(ROOT),
        "extras": extras,
        "torch": choice,
        "paths": [*commands, facts["torch_path"], *packages],
    }
    temporary = venv / f"{STAMP}.tmp"
    temporary.write_text(json.dumps(stamp, indent=1))
    os.replace(temporary, venv / STAMP)
    print(f"{venv} is ready: torch {facts['torch']}.", flush=True)


def source_of(venv: Path, stamp: dict | None, chosen: bool) -> dict:
    """The interpreter to make the environment from: the chosen, the one before, or this one."""
    facts = None
    if stamp and not chosen:
        facts = probe(stamp["executable"])
    inside = os.path.realpath(sys.prefix) == os.path.realpath(venv)
    return facts or probe(sys._base_executable if inside else sys.executable)


def set_up(venv: Path, extras: list[str], chosen: bool) -> None:
    """Brings the environment up to date, making it anew where that is needed."""
    stamp = read_stamp(venv)
    interpreter = source_of(venv, stamp, chosen)
    remake = must_remake(venv, chosen)
    before = stamp["torch"] if stamp and not remake else "kept"
    extras = sorted({*extras, *(stamp["extras"] if stamp else ())})
    while True:
        version = ".".join(map(str, interpreter["version"]))
        print(f"Setting up {venv} with Python {version}; later calls skip this.", flush=True)
        if remake:
            create(venv, interpreter)
        (venv / UNFINISHED).touch()
        (venv / STAMP).unlink(missing_ok=True)
        try:
            choice = install(venv, extras, before)
        except SystemExit:
            # What pip refused as a whole left nothing half done, so the rest need not go.
            (venv / UNFINISHED).unlink()
            raise
        if works(venv):
            break
        if remake:
            sys.exit(f"{venv} was made anew and still does not import ddgan_fast; see above.")
        remake, before = True, "kept"
    write_stamp(venv, interpreter, extras, choice)
    (venv / UNFINISHED).unlink()


def take(lock: int) -> None:
    """Waits until no other set-up of this tree is at work."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:
        # Some network file systems lock no folders; two set-ups at once are unlikely there too.
        print("This file system has no locks: run one make at a time.", file=sys.stderr)


def main() -> None:
    """Checks the environment and sets it up if needed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("extras", help="extras of ddgan_fast to install, separated by commas")
    parser.add_argument("--chosen", action="store_true", help="the caller named this Python")
    args = parser.parse_args()
    venv = Path(os.path.abspath(ROOT / (os.environ.get("VENV") or ".venv")))
    extras = args.extras.split(",")
    chosen = args.chosen and os.path.realpath(sys.prefix) != os.path.realpath(venv)
    if is_current(venv, extras, chosen):
        return
    lock = os.open(ROOT, os.O_RDONLY)
    try:
        take(lock)
        if not is_current(venv, extras, chosen):
            set_up(venv, extras, chosen)
    finally:
        os.close(lock)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("Interrupted; the same command starts the set-up again.")
