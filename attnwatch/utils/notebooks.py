"""Display of texts in notebooks."""

import html


def as_html(text: str) -> str:
    """Return a text as escaped HTML that keeps its line breaks.

    Example:
        >>> as_html("a < b")
        '<pre style="white-space: pre-wrap">a &lt; b</pre>'
    """
    return f'<pre style="white-space: pre-wrap">{html.escape(text)}</pre>'
