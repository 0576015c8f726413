"""Texts as notebooks show them."""

import html


def as_html(text: str) -> str:
    """Return a text as HTML that keeps its lines, and in which nothing is markup.

    Example:
        >>> as_html("a < b")
        '<pre style="white-space: pre-wrap">a &lt; b</pre>'
    """
    return f'<pre style="white-space: pre-wrap">{html.escape(text)}</pre>'
