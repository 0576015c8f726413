"""What the characters of Python code are. Fragments do: nothing needs to be closed, or to have been opened."""

import keyword
import re
from dataclasses import dataclass

_PREFIX = r"(?:(?<!\w)[rbfuRBFU]{1,2})?"
_PARTS = re.compile(
    rf"""
    (?P<comment>\#[^\n]*)
    | (?P<string>
        {_PREFIX}(?P<triple>\"\"\"|''')(?:\\.|(?!(?P=triple)).)*(?:(?P=triple)|\Z)
        | {_PREFIX}(?P<quote>["'])(?:\\(?:.|\Z)|(?!(?P=quote))[^\\\n])*(?:(?P=quote)|(?=\n)|\Z)
    )
    | (?P<word>[^\W\d]\w*)
    | (?P<opening>[(\[{{])
    | (?P<closing>[)\]}}])
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True)
class Marks:
    """Of each character of a text.

    Attributes:
        in_string: of a string literal, its quotes and prefix included.
        in_comment: of a comment, its # included.
        keyword: of one of Python's reserved words.
        depth: how many brackets are open around it; they themselves lie outside.
    """

    in_string: list[bool]
    in_comment: list[bool]
    keyword: list[bool]
    depth: list[int]


def scan(text: str) -> Marks:
    """Strings, comments, keywords and brackets of Python code.

    A string in one pair of quotes ends with its line; a bracket that closes what was not opened closes nothing. Whether
    a fragment begins inside a string is not known: it is read as if it did not.

    >>> marks = scan("f(x, 'a')  # b")
    >>> "".join("#" if mark else "." for mark in marks.in_string)
    '.....###......'
    >>> marks.depth
    [0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    """
    marks = Marks(*([False] * len(text) for _ in range(3)), [0] * len(text))
    depth = done = 0
    for part in _PARTS.finditer(text):
        begin, end = part.span()
        marks.depth[done:begin] = [depth] * (begin - done)
        if part["closing"]:
            depth = max(depth - 1, 0)
        marks.depth[begin:end] = [depth] * (end - begin)
        if part["opening"]:
            depth += 1
        for name, is_it in (
            ("in_string", part["string"]),
            ("in_comment", part["comment"]),
            ("keyword", part["word"] and keyword.iskeyword(part["word"])),
        ):
            if is_it:
                getattr(marks, name)[begin:end] = [True] * (end - begin)
        done = end
    marks.depth[done:] = [depth] * (len(text) - done)
    return marks
