"""Questions to models whose answers are known, or computed literally."""

import copy
import json
import math
import random
import warnings

import pytest
import torch
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

from attnwatch import ConfigurationError
from attnwatch.dashboard.answers import answers_markdown, literal
from attnwatch.explain import Question, Templates, ask, calibration, classifier_calibration, parse_percentage
from attnwatch.explain.evaluated_model import EvaluatedModel
from attnwatch.explain.multiple_choice.evaluation import MultipleChoiceEvaluation
from attnwatch.explain.multiple_choice.options import EvaluationOptions
from attnwatch.explain.multiple_choice.tokenization import QuestionTokenizer, SkippedQuestion
from tests.support.language_models import ID, QUESTION, TEMPLATES, WORDS, bigrams, byte_tokenizer, word_tokenizer
from tests.support.models import bert, gpt2, llama, seeded, t5_for_generation, token_ids
from tests.support.versions import CACHE, enable_checkpointing, lacks

KNOWN = {
    "is": {"blue": 0.5, "green": 0.25, "red": 0.05, "grass": 0.2},
    "sure": {"yes": 0.6, "no": 0.2, "grass": 0.2},
    "Answer:": {"85%": 1.0},
    "85%": {"sure": 1.0},
    "because": {"it": 1.0},
    "it": {"reflects": 1.0},
    "reflects": {"blue": 1.0},
    "blue": {"it": 1.0},
}


@pytest.fixture(scope="module")
def known():
    return bigrams(KNOWN)


@pytest.mark.parametrize("options", [{}, {"bos": True}, {"pad": False}], ids=str)
def test_answers_that_are_known_by_construction(known, options):
    answers = ask(known, word_tokenizer(**options), [QUESTION], templates=TEMPLATES, reasons=True, max_new_tokens=4)
    torch.testing.assert_close(answers.probabilities[0], torch.tensor([0.25, 0.5, 0.05]).double() / 0.8)
    assert answers.log_likelihoods[0] == pytest.approx([math.log(p) for p in (0.25, 0.5, 0.05)], abs=1e-5)
    assert (answers.predictions, answers.correct, answers.labels) == ([1], [True], [1])
    assert answers.stated_confidence == pytest.approx([0.75], abs=1e-6)  # 0.6 of 0.6 + 0.2
    assert answers.claimed_reasons == ["it reflects blue it"]
    assert answers.num_forwards == 1 + 1 + 4
    assert answers.stated_calibration().brier == pytest.approx(0.25**2, abs=1e-6)
    assert answers.calibration().accuracy == 1
    assert str(answers).splitlines()[1].startswith("stated confidence: 1 examples: accuracy 1.000")


def test_percentage_in_words(known):
    answers = ask(known, word_tokenizer(), [QUESTION], templates=TEMPLATES, stated="percentage")
    assert answers.stated_replies[0].startswith("85% sure ")
    assert answers.stated_confidence == [0.85]
    silent = bigrams(KNOWN | {"Answer:": {"grass": 1.0}, "grass": {"grass": 1.0}})
    answers = ask(silent, word_tokenizer(), [QUESTION], templates=TEMPLATES, stated="percentage")
    assert math.isnan(answers.stated_confidence[0])
    assert answers.num_unparsable == 1
    assert answers.stated_calibration() is None


def test_long_choices_stand_a_chance_by_their_mean(known):
    question = Question("because it", ("reflects blue it reflects", "grass"), 0)
    model = bigrams(KNOWN | {"it": {"reflects": 0.4, "grass": 0.6}})
    by_sum = ask(model, word_tokenizer(), [question], stated=None)
    by_mean = ask(model, word_tokenizer(), [question], stated=None, score="mean")
    sums = [2 * math.log(0.4), math.log(0.6)]
    assert by_sum.log_likelihoods[0] == pytest.approx(sums, abs=1e-5)
    assert by_mean.num_tokens == [[4, 1]]
    expected = torch.tensor([sums[0] / 4, sums[1]]).softmax(0).double()
    torch.testing.assert_close(by_mean.probabilities[0], expected)
    assert (by_sum.correct, by_mean.correct) == ([False], [True])


def test_auroc_of_stated_confidence():
    """It is surer after blue than after red; right with blue, wrong with red."""
    follows = {"sky": {"blue": 0.9, "red": 0.1}, "grass": {"red": 0.8, "green": 0.2}}
    follows |= {"blue": {"yes": 0.9, "no": 0.1}, "red": {"yes": 0.7, "no": 0.3}}
    questions = [Question("the sky", ("blue", "red"), 0), Question("the grass", ("green", "red"), 0)]
    templates = Templates(yes_no="{prompt} {answer} {reply}")
    answers = ask(bigrams(follows), word_tokenizer(), questions, templates=templates)
    assert answers.correct == [True, False]
    assert answers.stated_confidence == pytest.approx([0.9, 0.7], abs=1e-6)
    assert answers.stated_calibration().auroc == 1.0
    assert answers.calibration().auroc == 1.0  # 0.9 and 0.8


TEXT = "abab the cat sat on the mat and the rat ran. " * 20
MIXED = [
    Question("the cat sat on the", ("mat", "rat and the cat", "x"), 0),
    Question("ab", ("ab the", "cat sat"), 1),
    Question("the rat ran. " * 2 + "the", ("cat", "mat and"), 1),
]


def literal_answers(model, tokenizer, question):
    """One by one, in float64: Σ log softmax behind what all choices share with the prompt."""
    model = copy.deepcopy(model).double().eval()
    prompt = tokenizer(question.prompt).input_ids
    rows = [tokenizer(f"{question.prompt} {choice}").input_ids for choice in question.choices]
    start = 0
    while start < len(prompt) and all(row[start] == prompt[start] for row in rows if start < len(row)):
        start += 1
    sums = []
    for row in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row])).logits[0]
        sums.append(sum(logits[at - 1].log_softmax(0)[row[at]].item() for at in range(start, len(row))))
    return sums


@pytest.mark.parametrize("family", [llama, gpt2])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_literal_sums_however_they_are_batched(family, batch_size):
    tokenizer = byte_tokenizer(TEXT, 290)
    model = resized(family(), len(tokenizer))
    options = {"batch_size": batch_size, "reasons": True, "max_new_tokens": 5, "templates": Templates(yes_no=SHORT)}
    together = ask(model, tokenizer, MIXED, **options)
    for index, question in enumerate(MIXED):
        expected = literal_answers(model, tokenizer, question)
        assert together.log_likelihoods[index] == pytest.approx(expected, rel=1e-4, abs=1e-4)
        alone = ask(model, tokenizer, [question], **options)
        assert together.log_likelihoods[index] == pytest.approx(alone.log_likelihoods[0], rel=1e-4, abs=1e-4)
        assert together.stated_confidence[index] == pytest.approx(alone.stated_confidence[0], rel=1e-3)
        assert together.claimed_reasons[index] == alone.claimed_reasons[0]  # padded on the left


SHORT = "{prompt} {answer} sure? {reply}"


def resized(model, size):
    config = copy.deepcopy(model.config)
    config.vocab_size, config.max_position_embeddings = size, 96
    return seeded(lambda: type(model)(config))


def test_choices_that_merge_with_the_end_of_the_prompt():
    tokenizer = byte_tokenizer("abababab abab", 262)
    assert tokenizer.tokenize("ab") == ["ab"]
    encoder = QuestionTokenizer(tokenizer)
    plain, merged = encoder.continuations("xa", ["x", "b"])
    assert [tokenizer.convert_ids_to_tokens(list(each.ids)) for each in (plain, merged)] == [
        ["x", "a", "x"],
        ["x", "ab"],
    ]
    assert plain.start == merged.start == 1  # both are read from where "ab" parts from "a"
    question = Question("xa", ("x", "b"), 0)
    model = resized(llama(), len(tokenizer))
    answers = ask(model, tokenizer, [question], templates=Templates(answer="{prompt}{choice}"), stated=None)
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor([plain.ids[:2]])).logits[0].double().log_softmax(-1)
    expected = [(logits[0, plain.ids[1]] + logits[1, plain.ids[2]]).item(), logits[0, merged.ids[1]].item()]
    assert answers.log_likelihoods[0] == pytest.approx(expected, abs=1e-4)


def test_nothing_before_the_choices():
    encoder = QuestionTokenizer(byte_tokenizer("abababab", 258))
    (continuation, _) = encoder.continuations("a", ["b", "c"])
    assert continuation.ids[0] == encoder.end_id  # as there is no bos token
    assert continuation.start == 1
    with pytest.raises(SkippedQuestion, match="no bos token"):
        QuestionTokenizer(word_tokenizer()).continuations("", ["blue", "red"])
    with pytest.raises(SkippedQuestion, match="no token of its own"):
        encoder.continuations("a", ["", "c"])


def test_tokens_behind_a_text_are_not_asked_about():
    class Closing(hf.PreTrainedTokenizerFast):
        def __call__(self, text, add_special_tokens=True, **options):
            found = super().__call__(text, **options)
            if add_special_tokens:
                found["input_ids"] = [7, *found["input_ids"], 8]
            return found

    plain = word_tokenizer()
    encoder = QuestionTokenizer(Closing(tokenizer_object=plain.backend_tokenizer, unk_token="[UNK]"))
    assert encoder.ids("the sky") == (7, ID["the"], ID["sky"])


@pytest.mark.parametrize("length", [None, 5])
def test_too_long_for_the_context(length):
    model = bigrams(KNOWN, positions=6 if length is None else 64)
    long = Question("the sky is the sky is the sky is", ("blue", "red"), 0)
    answers = ask(model, word_tokenizer(), [long, QUESTION], templates=TEMPLATES, max_length=length)
    assert len(answers.labels) == 1
    (prompt, why) = answers.skipped[0]
    assert prompt == long.prompt
    assert why == f"it takes 11 tokens, more than the {length or 6} that can be read at once"
    with pytest.raises(
        ConfigurationError, match="`questions`: none of 1 can be asked; the first one: it takes 11 tokens"
    ):
        ask(model, word_tokenizer(), [long], templates=TEMPLATES, max_length=length)
    # What is written counts too.
    with pytest.raises(ConfigurationError, match="it takes 70 tokens, more than the 64"):
        ask(bigrams(KNOWN), word_tokenizer(), [QUESTION], templates=TEMPLATES, reasons=True, max_new_tokens=65)


def test_choices_that_are_the_same_tokens_are_skipped(known):
    same = Question("the sky is", ("purple", "orange"), 0)  # both unknown
    answers = ask(known, word_tokenizer(), [same, QUESTION], templates=TEMPLATES)
    assert answers.skipped == [("the sky is", "two choices are the same tokens")]
    assert answers.probabilities.shape == (1, 3)
    with pytest.raises(ConfigurationError, match="the words for yes and no are the same tokens"):
        ask(
            known, word_tokenizer(), [QUESTION], templates=Templates(yes_no=TEMPLATES.yes_no, yes=("oui",), no=("non",))
        )


def test_forwards_are_those_that_were_told(known):
    calls = []
    handle = known.register_forward_hook(lambda *_: calls.append(1))
    questions = [QUESTION, Question("grass is", ("green", "blue it"), 0), Question("it", ("blue", "red"), 0)]
    options = {"templates": TEMPLATES, "reasons": True, "max_new_tokens": 5, "batch_size": 2}
    for stated in ("yes_no", "percentage", None):
        calls.clear()
        model = EvaluatedModel(known)
        prepared = [Question(**each) if isinstance(each, dict) else each for each in questions]
        evaluation = MultipleChoiceEvaluation(
            model, word_tokenizer(), prepared, EvaluationOptions(stated=stated, **options)
        )
        answers = evaluation.run()
        assert answers.num_forwards == len(calls) <= evaluation.most_forwards
        assert evaluation.most_forwards == {"yes_no": 2 + 2 + 10, "percentage": 2 + 16 + 10, None: 2 + 10}[stated]
        assert len(calls) == evaluation.most_forwards  # nothing ends early: there is no eos token
    handle.remove()


def built(build):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT calls what transformers will remove
        return build()


def lora():
    return get_peft_model(llama(dropout=0.1), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))


def prefix():
    return get_peft_model(llama(), PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))


def virtual():
    return get_peft_model(llama(), PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))


def checkpointed():
    model = llama(dropout=0.1)
    enable_checkpointing(model)
    model.config.use_cache = False
    return model


def sampling():
    model = llama(dropout=0.1)
    options = {"do_sample": True, "temperature": 0.1, "top_k": 3, "repetition_penalty": 2.0, "max_length": 5}
    model.generation_config = hf.GenerationConfig(**options)
    return model


def small_tokenizer():
    """For the models of 50 ids."""
    assert len(WORDS) < 50
    return word_tokenizer(bos=True)


# PEFT hands the cache over by the name that it had before, and `generate` by its new one.
PREFIX = pytest.param(prefix, marks=lacks(CACHE == "cache", "the cache of PEFT's prefixes is ignored"))


@pytest.mark.parametrize("build", [lora, PREFIX, virtual, checkpointed, sampling])
def test_nothing_of_the_model_changes(build, caplog):
    model = built(build).train()
    list(model.modules())[5].eval()  # frozen by its owner
    before = {
        name: {key: value for key, value in vars(module).items() if not key.startswith("_")}
        for name, module in model.named_modules()
    }
    generation = model.generation_config.to_dict()
    config, state, weights = model.config.to_dict(), torch.get_rng_state(), copy.deepcopy(model.state_dict())
    python_state = random.getstate()
    ask(model, small_tokenizer(), [QUESTION], templates=TEMPLATES, reasons=True, stated="percentage", max_new_tokens=3)
    for name, module in model.named_modules():
        now = {key: value for key, value in vars(module).items() if not key.startswith("_")}
        assert now.keys() == before[name].keys(), name
        assert all(now[key] is before[name][key] for key in now), name
    assert model.generation_config.to_dict() == generation
    assert model.config.to_dict() == config
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python_state
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


@pytest.mark.parametrize("build", [lora, PREFIX, virtual])
def test_adapters_count(build):
    model = built(build)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
    answers = ask(model, small_tokenizer(), [QUESTION], stated=None)
    row = small_tokenizer()(QUESTION["prompt"]).input_ids
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor([row])).logits[0, -1].log_softmax(0)
    assert answers.log_likelihoods[0] == pytest.approx([logits[ID[each]].item() for each in QUESTION["choices"]], 1e-4)
    plain = ask(model.get_base_model(), small_tokenizer(), [QUESTION], stated=None)
    assert (plain.log_likelihoods == answers.log_likelihoods) == (build is lora)  # others are not in the base


def test_texts_are_greedy_whatever_the_model_would_do():
    options = {"templates": TEMPLATES, "reasons": True, "max_new_tokens": 6}
    greedy, sampled = (ask(model, small_tokenizer(), [QUESTION], **options) for model in (llama(), sampling()))
    assert greedy.claimed_reasons == sampled.claimed_reasons
    ids = list(
        QuestionTokenizer(small_tokenizer()).ids("the sky is " + greedy.choices[0][greedy.predictions[0]] + " because")
    )
    model, length = llama().eval(), len(ids)
    for _ in range(6):
        ids.append(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item())
    assert greedy.claimed_reasons == [small_tokenizer().decode(ids[length:], skip_special_tokens=True)]


def test_model_is_as_before_after_an_error():
    model = llama()
    configuration = model.generation_config
    handle = model.lm_head.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ask(model, small_tokenizer(), [QUESTION], templates=TEMPLATES)
    handle.remove()
    count = iter(range(10))
    handle = model.lm_head.register_forward_pre_hook(lambda *_: 1 / 0 if next(count) == 2 else None)
    with pytest.raises(ZeroDivisionError):
        ask(model, small_tokenizer(), [QUESTION], templates=TEMPLATES, reasons=True)
    assert next(count) == 3  # it was writing
    assert model.generation_config is configuration
    assert model.training


def test_model_that_a_function_calls(known):
    def forward(model, batch):
        return model(input_ids=batch["input_ids"]).logits

    given = ask(known, word_tokenizer(), [QUESTION], templates=TEMPLATES, forward=forward)
    plain = ask(known, word_tokenizer(), [QUESTION], templates=TEMPLATES)
    assert given.log_likelihoods == plain.log_likelihoods
    assert given.stated_confidence == plain.stated_confidence
    with pytest.raises(ConfigurationError, match="`forward`: a model with a custom forward can't generate text"):
        ask(known, word_tokenizer(), [QUESTION], reasons=True, forward=forward)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stated": "maybe"}, "`stated` must be one of 'yes_no', 'percentage' or None, got 'maybe'"),
        ({"score": "max"}, "`score` must be one of 'sum', 'mean', got 'max'"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be an integer of at least 1, got 0"),
        ({"batch_size": 0}, "`batch_size` must be an integer"),
        ({"max_length": 0}, "`max_length` must be an integer"),
        ({"tokenizer": 3}, "`tokenizer` must be a tokenizer of transformers, got a int"),
        ({"questions": []}, "`questions` is empty"),
        ({"model": t5_for_generation}, "a T5ForConditionalGeneration; for a classifier"),
        ({"model": bert}, "a BertModel; for a classifier"),
        (
            {"model": lambda: resized(llama(), 9)},
            "`tokenizer` does not belong to the model: it produces the token id 15",
        ),
    ],
)
def test_wrong_arguments_are_named(options, message):
    options = {"model": llama, "tokenizer": word_tokenizer(), "questions": [QUESTION], "templates": TEMPLATES} | options
    with pytest.raises(ConfigurationError, match=message):
        ask(options.pop("model")(), options.pop("tokenizer"), options.pop("questions"), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"answer": "{prompt}"}, "`answer` must have {prompt}, {choice}, each once"),
        (
            {"reason": "{prompt} {answer} {reply}."},
            "`reason` must have {prompt}, {answer}, {reply}, each once, and end",
        ),
        ({"yes_no": "{prompt} {answer} {what} {reply}"}, "`yes_no` must have"),
        ({"percentage": "{prompt"}, "`percentage` must be a text"),
        ({"yes": ()}, "`yes` must be a nonempty tuple of words"),
        ({"no": "no"}, "`no` must be a nonempty tuple of words"),
        ({"no": ("no", "yes")}, "`yes` and `no` must be different words"),
    ],
)
def test_wrong_templates_are_named(options, message):
    with pytest.raises(ConfigurationError, match=message.replace("{", r"\{").replace("}", r"\}")):
        Templates(**options)


def test_braces_in_prompts_and_blanks_before_choices():
    templates = Templates(answer="Q: {{x}} {prompt} {choice}")
    assert templates.question("a {b} ") == ("Q: {x} a {b}", " ")
    assert templates.follow_up("reason", "a ", " b ") == ("a b\nWhy is this right? Because", " ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("85%", 0.85),
        ("I am 85.5 % sure, not 20", 0.855),
        ("100", 1.0),
        ("0", 0.0),
        ("GPT4 says 70", 0.7),
        ("(90)", 0.9),
        ("60-80%", 0.6),
        ("0.9", 0.009),
        ("About 3.", 0.03),
        ("150% or 50%", None),
        ("-5", None),
        ("+5", None),
        ("1,000", None),
        ("12,5%", None),
        ("90th", None),
        ("1e2", None),
        (".5", None),
        ("1.2.3", None),
        ("very sure", None),
        ("", None),
        ("９０", None),
    ],
)
def test_percentages(text, expected):
    found = parse_percentage(text)
    assert math.isnan(found) if expected is None else found == pytest.approx(expected)


@given(st.floats(0, 100).map(lambda number: round(number, 2)), st.sampled_from(["%", " %", "", " percent", ". 7"]))
def test_percentages_are_found(number, unit):
    assert parse_percentage(f"Perhaps {number:.2f}{unit}") == pytest.approx(number / 100)


@given(st.text())
def test_percentages_of_any_text(text):
    found = parse_percentage(text)
    assert math.isnan(found) or 0 <= found <= 1


def test_markdown_has_it_all_and_nothing_of_it_is_markup(known):
    question = Question("the <b>sky</b>\n# *is*", ("blue", "red_[1]"), 1)
    answers = ask(known, word_tokenizer(), [question], templates=TEMPLATES, reasons=True, max_new_tokens=2)
    text = answers_markdown(answers)
    assert r"the &lt;b&gt;sky&lt;/b&gt; ↵ \# \*is\*" in text
    assert r"red\_\[1\]" in text
    assert "**0 of 1 questions right**" in text or "**1 of 1 questions right**" in text
    assert "stated confidence: 75%" in text
    assert "Claimed reason (text that the model finds likely, not an explanation): it reflects" in text
    assert literal("a\r\nb\u2028  c") == "a ↵ b ↵ c"


def classifier(**options):
    return seeded(lambda: hf.BertForSequenceClassification(hf.BertConfig(**bert().config.to_diff_dict() | options)))


def test_classifier_calibration():
    model = classifier(num_labels=3)
    labels = torch.tensor([0, 2, -100, 1])
    batches = [{"input_ids": token_ids(4), "labels": labels}, {"input_ids": token_ids(4, 7, seed=1), "labels": labels}]
    found = classifier_calibration(model, batches, num_bins=5)
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(input_ids=batch["input_ids"]).logits[labels >= 0] for batch in batches])
    expected = calibration(logits.double().softmax(-1), labels[labels >= 0].repeat(2), num_bins=5)
    assert str(found) == str(expected)
    assert found.num_examples == 6
    with pytest.raises(ConfigurationError, match=r"`batches` must have integer `labels` .batch. .*; got none"):
        classifier_calibration(model, [{"input_ids": token_ids(4)}])
    with pytest.raises(ConfigurationError, match=r"`batches` must have integer `labels` .*; got a list"):
        classifier_calibration(model, [{"input_ids": token_ids(4), "labels": [0, 1, 0, 1]}])
    with pytest.raises(ConfigurationError, match="`batches`: each batch must be a mapping with `input_ids`"):
        classifier_calibration(model, [(token_ids(4), labels)])
    with pytest.raises(ConfigurationError, match="`batches` is empty"):
        classifier_calibration(model, [])
    with pytest.raises(ConfigurationError, match=r"of at least two classes, got .4, 1."):
        classifier_calibration(classifier(num_labels=1), batches)
    with pytest.raises(ConfigurationError, match="Pass `questions` if it is a language model"):
        classifier_calibration(llama(), batches)


def test_calibration_of_labels_that_are_each_yes_or_no():
    model = classifier(num_labels=3, problem_type="multi_label_classification").eval()
    labels = torch.tensor([[0.0, 1, 1], [0, 0, 0], [1, 0, 1], [1, 1, 1]])
    batch = {"input_ids": token_ids(4), "labels": labels}
    with torch.no_grad():
        yes = model(**batch).logits.double().sigmoid()
    right = (yes > 0.5) == labels.bool()
    expected = calibration(torch.maximum(yes, 1 - yes).flatten(), right.flatten())
    found = classifier_calibration(model, [batch])
    assert found.num_examples == 12
    assert found.expected_calibration_error == pytest.approx(expected.expected_calibration_error)
    assert found.auroc == pytest.approx(expected.auroc)
    assert found.brier == pytest.approx(float(2 * (yes - labels).square().mean()))
    with pytest.raises(ConfigurationError, match=r"or for multi-label models 0.0 and 1.0 .batch, classes.; got"):
        classifier_calibration(classifier(num_labels=3, problem_type="regression"), [batch])


def test_json_of_a_question_is_taken_as_it_is(known, tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(QUESTION), encoding="utf-8")
    assert ask(known, word_tokenizer(), path, templates=TEMPLATES).labels == [1]
