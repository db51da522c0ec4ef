"""``ddgan-fast prepare``: any source of images to shards that training reads at full speed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import Parser

_EPILOG = """\
The same command again goes on where it was stopped, and does nothing when all is done. Nothing is
written into SOURCE. Shards are ordinary WebDataset tars of uint8 arrays, with checksums.

examples:
  ddgan-fast prepare photos/ shards/ --resolution 256
  ddgan-fast train celebahq256 --data shards/
  ddgan-fast prepare --info shards/
  ddgan-fast prepare --verify shards/
"""


def main(argv: Sequence[str]) -> int:
    """Prepare, verify or describe."""
    arguments = _parse(argv)
    if arguments.info:
        return _info(arguments.info)
    if arguments.verify:
        return _verify(arguments.verify, arguments.workers)
    return _prepare(arguments)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("prepare", "Turn images of any kind into shards.", _EPILOG)
    parser.add_argument("source", nargs="?", metavar="SOURCE", help="folder, zip, LMDB, tar, ...")
    parser.add_argument("out", nargs="?", metavar="OUT", help="folder for the shards")
    add = parser.add_argument
    add("--resolution", type=int, default=256, metavar="N", help="side in pixels (default: 256)")
    add("--channels", type=int, default=3, metavar="N", help="1 grey, 3 RGB, 4 RGBA (default: 3)")
    add("--source", dest="kind", default="auto", metavar="KIND", help="kind of SOURCE if not clear")
    add("--split", default="train", help="train (default), validation or both, if SOURCE has them")
    add("--lsun-class", metavar="NAME", help="LSUN category below SOURCE")
    add("--limit", type=int, metavar="N", help="only the first N records")
    add("--filter", default="bilinear", help="bilinear (default), bicubic, lanczos or box")
    add("--crop", default="center", help="center (default), or none: reject what is not square")
    add("--encoded", action="store_true", help="keep png, jpg and webp files that fit as they are")
    add("--shard-images", type=int, default=2048, metavar="N", help="per shard (default: 2048)")
    add("--workers", type=int, metavar="N", help="processes (default: one per core)")
    add("--max-bad", type=int, default=0, metavar="N", help="unusable records allowed (default: 0)")
    add("--verify", metavar="OUT", help="compare all bytes of a prepared set with its checksums")
    add("--info", metavar="OUT", help="describe a prepared set, and write a contact sheet into it")
    arguments = parser.parse_args(argv)
    if not (arguments.info or arguments.verify) and arguments.out is None:
        raise ValueError("prepare what? Give SOURCE and OUT; see ddgan-fast prepare --help.")
    if (arguments.info or arguments.verify) and arguments.source:
        raise ValueError("--info and --verify take the prepared folder alone: leave the rest out.")
    return arguments


def _prepare(arguments: argparse.Namespace) -> int:
    from ..data.prepare import prepare, progress_of
    from ..data.prepare_request import Request

    options = vars(arguments).copy()
    del options["info"], options["verify"]
    try:
        outcome = prepare(Request(**options))
    except KeyboardInterrupt:
        count = progress_of(arguments.out)
        print(f"Stopped; {count:,} shards are complete. The same command goes on.", file=sys.stderr)
        raise
    manifest = outcome.manifest
    verb = "" if outcome.made else "already "
    left_out = f", {manifest.rejects:,} records left out" if manifest.rejects else ""
    print(
        f"{manifest.n:,} images {'x'.join(map(str, manifest.shape))} are {verb}in {arguments.out}: "
        f"{len(manifest.shards):,} shards, {manifest.nbytes / 1e9:,.3f} GB{left_out}, digest "
        f"{manifest.digest[:12]}."
    )
    print(f"Train on them: ddgan-fast train PRESET --data {arguments.out}")
    return 0


def _verify(out: str, workers: int | None) -> int:
    from ..data.prepare_progress import Meter
    from ..data.shards_check import verify
    from ..data.shards_format import read_manifest

    manifest = read_manifest(Path(out).expanduser())
    with Meter(manifest.n, verb="verifying") as meter:
        faults = verify(out, workers, meter.advance)
    for fault in faults:
        print(fault)
    if faults:
        raise RuntimeError(
            f"{out} has {len(faults):,} faults: delete the files named above and give the "
            "command that prepared it again: it makes them anew."
        )
    print(f"{out} is sound: {len(manifest.shards):,} shards, {manifest.n:,} images.")
    return 0


def _info(out: str) -> int:
    from ..data.shards import open_shards
    from ..data.shards_check import contact_sheet, facts
    from ..tables import align

    shards = open_shards(out)
    print("\n".join([f"Shards {out}", *align(facts(shards))]))
    try:
        print(f"Contact sheet: {contact_sheet(shards)}")
    except OSError as error:  # a read-only disk, say
        reason = f"{error.strerror}." if error.strerror else error
        print(f"No contact sheet: {reason}")
    return 0
