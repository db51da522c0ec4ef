"""What is to be prepared, and whether it can work and fits what lies in the output folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddgan_fast.data.images import CROPS, FILTERS, MODES, Geometry
from ddgan_fast.data.prepare_shard import Recipe
from ddgan_fast.data.records import Records
from ddgan_fast.data.shards_format import MANIFEST, PROGRESS

_RULES = "exif upright, alpha dropped, shorter side resized"
_OPTIONS = {
    "resolution": "--resolution",
    "channels": "--channels",
    "filter": "--filter",
    "crop": "--crop",
    "encoded": "--encoded",
    "shard_images": "--shard-images",
    "records": "the number of records (--limit)",
    "rules": "the rules of this version",
}


@dataclass(frozen=True)
class Request:
    """What to prepare, and how."""

    source: str
    """Where the source lies."""
    out: str
    """Folder of the shards."""
    kind: str = "auto"
    """Kind of the source; "auto" finds out."""
    split: str = "train"
    """Part of a source that has parts: train, validation or both."""
    lsun_class: str | None = None
    """LSUN category below the source."""
    limit: int | None = None
    """Use only the first so many records."""
    resolution: int = 256
    """Side of the prepared images in pixels."""
    channels: int = 3
    """1 (grey), 3 (RGB) or 4 (RGBA)."""
    filter: str = "bilinear"
    """Filter that resizes: bilinear, bicubic, lanczos or box."""
    crop: str = "center"
    """"center", or "none" to reject images that are not square."""
    encoded: bool = False
    """Keep files that fit as they are instead of pixels."""
    shard_images: int = 2048
    """Records per shard."""
    workers: int | None = None
    """Processes; default one per core."""
    max_bad: int = 0
    """How many records may be unusable."""

    @property
    def recipe(self) -> Recipe:
        """What becomes of a record."""
        geometry = Geometry(self.filter, self.crop)
        return Recipe(self.resolution, self.channels, geometry, self.encoded)


def check(request: Request) -> None:
    """Refuses values that cannot work."""
    for name in ("limit", "resolution", "shard_images", "workers"):
        value = getattr(request, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}: it must be at least 1.")
    if request.max_bad < 0:
        raise ValueError(f"--max-bad is {request.max_bad}: it must be at least 0.")
    for name, allowed in (("channels", MODES), ("filter", FILTERS), ("crop", CROPS)):
        if getattr(request, name) not in allowed:
            listed = ", ".join(map(str, allowed))
            raise ValueError(f"--{name} is {getattr(request, name)}: allowed are {listed}.")


def check_places(source: Path, out: Path) -> None:
    """Refuses an output folder inside the source, or one with other things in it."""
    if source.exists() and out.resolve().is_relative_to(source.resolve()):
        raise ValueError(
            f"{out} lies inside the source {source}, where nothing is ever written: choose another "
            "folder."
        )
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: give a folder for the shards.")
    known = any((out / name).exists() for name in (MANIFEST, PROGRESS))
    if out.is_dir() and not known and any(out.iterdir()):
        raise ValueError(f"the folder {out} is not empty and holds no shards: give a new one.")


def job_of(request: Request, records: Records, n: int) -> dict[str, Any]:
    """What decides the result; a set is only ever continued for the same."""
    names = ("resolution", "channels", "filter", "crop", "encoded", "shard_images")
    return {
        "source": {
            "kind": records.kind,
            "name": records.path.name,
            "fingerprint": records.fingerprint,
            "records": n,
        },
        "transform": {"rules": _RULES, **{name: getattr(request, name) for name in names}},
    }


def compare(out: Path, begun: dict[str, Any] | None, wanted: dict[str, Any]) -> None:
    """Refuses to mix two requests in one folder."""
    if begun is None:
        return
    old, new = ({**side["source"], **side["transform"]} for side in (begun, wanted))
    changed = [
        f"{text} was {old.get(name)}, now {new[name]}"
        for name, text in _OPTIONS.items()
        if old.get(name) != new[name]
    ]
    if old["kind"] != new["kind"]:
        changed.insert(0, f"the source was of kind {old['kind']}, now {new['kind']}")
    elif old["fingerprint"] != new["fingerprint"]:
        changed.insert(0, f"the source was {old['name']} with other content")
    if changed:
        raise ValueError(
            f"{out} was begun otherwise ({'; '.join(changed)}): choose another folder, or delete "
            "this one to prepare it anew."
        )
