"""The style and the script that every report carries inside itself."""

from __future__ import annotations

from .html import Html, join, tag

_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)

CSS = """
:root {
  color-scheme: light dark;
  --page: #fff; --ink: #1c2026; --soft: #5b6470; --rule: #d9dde3; --stripe: #f5f6f8;
  --link: #0a58c2;
  --c0: #1f6fc4; --c1: #c2530a; --c2: #1f8a4c; --c3: #9c3fb5; --c4: #b3261e; --c5: #6b6f00;
  --c6: #007c89; --c7: #7a5230; --c8: #c2257a; --c9: #4b5563;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171c; --ink: #e6e9ee; --soft: #a3acb9; --rule: #353c47; --stripe: #1b1f26;
    --link: #7fb2ff;
    --c0: #6aaeff; --c1: #ff9d5c; --c2: #5fd08e; --c3: #d897ee; --c4: #ff8a80; --c5: #d4d85a;
    --c6: #4dd0e1; --c7: #cfa27a; --c8: #ff7fbf; --c9: #b4bdc9;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1rem clamp(.75rem, 3vw, 2rem) 4rem; max-width: 76rem;
  background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  overflow-wrap: break-word;
}
h1 { margin: .5rem 0 0; font-size: 1.7rem; line-height: 1.2; }
h2 { margin: 2.5rem 0 .5rem; padding-top: .5rem; font-size: 1.3rem;
  border-top: 1px solid var(--rule); }
h3 { margin: 1.5rem 0 .25rem; font-size: 1.05rem; }
p, ul { margin: .5rem 0; max-width: 48rem; }
ul { padding-left: 1.2rem; }
a { color: var(--link); }
code { font-size: .85em; overflow-wrap: anywhere; }
.lead { color: var(--soft); }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1rem; padding: 0; list-style: none;
  max-width: none; }
.scroll { max-width: 100%; margin: .75rem 0; overflow-x: auto; border: 1px solid var(--rule);
  border-radius: 6px; }
.scroll:focus-visible, button:focus-visible, a:focus-visible {
  outline: 2px solid var(--link); outline-offset: 1px; }
table { width: 100%; border-collapse: collapse; font-size: .85rem;
  font-variant-numeric: tabular-nums; }
caption { padding: .5rem .75rem; text-align: left; font-weight: 600; }
th, td { padding: .35rem .75rem; text-align: left; vertical-align: top;
  border-top: 1px solid var(--rule); }
td { min-width: 3.5rem; max-width: 28rem; }
td.long { min-width: 13rem; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
tbody tr:nth-child(odd) { background: var(--stripe); }
.number { text-align: right; }
td.number { white-space: nowrap; }
th button { margin: 0; padding: 0; border: 0; background: none; color: inherit; font: inherit;
  text-align: inherit; cursor: pointer; }
th button::after { content: "\\2195"; padding-left: .3em; opacity: .45; }
th[aria-sort=ascending] button::after { content: "\\2191"; opacity: 1; }
th[aria-sort=descending] button::after { content: "\\2193"; opacity: 1; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(9.5rem, 100%), 1fr));
  gap: .5rem 1.25rem; margin: .75rem 0; }
dt { color: var(--soft); font-size: .8rem; }
dd { margin: 0; overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr));
  gap: 1rem; margin: .75rem 0; }
.charts.wide { grid-template-columns: repeat(auto-fill, minmax(min(34rem, 100%), 1fr)); }
.pictures { display: grid; gap: 1rem; margin: .75rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(13.5rem, 100%), 1fr)); }
.pictures.large { grid-template-columns: minmax(0, 60rem); }
figure { margin: 0; min-width: 0; break-inside: avoid; }
figure svg { display: block; width: 100%; height: auto; }
figure img { display: block; max-width: 100%; height: auto; }
figure img { border-radius: 4px; background: #fff; }
figcaption { margin-top: .25rem; color: var(--soft); font-size: .85rem; }
svg text { font-family: inherit !important; }
@media print {
  :root {
    color-scheme: light;
    --page: #fff; --ink: #000; --soft: #444; --rule: #bbb; --stripe: #f2f2f2; --link: #000;
    --c0: #1f6fc4; --c1: #c2530a; --c2: #1f8a4c; --c3: #9c3fb5; --c4: #b3261e; --c5: #6b6f00;
    --c6: #007c89; --c7: #7a5230; --c8: #c2257a; --c9: #4b5563;
  }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav, th button::after { display: none; }
  .scroll { overflow: visible; border: 0; }
  table { font-size: 7.5pt; }
  th, td { padding: 2pt 4pt; min-width: 0; }
  h2, h3, caption { break-after: avoid; }
  tr { break-inside: avoid; }
  .charts.wide { grid-template-columns: 1fr 1fr; }
}
"""

SCRIPT = """
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const key = (row, i) => {
    const cell = row.cells[i];
    return cell.dataset.sort === undefined ? cell.textContent.trim() : Number(cell.dataset.sort);
  };
  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return a.localeCompare(b, "en", {numeric: true});
  };
  heads.forEach((head, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.title = "Sort by this column";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => (down ? -1 : 1) * compare(key(a, i), key(b, i)));
      table.tBodies[0].append(...rows);
    });
  });
}
"""


def page(title: str, lead: Html, sections: list[tuple[str, str, Html]]) -> str:
    """The whole file.

    Args:
        title: of the page.
        lead: under the title.
        sections: anchor, title and content of each chapter that has any.
    """
    links = [tag("li", tag("a", name, href=f"#{anchor}")) for anchor, name, _ in sections]
    head = join([
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        # Whatever the data hold: nothing is loaded from anywhere.
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Html(CSS)),
    ])
    body = join([
        tag("header", tag("h1", title), lead),
        tag("nav", tag("ul", *links), aria_label="Sections"),
        tag("main", *(content for _, _, content in sections)),
        tag("script", Html(SCRIPT)),
    ])
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{body}</body></html>\n'
