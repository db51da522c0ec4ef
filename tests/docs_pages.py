"""The documentation as tests read it: pages, links, names in code, blocks, and commands."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        *ROOT.glob("*.md"),
        *ROOT.glob(".github/*.md"),
        *ROOT.glob("docs/**/*.md"),
        *(ROOT / folder / "README.md" for folder in ("kernels", "benchmarks", "examples")),
        ROOT / "benchmarks/LOG.md",
    )
)
_FENCE = re.compile(r"^(?P<indent> *)```(?P<kind>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.M | re.S)
_LINK = re.compile(r"\[(?:[^\]\[]|!\[[^\]]*\]\([^)]*\))*\]\(\s*([^)\s]+)\s*\)")
_CODE = re.compile(r"`([^`]+)`")


class Block(NamedTuple):
    """A fenced block."""

    kind: str
    text: str


def text_of(page: str) -> str:
    """A page."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    """Its fenced blocks, in order."""
    return [Block(match["kind"], match["text"]) for match in _FENCE.finditer(text_of(page))]


def prose(page: str) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", text_of(page))


def links(page: str) -> list[str]:
    """Targets of links and images that lead to files of the project."""
    bare = _CODE.sub("", prose(page))
    # A picture inside a link hides the link from the first pattern.
    targets = _LINK.findall(bare) + re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", bare)
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def code(page: str) -> list[str]:
    """What stands between single backticks, on one line each."""
    return [" ".join(part.split()) for part in _CODE.findall(prose(page))]


def anchors(page: str) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    found: set[str] = set()
    for title in re.findall(r"^#+ (.+)$", prose(page), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-")
        known, number = slug, 0
        while slug in found:
            number += 1
            slug = f"{known}-{number}"
        found.add(slug)
    return found


def commands(text: str) -> list[list[str]]:
    """The commands of a block of shell, as words."""
    whole = text.replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in whole.splitlines()]
    found: list[list[str]] = []
    for words in lines:
        while "&&" in words:
            at = words.index("&&")
            found.append(words[:at])
            words = words[at + 1 :]
        found.append(words)
    return [words for words in found if words]
