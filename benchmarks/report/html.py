"""Markup that cannot be forgotten to be escaped: text is escaped unless it is ``Html``."""

from __future__ import annotations

import base64
import html
import io
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

_WIDEST = 1280
_HEAVIEST = 600_000
_LONG = 40
_VOID = ("br", "img", "link", "meta")


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


class Number(NamedTuple):
    """A cell that is sorted by its value, whatever its text."""

    value: float
    text: str


Cell = str | Number

NOTHING = "-"
"""A cell without a value."""


def escaped(content: object) -> Html:
    """The content as markup."""
    return content if isinstance(content, Html) else Html(html.escape(str(content)))


def tag(name: str, /, *content: object, **attributes: object) -> Html:
    """An element; ``class_`` is the attribute class, an underscore a hyphen, None leaves it out."""
    named = "".join(
        f' {key.strip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Html(f"<{name}{named}>")
    return Html(f"<{name}{named}>{join(content)}</{name}>")


def join(parts: Iterable[object]) -> Html:
    """One after another."""
    return Html("".join(escaped(part) for part in parts))


def number(value: object, form: str | None = None) -> Cell:
    """A cell for a number, to four digits unless ``form`` says otherwise; for others their text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return NOTHING if value is None else str(value)
    if not math.isfinite(value):
        return Number(math.inf, str(value))
    return Number(value, form.format(value) if form else four_digits(value))


def four_digits(value: float) -> str:
    """To four digits, those before the point never rounded away."""
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e15 else f"{value:.4g}"


def between(low: object, high: object) -> Cell:
    """A cell for a range, sorted by its lower end."""
    if not (isinstance(low, int | float) and isinstance(high, int | float)):
        return NOTHING
    return Number(low, f"{four_digits(low)} - {four_digits(high)}")


def table(caption: str, headers: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Html:
    """A table that can be sorted by every column and scrolls inside its own box.

    Columns without any value are left out, and so is a table without rows.
    """
    if not rows:
        return Html("")
    kept = [i for i in range(len(headers)) if any(row[i] != NOTHING for row in rows)]
    headers, rows = [headers[i] for i in kept], [[row[i] for i in kept] for row in rows]
    numeric = [any(isinstance(row[i], Number) for row in rows) for i in range(len(headers))]
    head = join(
        tag("th", title, scope="col", class_="number" if right else None)
        for title, right in zip(headers, numeric, strict=True)
    )
    body = join(tag("tr", *map(_cell, row, numeric)) for row in rows)
    inside = tag(
        "table", tag("caption", caption), tag("thead", tag("tr", head)), tag("tbody", body),
        class_="sortable" if len(rows) > 1 else None,
    )
    return tag("div", inside, class_="scroll", tabindex=0, role="region", aria_label=caption)


def _cell(cell: Cell, numeric: bool) -> Html:
    style = "number" if numeric else None
    if isinstance(cell, Number):
        return tag("td", cell.text, class_=style, data_sort=repr(float(cell.value)))
    if style is None and len(cell) > _LONG:
        style = "long"
    return tag("td", cell, class_=style)


def facts(pairs: Iterable[tuple[str, object]]) -> Html:
    """Names and what they are, those without a value left out."""
    known = [(name, value) for name, value in pairs if value not in (None, "")]
    rows = join(tag("div", tag("dt", name), tag("dd", value)) for name, value in known)
    return tag("dl", rows)


def section(anchor: str, title: str, *content: object) -> Html:
    """A chapter; nothing where it has no content."""
    inside = join(content)
    if not inside:
        return Html("")
    return tag("section", tag("h2", title), inside, id=anchor, aria_label=title)


def notes(sentences: Iterable[str]) -> Html:
    """A list of sentences; of those that differ in their numbers only, the first."""
    alike: dict[str, list[str]] = {}
    for sentence in sentences:
        alike.setdefault(re.sub(r"[\d.,]+", "#", sentence), []).append(sentence)
    told = [
        f"{first} (And {len(others):,} times alike, with other numbers.)" if others else first
        for first, *others in alike.values()
    ]
    return tag("ul", *(tag("li", sentence) for sentence in told)) if told else Html("")


def picture(path: Path, caption: str) -> Html:
    """An image file inside the page, made smaller where it is large.

    A file that is no picture becomes a sentence.
    """
    from PIL import Image

    try:
        data, kind = path.read_bytes(), "png"
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            if width > _WIDEST or len(data) > _HEAVIEST or image.format != "PNG":
                smaller = image.convert("RGB")
                smaller.thumbnail((_WIDEST, 4 * _WIDEST))
                width, height = smaller.size
                buffer = io.BytesIO()
                smaller.save(buffer, "WEBP", quality=88)
                data, kind = buffer.getvalue(), "webp"
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        return tag("p", f"{path.name} cannot be shown: {error}.")
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    shown = tag("img", src=source, alt=caption, width=width, height=height)
    return tag("figure", shown, tag("figcaption", caption))
