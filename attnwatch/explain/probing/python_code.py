"""Strings, comments, keywords and brackets in fragments of Python code."""

import keyword
import re
from dataclasses import dataclass

from attnwatch.utils.extras import extra_needed

# Prefixes of f-strings, whose braces pygments would treat as code outside the string.
_F_PREFIX = re.compile(r"(?<!\w)([rR]?)[fF]([rR]?)(?=[\"'])")


@dataclass(frozen=True)
class CodeMarks:
    """Marks of each character of a text.

    Attributes:
        in_string: True inside a string literal, including quotes and prefix.
        in_comment: True inside a comment, including its #.
        keyword: True inside a reserved word of Python.
        depth: number of open brackets around the character; a bracket is outside itself.
    """

    in_string: list[bool]
    in_comment: list[bool]
    keyword: list[bool]
    depth: list[int]


def mark_code(text: str) -> CodeMarks:
    """Mark the characters of a fragment of Python code, whose brackets and quotes may be unbalanced.

    A string without triple quotes ends with its line, and an unmatched closing bracket has no effect. The fragment is
    assumed not to begin inside a string.

    >>> marks = mark_code("f(x, 'a')  # b")
    >>> "".join("#" if mark else "." for mark in marks.in_string)
    '.....###......'
    >>> marks.depth
    [0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    """
    with extra_needed("explain", "a probe of Python code"):
        from pygments.lexers.python import PythonLexer
        from pygments.token import Comment, Punctuation, String
    marks, depth = CodeMarks([], [], [], []), 0
    for _, kind, part in PythonLexer().get_tokens_unprocessed(_F_PREFIX.sub(r"\1b\2", text)):
        if kind in Punctuation and part in (")", "]", "}"):
            depth = max(depth - 1, 0)
        marks.in_string.extend([kind in String] * len(part))
        marks.in_comment.extend([kind in Comment] * len(part))
        marks.keyword.extend([kind not in String and keyword.iskeyword(part)] * len(part))
        marks.depth.extend([depth] * len(part))
        if kind in Punctuation and part in ("(", "[", "{"):
            depth += 1
    return marks
