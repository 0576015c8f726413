"""Labels of tokens against snippets that were labelled by hand."""

import io
import tokenize
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies
from transformers import AutoTokenizer

from attnwatch.explain.probing.python_code import mark_code
from attnwatch.explain.probing.targets import IGNORED, token_labels
from attnwatch.explain.token_text import DecodedTokens, cached_decoder, decode_tokens
from benchmarks.common import minilm_directory
from tests.support.language_models import BYTE_TOKENIZER


class Words:
    """Like a slow tokenizer: decodes, and has special tokens; pieces beginning with ## continue a word."""

    all_special_ids = (0,)

    def __init__(self, *pieces: str):
        self.pieces = ("<special>", *pieces)

    def decode(self, ids, clean_up_tokenization_spaces=None):
        return " ".join(self.pieces[each] for each in ids).replace(" ##", "")


def labels_of(text: str, target: str) -> list[int]:
    """Of each character, through a tokenizer that has one token for each."""
    ids = torch.tensor([BYTE_TOKENIZER(text)["input_ids"]])
    return token_labels({"input_ids": ids}, [target], BYTE_TOKENIZER)[target][0].tolist()


def marked(text: str, labels: list[int]) -> str:
    """The text's characters with a positive label, others as dots."""
    return "".join(
        character if label > 0 else "\n" if character == "\n" else "."
        for character, label in zip(text, labels, strict=True)
    )


# The second of each pair has the characters that are of the kind.
STRINGS = {
    "two kinds of quotes": ("""f('a"b', "c'd") + e""", """..'a"b'.."c'd"....."""),
    "escaped": (r"x = 'a\'b' + 'c\\' + d", r"....'a\'b'...'c\\'...."),
    "prefixed": ("g = rb'x' if of'y' else F\"z\"", "....rb'x'......'y'......F\"z\""),
    "three quotes": ("a = '''b\n'c' \"d\"\n''' + e", "....'''b\n'c' \"d\"\n'''...."),
    "ends with its line": ("a = 'b\nc = 'd'", "....'b\n....'d'"),
    "not closed": ('return """some\ntext', '......."""some\ntext'),
    "in a comment": ("a  # isn't 'it'\nb = 'c'", "...............\n....'c'"),
    "empty": ("a = '' + \"\" + b", "....''...\"\"...."),
    "backslash at the end": ("a = 'b\\", "....'b\\"),
}
COMMENTS = {
    "at the end of a line": ("a = 1  # b\nc", ".......# b\n."),
    "of a line": ("# a 'b\nc", "# a 'b\n."),
    "not in a string": ("a = '# b'  # 'c'", "...........# 'c'"),
    "two": ("#a\n\n#b", "#a\n\n#b"),
}
KEYWORDS = {
    "among names": ("for fort in iffy: pass", "for......in.......pass"),
    "not in text": ("if 'if': return  # if", "if.......return......"),
    "beginning of a fragment": ("lambda x: None", "lambda....None"),
}


@pytest.mark.parametrize("name", STRINGS)
def test_characters_in_a_string(name):
    text, expected = STRINGS[name]
    assert marked(text, labels_of(text, "in_string")) == expected


@pytest.mark.parametrize("name", COMMENTS)
def test_characters_in_a_comment(name):
    text, expected = COMMENTS[name]
    assert marked(text, labels_of(text, "in_comment")) == expected


@pytest.mark.parametrize("name", KEYWORDS)
def test_characters_of_keywords(name):
    text, expected = KEYWORDS[name]
    assert marked(text, labels_of(text, "keyword")) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("f(a[b], {c})d", "0011211112100"),
        ("a)b(c", "00001"),
        ("'(' [x]", "0000010"),
        ("((((x", "01233"),
        ("(# (\n)a", "0111100"),
    ],
)
def test_depth_of_brackets(text, expected):
    assert "".join(map(str, labels_of(text, "nesting_depth"))) == expected


def test_scanner_agrees_with_tokenize():
    """On a whole file, which Python's own tokenizer reads."""
    text = Path(tokenize.__file__).read_text(encoding="utf-8")
    lines = [0]
    for line in text.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    kinds = {"in_string": set(), "in_comment": set()}
    inside = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        begin, end = (lines[row - 1] + column for row, column in (token.start, token.end))
        name = tokenize.tok_name[token.type]
        if name == "FSTRING_START":
            inside, opened = inside + 1, begin
        elif name == "FSTRING_END":
            inside -= 1
            if not inside:
                kinds["in_string"] |= set(range(opened, end))
        elif name in ("STRING", "COMMENT"):
            kinds[f"in_{name.lower()}"] |= set(range(begin, end))
    marks = mark_code(text)
    for name, expected in kinds.items():
        assert {index for index, mark in enumerate(getattr(marks, name)) if mark} == expected, name


@given(strategies.text(alphabet="ab_#'\"\\()[]\n 1f", max_size=40))
def test_any_fragment_can_be_scanned(text):
    marks = mark_code(text)
    assert {len(each) for each in vars(marks).values()} == {len(text)}
    assert not any(a and b for a, b in zip(marks.in_string, marks.in_comment, strict=True))
    assert min(marks.depth, default=0) >= 0


# Text of tokens


def test_pieces_of_bytes_make_the_text():
    text = "naïve 😀 x"
    pieces = decode_tokens(BYTE_TOKENIZER(text)["input_ids"], cached_decoder(BYTE_TOKENIZER)).texts
    assert "".join(pieces) == text
    assert pieces[2:5] == ["", "ï", "v"]
    assert pieces[7:11] == ["", "", "", "😀"]


@given(strategies.text(max_size=30))
def test_pieces_of_any_text_make_the_text(text):
    assert "".join(decode_tokens(BYTE_TOKENIZER(text)["input_ids"], cached_decoder(BYTE_TOKENIZER)).texts) == text


def test_pieces_of_a_wordpiece_tokenizer():
    tokenizer = AutoTokenizer.from_pretrained(minilm_directory())
    ids = tokenizer("Unbelievably good, isn't it", add_special_tokens=False)["input_ids"]
    pieces = decode_tokens(ids, cached_decoder(tokenizer)).texts
    assert len(pieces) == len(ids)
    assert "".join(pieces) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert pieces[-1] == " it"


def test_places_are_of_the_first_visible_character():
    assert DecodedTokens([" a", "  ", "", "b"]).positions == [1, 2, None, 4]


TOKENIZER = Words("the", "run", "##ning", "x1", "42", "...", "USA", "McC", "Hi", "日本", "A", "_b")
IDS = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]])


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("character_class", [0, 0, 0, 4, 1, 2, 0, 0, 0, 0, 0, 4]),
        ("case", [0, 0, 0, 0, IGNORED, IGNORED, 1, 3, 2, IGNORED, 2, 0]),
        ("word_start", [1, 1, 0, 1, 1, 0, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_characters_of_tokens(target, expected):
    assert token_labels({"input_ids": IDS}, [target], TOKENIZER)[target].tolist() == [expected]


def test_white_space_is_a_class_and_no_word():
    assert labels_of("a\n b", "character_class") == [0, 3, 3, 0]
    assert labels_of("a\n b", "word_start") == [1, 0, 0, 1]
    assert labels_of("_a.b", "word_start") == [1, 0, 0, 1]


def test_part_of_a_character_has_no_label():
    assert labels_of("é", "word_start") == [IGNORED, 1]
    assert labels_of("é", "in_string") == [IGNORED, 0]


# Ids, padding and special tokens


PADDED = {
    "input_ids": torch.tensor([[5, 6, 7, 0, 0], [0, 0, 8, 9, 8]]),
    "attention_mask": torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]]),
}


def test_ids_and_positions_beside_padding():
    labels = token_labels(PADDED, ["token", "previous_token", "next_token", "position"])
    none = IGNORED
    assert labels["token"].tolist() == [[5, 6, 7, none, none], [none, none, 8, 9, 8]]
    assert labels["previous_token"].tolist() == [[none, 5, 6, none, none], [none, none, none, 8, 9]]
    assert labels["next_token"].tolist() == [[6, 7, none, none, none], [none, none, 9, 8, none]]
    assert labels["position"].tolist() == [[0, 1, 2, none, none], [none, none, 0, 1, 2]]


def test_special_tokens_have_no_labels_and_end_the_text():
    tokenizer = Words("a", "##b", '"')
    ids = torch.tensor([[0, 1, 2, 0, 1, 3, 0, 1]])
    batch = {"input_ids": ids}
    none = IGNORED
    assert token_labels(batch, ["token"], tokenizer)["token"].tolist() == [[none, 1, 2, none, 1, 3, none, 1]]
    previous = token_labels(batch, ["previous_token"], tokenizer)["previous_token"]
    assert previous.tolist() == [[none, none, 1, none, none, 1, none, none]]
    strings = token_labels(batch, ["in_string"], tokenizer)["in_string"]
    assert strings.tolist() == [[none, 0, 0, none, 0, 1, none, 0]]
