"""Looking into a model from the command line: what is on the page, and that nothing on it comes from elsewhere."""

import json
import re
from pathlib import Path

import pytest
import transformers as hf

from attnwatch import prune_heads
from attnwatch.cli import main
from attnwatch.report.analysis import load_analysis
from tests.support.language_models import byte_tokenizer
from tests.support.models import HEADS, LAYERS, VOCABULARY, bert, gpt2, llama, seeded, t5_for_generation, vit
from tests.support.pages import HOSTILE, SIZE, TEXT, Reader, saved_folder, with_vocabulary

SECTIONS = ["What it attends to", "What it relies on", "What each layer knows", "How sure it is"]


@pytest.fixture(scope="module")
def language_model(tmp_path_factory) -> Path:
    model = with_vocabulary(hf.LlamaForCausalLM, llama(), max_position_embeddings=160)
    return saved_folder(model, tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    names = {"label2id": {"bad": 0, "good": 1}, "id2label": {0: "bad", 1: "good"}}
    model = with_vocabulary(hf.BertForSequenceClassification, bert(), **names)
    return saved_folder(model, tmp_path_factory.mktemp("model") / "bert")


def inspected(model: Path, text: str, directory: Path, *options: str, tokens: int = 24) -> Reader:
    """The page."""
    (directory / "text.txt").write_text(text, encoding="utf-8", errors="surrogatepass")
    out = directory / "report.html"
    arguments = ["inspect", str(model), "--text", str(directory / "text.txt"), "--out", str(out), *options]
    assert main([*arguments, "--sequences", "16", "--tokens", str(tokens)]) == 0
    return Reader(out.read_text(encoding="utf-8"))


def headings(page: Reader, level: str = "h2") -> list[str]:
    return [text for text, tag in page.texts_in if tag == level]


@pytest.mark.slow
def test_language_model(language_model, tmp_path, capsys):
    page = inspected(language_model, TEXT, tmp_path)
    assert "opens in any browser" in capsys.readouterr().out
    assert headings(page) == SECTIONS
    assert headings(page, "h3")[:4] == ["content sensitivity [nats]", "max logit", "normalized entropy", "sink mass"]
    cells = [text for text, tag in page.texts_in if tag == "td"]
    assert len(cells) > 4 * LAYERS * HEADS
    assert "Not written" not in "".join(page.texts)
    shown = "".join(text for text, tag in page.texts_in if tag == "span")
    assert "word0 is a thing & number 0." in shown  # of the tokens that were hidden, and of those that were not
    hidden = [
        attributes for tag, attributes in page.elements if tag == "span" and "nats" in attributes.get("title", "")
    ]
    assert len(hidden) > 20
    assert {"word_start", "position", "previous_token"} <= set(cells)
    assert "expected calibration error" in cells


def test_own_questions_are_asked(language_model, tmp_path):
    questions = tmp_path / "questions.jsonl"
    rows = [{"prompt": f"word{n} is", "choices": [" a", " number"], "answer": n % 2} for n in range(4)]
    questions.write_text("\n".join(map(json.dumps, rows)))
    page = inspected(language_model, TEXT, tmp_path, "--questions", str(questions))
    assert "4 questions of your file." in page.texts


def test_classifier_with_labels_by_name(classifier, tmp_path):
    lines = [f"word{number % 7} is number {number}\t{['bad', 'good'][number % 2]}" for number in range(40)]
    page = inspected(classifier, "\n".join(lines), tmp_path)
    assert headings(page) == SECTIONS
    assert "Not written" not in "".join(page.texts)
    assert any("how much the label's log-probability falls" in text for text in page.texts)
    assert "bad" not in "".join(text for text, tag in page.texts_in if tag == "span")  # the label is not in the text


def test_classifier_without_labels_says_what_it_needs(classifier, tmp_path):
    page = inspected(classifier, "\n".join(f"word{number} is a thing" for number in range(20)), tmp_path)
    text = "".join(page.texts)
    assert "Not written: the text has no labels: end every line with a tab and the label." in text
    assert "how far the output moves" in text


def test_model_without_a_head_and_with_pruned_heads(tmp_path):
    model = with_vocabulary(hf.BertModel, bert())
    prune_heads(model, {0: [1]})
    page = inspected(saved_folder(model, tmp_path / "model"), "a thing is a thing\n" * 20, tmp_path)
    text = "".join(page.texts)
    assert text.count("classifiers and causal language models; BertModel is neither.") == 2
    assert "–" in [text for text, tag in page.texts_in if tag == "td"]  # the head that is gone


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("BertForMaskedLM", {}, "BertForMaskedLM is neither"),
        ("BertForTokenClassification", {}, "BertForTokenClassification is neither"),
        ("BertForQuestionAnswering", {}, "BertForQuestionAnswering is neither"),
        ("BertForSequenceClassification", {"num_labels": 1}, "BertForSequenceClassification has a regression head"),
    ],
)
def test_heads_that_nothing_is_measured_by(tmp_path, name: str, options: dict, why: str):
    model = with_vocabulary(getattr(hf, name), bert(), **options)
    text = "".join(f"a thing is number {number}\t{number}.25\n" for number in range(9))
    page = inspected(saved_folder(model, tmp_path / "model"), text, tmp_path)
    shown = "".join(page.texts)
    assert shown.count(f"Not written: this part is for sequence classifiers and causal language models; {why}") == 2
    assert "normalized entropy" in headings(page, "h3")


def test_numbers_of_a_regression_are_not_its_text(tmp_path):
    model = with_vocabulary(hf.BertForSequenceClassification, bert(), num_labels=1)
    (tmp_path / "text.txt").write_text("a thing\t0.25\na thing\tis a thing\n")
    reading = load_analysis(
        saved_folder(model, tmp_path / "model"), tmp_path / "text.txt", num_sequences=4, num_tokens=24
    )
    rows = reading.batches[0]["input_ids"], reading.batches[0]["attention_mask"].bool()
    assert [reading.tokenizer.decode(ids[real]) for ids, real in zip(*rows, strict=True)] == [
        "a thing",
        "a thing\tis a thing",
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a thing\t1", "", "a thing"], "line 3 must be a sentence, a tab and a label, since .*; got no label"),
        (["a thing\t1", "a thing\t"], "line 2 must .*; got no label"),
        (
            ["a thing\tgood", "a thing\tugly"],
            "line 2 must .*; got the label 'ugly'. Known are 'bad', 'good', and 0 to 1",
        ),
        (["a thing\t1.0", "a thing\t0.0"], "line 1 must .*; got the label '1.0'"),
        (["a thing\t2", "a thing\t1"], "line 1 must .*; got the label '2'"),
        (["a thing\t0", "\t1"], "line 2 must .*; got nothing before the label '1'"),
        (["\t1", "  \t0"], "line 1 must .*; got nothing before the label '1'"),
    ],
)
def test_lines_that_are_badly_labelled_are_named(classifier, tmp_path, capsys, lines: list[str], message: str):
    (tmp_path / "text.txt").write_text("\n".join(lines))
    assert main(["inspect", str(classifier), "--text", str(tmp_path / "text.txt")]) == 2
    assert re.search(f"`--text`: {message}", capsys.readouterr().err)


def test_indented_lines_are_not_labelled(classifier, tmp_path):
    page = inspected(classifier, "\n".join(f"\tword{number} is a thing\t" for number in range(20)), tmp_path)
    assert "the text has no labels" in "".join(page.texts)


@pytest.mark.slow
def test_padding_is_not_shown_where_the_tokenizer_has_none(tmp_path):
    model = with_vocabulary(hf.LlamaForCausalLM, llama(), max_position_embeddings=160)
    page = inspected(saved_folder(model, tmp_path / "model", pad=False), TEXT[:240], tmp_path)
    assert byte_tokenizer(TEXT, SIZE).decode([0]) == "<end>"  # what the last stretch is filled up with
    assert "<end>" not in "".join(page.texts)


@pytest.mark.slow
def test_statistics_that_were_not_observed_are_named(language_model, classifier, tmp_path):
    why = "Not observed: content sensitivity: needs two or more sequences of equal length in a batch"
    uneven = "\n".join("a thing " * number for number in range(1, 9))
    for page in (inspected(language_model, TEXT[:30], tmp_path), inspected(classifier, uneven, tmp_path)):
        assert why in page.texts
        assert "content sensitivity [nats]" not in headings(page, "h3")
    assert why not in inspected(language_model, TEXT, tmp_path).texts


@pytest.mark.slow
def test_part_that_fails_leaves_the_others(language_model, tmp_path, monkeypatch):
    monkeypatch.setattr("attnwatch.report.sections.probe_layers", lambda *_, **__: [].pop())
    page = inspected(language_model, TEXT, tmp_path)
    assert "".join(page.texts).count("Not written") == 1
    assert "Not written: IndexError: pop from empty list" in page.texts
    assert headings(page) == SECTIONS


def test_page_is_written_where_every_part_fails(tmp_path):
    model = with_vocabulary(hf.GPT2ForSequenceClassification, gpt2(), pad_token_id=None)
    page = inspected(saved_folder(model, tmp_path / "model"), "a thing\t1\na thing\t0\n" * 9, tmp_path)
    assert headings(page) == SECTIONS
    assert "".join(page.texts).count("Not written: ValueError: Cannot handle batch sizes > 1") == len(SECTIONS)


@pytest.fixture(scope="module")
def harmless(language_model, tmp_path_factory) -> Reader:
    return inspected(language_model, f"{TEXT} aaa", tmp_path_factory.mktemp("harmless"), tokens=60)


@pytest.mark.slow
@pytest.mark.parametrize(
    "hostile", [HOSTILE[0], *(pytest.param(each, marks=pytest.mark.slow) for each in HOSTILE[1:5])]
)
def test_markup_in_the_text_stays_text(language_model, harmless, tmp_path, hostile: str):
    page = inspected(language_model, f"{hostile} {TEXT}", tmp_path, tokens=60)
    assert hostile in "".join(text for text, tag in page.texts_in if tag == "span")
    assert {tag for tag, _ in page.elements} == {tag for tag, _ in harmless.elements}
    names = {name for _, attributes in page.elements for name in attributes}
    assert not [name for name in names if name.startswith("on") or name in ("src", "href")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "missing.txt"], "`--text`: 'missing.txt' can't be read"),
        (["--text", "empty.txt"], "`--text`: 'empty.txt' has no text in it"),
        (["--text", "text.txt", "--questions", "bad.jsonl"], "line 2"),
        (["--text", "text.txt", "--out", "no/such/folder.html"], "lies in a folder that is not there"),
    ],
)
def test_bad_input(language_model, tmp_path, monkeypatch, capsys, arguments: list[str], message: str):
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text(" \n")
    Path("text.txt").write_text("word0 is a thing " * 20)
    Path("bad.jsonl").write_text('{"prompt": "a", "choices": ["b", "c"], "answer": 0}\n{"prompt": \n')
    assert main(["inspect", str(language_model), *arguments, "--tokens", "16"]) == 2
    assert message in capsys.readouterr().err


def test_text_is_needed(language_model, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["inspect", str(language_model)])
    assert "the following arguments are required: --text" in capsys.readouterr().err
    assert main(["judge", str(language_model)]) == 2
    assert "holds a model, not a run; to inspect it: attnwatch inspect MODEL_DIR --text" in capsys.readouterr().err


def test_tokens_that_the_text_does_not_need_may_be_unknown_to_the_model(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    model = with_vocabulary(hf.LlamaForCausalLM, llama())
    tokenizer = hf.AutoTokenizer.from_pretrained(saved_folder(model, tmp_path / "model"))
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(tmp_path / "model")
    found = load_analysis(tmp_path / "model", tmp_path / "text.txt", num_sequences=4, num_tokens=24)
    assert len(found.tokenizer) > found.model.config.vocab_size


def test_models_that_a_report_can_not_be_made_of(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("a thing is a thing is a thing")
    choosing = seeded(lambda: hf.BertForMultipleChoice(bert().config))
    models = {"t5": t5_for_generation(), "untold": llama(), "bert": bert(), "gpt2": gpt2(), "vit": vit()}
    for name, model in (models | {"choosing": choosing}).items():
        model.save_pretrained(tmp_path / name)
    saved_folder(llama(), tmp_path / "small")
    for name, message in (
        ("t5", "`MODEL_DIR`: T5ForConditionalGeneration is an encoder-decoder model"),
        ("untold", "has no tokenizer"),
        ("bert", "has no tokenizer"),  # transformers 5 makes them of nothing
        ("gpt2", "has no tokenizer"),
        ("vit", "must take `input_ids` [batch, tokens], got ViTModel"),
        ("choosing", "must take `input_ids` [batch, tokens], got BertForMultipleChoice"),
        ("small", f"the tokenizer ({SIZE} tokens) must be the model's, with ids below its vocabulary of {VOCABULARY}"),
        ("nowhere", "holds no saved model"),
    ):
        assert main(["inspect", str(tmp_path / name), "--text", str(tmp_path / "text.txt")]) == 2
        assert message in capsys.readouterr().err
