"""Hostile texts, a parser of HTML pages, and model folders to make pages of."""

import html
import re
from html.parser import HTMLParser
from pathlib import Path

from torch import nn

from attnwatch import save_pruned
from tests.support.language_models import byte_tokenizer
from tests.support.models import seeded

TEXT = " ".join(f"word{number % 7} is a thing & number {number}.\n" for number in range(80))


SIZE = 300  # of the vocabulary


def with_vocabulary(model_class: type, model: nn.Module, **options) -> nn.Module:
    config = type(model.config)(**model.config.to_diff_dict() | {"vocab_size": SIZE} | options)
    return seeded(lambda: model_class(config))


def saved_folder(model: nn.Module, directory: Path, *, pad: bool = True) -> Path:
    save_pruned(model, directory)
    tokenizer = byte_tokenizer(TEXT, SIZE)
    if pad:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(directory)
    return directory


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</title></style></div><svg onload=alert(1)>",
    "&lt;b&gt; &amp; &#60;",
    "javascript:alert(1)' style='position:fixed",
    "\u202eevil\x00\x0b\ud800",
]


class Reader(HTMLParser):
    """What a browser finds in a page: its elements with their attributes, and its text, with the element it is in."""

    def __init__(self, document: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.texts_in: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(document)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)
            self.texts_in.append((data, self.open[-1] if self.open else ""))


def visible_words(page: str) -> str:
    """Return what a reader without scripts has of an HTML page, on one line."""
    without_scripts = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", without_scripts)).split())
