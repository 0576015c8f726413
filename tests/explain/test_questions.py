"""Questions of files, and questions that are made from a text."""

import json

import pytest
import torch

from attnwatch import ConfigurationError
from attnwatch.explain import Question, load_questions, questions_from_text
from attnwatch.explain.multiple_choice.questions import as_questions
from attnwatch.explain.multiple_choice.tokenization import QuestionTokenizer
from tests.support.language_models import QUESTION, byte_tokenizer, word_tokenizer

EXPECTED = r'expected on each line \{"prompt": str'


def test_file(tmp_path):
    path = tmp_path / "questions.jsonl"
    lines = [
        json.dumps(QUESTION),
        "",
        json.dumps(QUESTION | {"answer": 2, "prompt": "Ünï\u2028code"}, ensure_ascii=False),
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    first, second = load_questions(path)
    assert first == Question("the sky is", ("green", "blue", "red"), 1)
    assert (second.prompt, second.answer) == ("Ünï\u2028code", 2)
    assert as_questions(str(path)) == as_questions([first, dict(vars(second))]) == [first, second]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("[" * 200_000, "line 2 is not JSON"),
        (r'{"prompt": "\ud800 a", "choices": ["b", "c"], "answer": 0}', "line 2: `prompt` must be text that UTF-8 can"),
        (r'{"prompt": "a", "choices": ["b", "\udfff"], "answer": 0}', "line 2: `choices` must be text that UTF-8 can"),
        ("[1]", 'line 2 is a list; expected {"prompt": str'),
        ('{"prompt": "a", "choices": ["b", "c"]}', "line 2 has no 'answer'; expected"),
        ('{"prompt": "a", "answer": 0}', "line 2 has no 'choices'"),
        ('{"choices": ["b", "c"], "answer": 0}', "line 2 has no 'prompt'"),
        ('{"prompt": 3, "choices": ["b", "c"], "answer": 0}', "line 2: `prompt` must be a text, got 3. Expected"),
        ('{"prompt": " ", "choices": ["b", "c"], "answer": 0}', "line 2: `prompt` must be a text"),
        ('{"prompt": "a", "choices": "bc", "answer": 0}', "line 2: `choices` must be a list of at least two texts"),
        ('{"prompt": "a", "choices": ["b"], "answer": 0}', "line 2: `choices` must be a list of at least two texts"),
        ('{"prompt": "a", "choices": ["b", 3], "answer": 0}', "line 2: `choices` must be nonempty texts"),
        ('{"prompt": "a", "choices": ["b", " "], "answer": 0}', "line 2: `choices` must be nonempty texts"),
        ('{"prompt": "a", "choices": ["b", "b "], "answer": 0}', "line 2: `choices` must differ from each other"),
        ('{"prompt": "a", "choices": ["b", "c"], "answer": 2}', "line 2: `answer` must be an index from 0 to 1"),
        ('{"prompt": "a", "choices": ["b", "c"], "answer": -1}', "line 2: `answer` must be an index"),
        ('{"prompt": "a", "choices": ["b", "c"], "answer": true}', "or the text of a choice, got True"),
        ('{"prompt": "a", "choices": ["b", "c"], "answer": 0.0}', "line 2: `answer` must be an index"),
        ('{"prompt": "a", "choices": ["b", "c"], "answer": "d"}', "or the text of a choice, got 'd'"),
    ],
)
def test_malformed_lines_are_named(line, message, tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text(f"{json.dumps(QUESTION)}\n{line}\n", encoding="utf-8")
    with pytest.raises(ConfigurationError) as raised:
        load_questions(path)
    assert message in str(raised.value)
    assert str(raised.value).startswith(f"`questions`: {path}, line 2")


def test_files_that_have_none(tmp_path):
    path = tmp_path / "questions.jsonl"
    with pytest.raises(ConfigurationError, match=r"`questions`: .*questions.jsonl can't be read as UTF-8 text \("):
        load_questions(path)
    path.write_text("\n\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=rf"`questions`: .*questions.jsonl is empty; {EXPECTED}"):
        load_questions(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="can't be read as UTF-8 text"):
        load_questions(path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "`questions` must be the path of a JSONL file or a list of questions, got 3"),
        (QUESTION, "`questions` must be the path of a JSONL file or a list"),
        ([QUESTION, {"prompt": "a"}], "`questions`: question 2 has no 'choices'"),
        ([QUESTION, "a"], "`questions`: question 2 is a str"),
        ([], "`questions` is empty: pass at least one"),
    ],
)
def test_lists_that_are_wrong(given, message):
    with pytest.raises(ConfigurationError, match=message):
        as_questions(given)


STORY = " ".join(f"the {thing} of w{at} saw the {other}, and it was {kind}." for at, (thing, other, kind) in enumerate(
    (thing, other, kind)
    for thing in ("king", "cat", "old house", "river")
    for other in ("sea", "moon", "little bird")
    for kind in ("good", "very cold", "long ago")
))  # fmt: skip


@pytest.mark.parametrize("tokenizer", [byte_tokenizer(STORY, 400), word_tokenizer()], ids=["bytes", "words"])
def test_questions_from_text(tokenizer):
    text = STORY if tokenizer.eos_token else " ".join(f"w{at * at % 29}" for at in range(300))
    questions = questions_from_text(text, tokenizer, 20, prompt_tokens=8, choice_tokens=2, seed=5)
    assert len(questions) == 20
    assert len(set(questions)) == 20
    for question in questions:
        true = question.choices[question.answer]
        assert f"{question.prompt} {true}" in text
        assert all(choice in text for choice in question.choices)
        prompt = len(QuestionTokenizer(tokenizer).ids(question.prompt))
        lengths = [len(tokenizer(f"{question.prompt} {choice}").input_ids) - prompt for choice in question.choices]
        assert lengths == [2] * 4
        assert prompt == 8
    assert {question.answer for question in questions} == {0, 1, 2, 3}
    assert questions == questions_from_text(text, tokenizer, 20, prompt_tokens=8, choice_tokens=2, seed=5)
    assert questions != questions_from_text(text, tokenizer, 20, prompt_tokens=8, choice_tokens=2, seed=4)


def test_questions_from_batches():
    tokenizer = word_tokenizer(bos=True)
    rows = [tokenizer(" ".join(f"w{(at + 7 * row) % 29}" for at in range(20))).input_ids for row in range(3)]
    ids = torch.tensor([[*row, 0, 0] for row in rows])
    batches = [{"input_ids": ids, "attention_mask": (ids > 0).long()}]
    questions = questions_from_text(batches, tokenizer, 5, prompt_tokens=4, choice_tokens=1, num_choices=3)
    for question in questions:
        last, true = question.prompt.split()[-1], question.choices[question.answer]
        assert int(true[1:]) == (int(last[1:]) + 1) % 29  # within a row, and no special token
        assert len(question.choices) == 3


def test_stretches_are_within_documents():
    tokenizer = word_tokenizer(bos=True)
    packed = " <s> ".join(" ".join(f"w{document}" for _ in range(6)) for document in range(20))
    batches = [{"input_ids": torch.tensor([tokenizer(packed).input_ids])}]
    for question in questions_from_text(batches, tokenizer, 9, prompt_tokens=4, choice_tokens=1):
        assert set(question.prompt.split()) == {question.choices[question.answer]}
    unknown = " ".join(f"w{at} purple w{at} w{at}" for at in range(30))
    for question in questions_from_text(unknown, tokenizer, 9, prompt_tokens=2, choice_tokens=1):
        assert f"{question.prompt} {question.choices[question.answer]}" in unknown


def test_choices_are_as_long_as_they_are_when_asked():
    """Tokens of batches need not be those that the tokenizer makes of their text."""
    tokenizer = byte_tokenizer(STORY, 275)
    letters = [tokenizer(letter).input_ids[0] for letter in STORY]
    batches = [{"input_ids": torch.tensor([letters])}]
    for question in questions_from_text(batches, tokenizer, 9, prompt_tokens=8, choice_tokens=3, num_choices=2):
        prompt = len(tokenizer(question.prompt).input_ids)
        assert {len(tokenizer(f"{question.prompt} {choice}").input_ids) - prompt for choice in question.choices} == {3}


def test_text_with_too_little_in_it():
    with pytest.raises(ConfigurationError, match=r"`text` has fewer than 4 places with 32 . 3 tokens"):
        questions_from_text("the sky is blue", word_tokenizer())
    with pytest.raises(ConfigurationError, match=r"\(400 tokens in 1 sequences\): pass more text"):
        questions_from_text("sky " * 400, word_tokenizer())  # what follows is the same everywhere
    with pytest.raises(ConfigurationError, match="`text` must be text that UTF-8 can encode"):
        questions_from_text("\ud800 a", word_tokenizer())
    with pytest.raises(ConfigurationError, match="`batches`: each batch must have `input_ids`"):
        questions_from_text([{"labels": torch.zeros(1)}], word_tokenizer())
    with pytest.raises(ConfigurationError, match="`num_choices` must be an integer of at least 2"):
        questions_from_text("sky", word_tokenizer(), num_choices=1)
