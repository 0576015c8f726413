"""HTML that is safe by construction: text is escaped unless it was built here."""

import html
import re
from collections.abc import Iterable

# Nothing may be loaded or run, whatever a text says.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --ink: #1d2129; --soft: #5b6472; --line: #d9dee6; --paper: #ffffff; --tint: #f4f6f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ee; --soft: #9aa4b2; --line: #343b46; --paper: #15181d; --tint: #1d2229; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .25rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; }
p { margin: .3rem 0 .8rem; max-width: 46rem; }
figure { margin: 0; min-width: min(26rem, 100%); max-width: 100%; }
figure p { max-width: 26rem; min-height: 2.9em; margin-bottom: .3rem; }
.soft { color: var(--soft); font-size: .92rem; }
.wide { overflow-x: auto; }
.pair { display: flex; flex-wrap: wrap; gap: .5rem 3rem; align-items: flex-start; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th { font-weight: 500; color: var(--soft); text-align: right; padding: .15rem .5rem; white-space: nowrap; }
thead th { text-align: center; }
td { padding: .15rem .55rem; text-align: right; }
table.rows td, table.rows th { border-bottom: 1px solid var(--line); text-align: left; }
table.heat td { border: 1px solid var(--paper); min-width: 2.6rem; text-align: center; padding: .12rem .25rem; }
.text { padding: .8rem 1rem; margin: 0 0 .9rem; background: var(--tint); border-radius: .4rem;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: 1.02rem; line-height: 1.95; }
.text span { border-radius: .2rem; padding: .12rem 0; }
.text .unknown { color: var(--soft); }
.claim { border-left: 3px solid var(--line); padding-left: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
svg { max-width: 100%; height: auto; }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif; }
"""


class Markup(str):
    """HTML that was built, not text."""

    __slots__ = ()


def element(tag: str, *children: str | Iterable[str], **attributes: str | float | None) -> Markup:
    """`<tag attributes>children</tag>`, everything escaped that is not `Markup`.

    Attributes are named as in HTML, with `_` for `-` and one at the end where Python reserves the name (`class_`);
    None leaves one out.
    """
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(_written(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{tag}{given}>{joined(*children)}</{tag}>")


def joined(*children: str | Iterable[str]) -> Markup:
    """Side by side."""
    return Markup("".join(_escaped(child) for child in children))


def page(title: str, *children: str | Iterable[str]) -> str:
    """A whole document, which loads nothing and runs nothing."""
    head = element(
        "head",
        Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        element("title", title),
        element("style", Markup(_STYLE)),
    )
    return f"<!doctype html>\n{element('html', head, element('body', *children), lang='en')}\n"


def rows(header: Iterable[str], body: Iterable[Iterable[str]]) -> Markup:
    """A table of text."""
    head = element("tr", (element("th", cell, scope="col") for cell in header))
    lines = (element("tr", (element("td", cell) for cell in line)) for line in body)
    table = element("table", element("thead", head), element("tbody", lines), class_="rows")
    return element("div", table, class_="wide")


# Control characters, those that turn the direction of what follows, halves of surrogate pairs, and no characters.
_INVISIBLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def _escaped(child: str | Iterable[str]) -> str:
    if isinstance(child, Markup):
        return child
    if isinstance(child, str):
        return html.escape(visible(child))
    return "".join(_escaped(each) for each in child)


def visible(text: str) -> str:
    """Nothing in it that HTML forbids, or that would hide or turn what stands beside it."""
    return _INVISIBLE.sub("\ufffd", text)


def _written(value: str | float) -> str:
    return visible(value) if isinstance(value, str) else f"{value:.6g}"
