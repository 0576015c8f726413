"""Rendering of the templates of this package, with all text escaped and made visible."""

import re
from typing import Any

from attnwatch.utils.extras import extra_needed
from attnwatch.utils.messages import counted

with extra_needed("report", "a page"):
    import jinja2
    from markupsafe import Markup

# Control characters, changes of the text direction, lone surrogates, and noncharacters.
_INVISIBLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def environment() -> jinja2.Environment:
    """Return the environment of the templates."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("attnwatch.report"),
        autoescape=True,
        finalize=lambda value: visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["counted"] = counted
    return made


def render(template: str, **context: Any) -> str:
    """Return a rendered template of this package."""
    return environment().get_template(template).render(context)


def visible(text: str) -> str:
    r"""Replace characters that HTML forbids, or that would hide or reverse the text around them.

    >>> visible("a\u202eb")
    'a\ufffdb'
    """
    return _INVISIBLE.sub("\ufffd", text)
