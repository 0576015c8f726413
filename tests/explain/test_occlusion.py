"""Importance by hiding, against one forward for each hidden token, and against models whose answer is known."""

import copy

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from attnwatch import ConfigurationError
from attnwatch.explain import EvaluatedModel, HidingOptions, OcclusionPlan, occlude
from attnwatch.explain.masked_batch import positions_by_mask
from attnwatch.explain.occlusion import REASONS
from tests.support.models import (
    TOKENS,
    VOCABULARY,
    bert,
    bloom,
    distilbert,
    gemma2,
    gpt2,
    gpt_neox,
    llama,
    mistral,
    opt,
    padding_mask,
    qwen3,
    roberta,
    seeded,
    t5_for_generation,
    token_ids,
)
from tests.support.versions import CACHE

CAUSAL = [llama, mistral, gpt2, opt, gpt_neox, qwen3, gemma2]
CLASSIFIERS = {
    "bert": (bert, hf.BertForSequenceClassification),
    "roberta": (roberta, hf.RobertaForSequenceClassification),
    "distilbert": (distilbert, hf.DistilBertForSequenceClassification),
}
MASK_TOKEN = 7
LABELS = torch.tensor([1, 0, 1])


def classifier(name: str, **options) -> nn.Module:
    base, kind = CLASSIFIERS[name]
    config = base().config
    config.update(options)
    return seeded(lambda: kind(config))


def causal_batch(side: str | None) -> dict[str, Tensor]:
    mask = torch.ones(3, TOKENS, dtype=torch.int64) if side is None else padding_mask(side)
    return {"input_ids": token_ids() * mask, "attention_mask": mask}


def alone(model: nn.Module, batch: dict, sequence: int, hidden: list[int], hide: str) -> Tensor:
    """float64 logits of one sequence, in a forward of its own, its inputs made by hand."""
    ids, mask = (batch[name][sequence : sequence + 1].clone() for name in ("input_ids", "attention_mask"))
    given = {"attention_mask": mask.clone()}
    if model.config.model_type == "opt":  # it counts positions in the mask
        given["position_ids"] = (mask.cumsum(1) * mask - 1).long()
    if hide == "mean":
        # Models that count positions in the ids must see them; embeddings are put in by a hook of the oracle's own.
        mean = model.get_input_embeddings()(torch.arange(model.config.vocab_size)).mean(0)

        def put(module, args, output):
            output = output.clone()
            output[0, hidden] = mean
            return output

        handle = model.get_input_embeddings().register_forward_hook(put)
    if hide == "mask_token":
        ids[0, hidden] = MASK_TOKEN
    if hide == "remove":
        given["attention_mask"][0, hidden] = 0
    with torch.no_grad():
        logits = model(input_ids=ids, **given).logits[0]
    if hide == "mean":
        handle.remove()
    return logits.double()


def losses(model: nn.Module, batch: dict, sequence: int, hidden: list[int], hide: str) -> Tensor:
    """[tokens], at the token that predicts; nan where there is nothing to predict."""
    ids, mask = batch["input_ids"][sequence], batch["attention_mask"][sequence].bool()
    found = F.cross_entropy(alone(model, batch, sequence, hidden, hide)[:-1], ids[1:], reduction="none")
    found = F.pad(found, (0, 1), value=torch.nan)
    counts = mask & F.pad(mask[1:], (0, 1), value=False)
    return found.masked_fill(~counts, torch.nan)


def expected_matrix(model: nn.Module, batch: dict, hide: str) -> Tensor:
    """float64 [batch, hidden, output]."""
    double = copy.deepcopy(model).double().eval()
    if model.config.model_type == "gemma2":  # eager attention in float64 is nan in rows that see nothing
        double = double.float()
    ids, mask = batch["input_ids"], batch["attention_mask"]
    matrix = torch.full((*ids.shape, ids.shape[1]), torch.nan, dtype=torch.float64)
    for sequence in range(len(ids)):
        base = losses(double, batch, sequence, [], hide)
        for token in range(ids.shape[1]):
            if mask[sequence, token] and ids[sequence, token] > 2 and not base[token].isnan():
                rise = losses(double, batch, sequence, [token], hide) - base
                if hide == "remove":
                    rise[token] = torch.nan
                if not rise[token:].isnan().all():  # else nothing is predicted after it
                    matrix[sequence, token] = rise
    return matrix


@pytest.mark.parametrize("hide", ["remove", "mask_token", "mean"])
@pytest.mark.parametrize("side", ["left", "right", None])
@pytest.mark.parametrize("build", CAUSAL, ids=lambda build: build.__name__)
def test_language_model_against_one_forward_each(build, side, hide):
    model, batch = build(), causal_batch(side)
    found = occlude(model, batch, hide=hide, mask_token_id=MASK_TOKEN, tokens_per_forward=40)
    expected = expected_matrix(model, batch, hide)
    assert found.route == "cached_prefix", found.why_full
    torch.testing.assert_close(found.matrix.double(), expected, rtol=1e-3, atol=2e-4, equal_nan=True)
    num_outputs = (batch["attention_mask"].sum(1) - 1)[:, None]
    importance = torch.where(expected.isnan().all(2), torch.nan, expected.nansum(2) / num_outputs)
    torch.testing.assert_close(found.importance.double(), importance, rtol=1e-3, atol=1e-4, equal_nan=True)
    before = torch.ones(TOKENS, TOKENS).tril(-1).bool()
    assert (found.matrix[:, before].nan_to_num() == 0).all()


@pytest.mark.parametrize("hide", ["remove", "mask_token", "mean"])
@pytest.mark.parametrize("effect", ["label", "kl"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier_against_one_forward_each(name, side, effect, hide):
    model, batch = classifier(name), {**causal_batch(side), "labels": LABELS}
    found = occlude(model, batch, hide=hide, effect=effect, mask_token_id=MASK_TOKEN, tokens_per_forward=30)
    double = copy.deepcopy(model).double().eval()
    for sequence, token in batch["attention_mask"].nonzero().tolist():
        base = alone(double, batch, sequence, [], hide).log_softmax(-1)
        after = alone(double, batch, sequence, [token], hide).log_softmax(-1)
        label = LABELS[sequence]
        expected = base[label] - after[label] if effect == "label" else (base.exp() * (base - after)).sum()
        assert found.importance[sequence, token].item() == pytest.approx(expected.item(), rel=1e-3, abs=1e-4)
    assert found.importance[batch["attention_mask"] == 0].isnan().all()
    assert found.route == "full"
    assert "label" in found.why_full or "kl" in found.why_full


@pytest.mark.parametrize("effect", ["label", "kl"])
def test_labels_that_are_each_yes_or_no_against_one_forward_each(effect):
    model = classifier("bert", num_labels=3, problem_type="multi_label_classification")
    labels = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1]])
    batch = {**causal_batch("right"), "labels": labels}
    if effect == "kl":
        del batch["labels"]
    found = occlude(model, batch)
    assert found.effect == effect
    double = copy.deepcopy(model).double().eval()
    for sequence, token in batch["attention_mask"].nonzero().tolist():
        base, after = (alone(double, batch, sequence, hidden, "remove").sigmoid() for hidden in ([], [token]))
        if effect == "label":
            is_there = labels[sequence].bool()
            expected = (torch.where(is_there, base, 1 - base) / torch.where(is_there, after, 1 - after)).log().sum()
        else:
            expected = (base * (base / after).log() + (1 - base) * ((1 - base) / (1 - after)).log()).sum()
        assert found.importance[sequence, token].item() == pytest.approx(expected.item(), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("build", [bert, llama], ids=["bert", "llama"])
def test_divergence_of_every_output(build):
    model = seeded(lambda: hf.BertForMaskedLM(bert().config)) if build is bert else llama()
    batch = causal_batch("right")
    found = occlude(model, batch, effect="kl")
    double = copy.deepcopy(model).double().eval()
    base = alone(double, batch, 1, [], "remove").log_softmax(-1)
    after = alone(double, batch, 1, [3], "remove").log_softmax(-1)
    expected = (base.exp() * (base - after)).sum(-1)
    expected[3] = torch.nan
    expected[batch["attention_mask"][1] == 0] = torch.nan
    torch.testing.assert_close(found.matrix[1, 3].double(), expected, rtol=1e-3, atol=1e-4, equal_nan=True)
    real = int(batch["attention_mask"][1].sum())
    assert found.importance[1, 3].item() == pytest.approx(expected.nansum().item() / real, rel=1e-3)


class Reads(nn.Module):
    """Says how much of one token it sees: log p(class 1) is known."""

    def __init__(self, token: int):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 1)
        self.embedding.weight.data.zero_()
        self.embedding.weight.data[token] = 3.0

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, attention_mask):
        seen = (self.embedding(input_ids)[..., 0] * attention_mask).sum(1)
        return torch.stack([torch.zeros_like(seen), seen], 1)


@pytest.mark.parametrize("hide", ["remove", "mask_token", "mean"])
def test_model_that_reads_one_token(hide):
    ids = torch.tensor([[11, 12, 13, 14], [12, 15, 16, 12]])
    batch = {"input_ids": ids, "labels": torch.tensor([1, 1])}
    found = occlude(
        Reads(12),
        batch,
        hide=hide,
        mask_token_id=MASK_TOKEN,
        forward=lambda m, b: (
            m(b["input_ids"], b["attention_mask"])
            if hide == "remove"
            else m(b["input_ids"], torch.ones_like(b["input_ids"]))
        ),
    )
    put_in = 3.0 / VOCABULARY if hide == "mean" else 0.0
    log_p = lambda seen: F.logsigmoid(torch.tensor(seen)).item()  # noqa: E731
    drop = lambda seen: log_p(seen) - log_p(seen - 3.0 + put_in)  # noqa: E731
    nothing = lambda seen: log_p(seen) - log_p(seen + put_in)  # noqa: E731
    expected = [
        [nothing(3.0), drop(3.0), nothing(3.0), nothing(3.0)],
        [drop(6.0), nothing(6.0), nothing(6.0), drop(6.0)],
    ]
    torch.testing.assert_close(found.importance, torch.tensor(expected), atol=1e-6, rtol=1e-5)


def test_units_are_hidden_together():
    model, batch = classifier("bert"), {**causal_batch("right"), "labels": LABELS}
    units = torch.tensor([0, 0, 1, -1, 2, 2, 2, 3, 1, 4, 4, 4]).expand(3, -1)
    found = occlude(model, batch, units=units)
    double = copy.deepcopy(model).double().eval()
    for sequence, members in ((0, [2, 8]), (0, [4, 5, 6]), (1, [2]), (2, [2, 8])):
        base = alone(double, batch, sequence, [], "remove").log_softmax(-1)[LABELS[sequence]]
        after = alone(double, batch, sequence, members, "remove").log_softmax(-1)[LABELS[sequence]]
        for token in members:
            assert found.importance[sequence, token].item() == pytest.approx((base - after).item(), abs=1e-4)
    assert found.why_not(0, 3) == "in no unit"
    assert found.why_not(1, 8) == "padding"


def test_spans_of_a_language_model():
    model, batch = llama(), causal_batch(None)
    units = torch.arange(TOKENS).div(3, rounding_mode="floor").expand(3, -1)
    found = occlude(model, batch, units=units)
    double = copy.deepcopy(model).double().eval()
    base = losses(double, batch, 0, [], "remove")
    rise = losses(double, batch, 0, [3, 4, 5], "remove") - base
    rise[3:6] = torch.nan
    for token in (3, 4, 5):
        torch.testing.assert_close(found.matrix[0, token].double(), rise, rtol=1e-3, atol=1e-4, equal_nan=True)


def planned_forwards(model: nn.Module, batch: dict, *, max_units: int | None = None, **options) -> int:
    return OcclusionPlan(EvaluatedModel(model), batch, HidingOptions(**options), max_units=max_units).num_forwards


def count_forwards(model: nn.Module) -> list[int]:
    counted = [0]
    model.register_forward_pre_hook(lambda module, args: counted.__setitem__(0, counted[0] + 1))
    return counted


@pytest.mark.parametrize("max_units", [None, 4])
@pytest.mark.parametrize("tokens_per_forward", [1, 17, 1000])
@pytest.mark.parametrize("build", [llama, opt, bert], ids=lambda build: build.__name__)
def test_number_of_forwards_is_what_was_said(build, tokens_per_forward, max_units):
    model = classifier("bert") if build is bert else build()
    batch = causal_batch("right")
    said = planned_forwards(model, batch, tokens_per_forward=tokens_per_forward, max_units=max_units)
    counted = count_forwards(model)
    found = occlude(model, batch, tokens_per_forward=tokens_per_forward, max_units=max_units)
    assert said == found.num_forwards == counted[0]


def test_tokens_are_sampled_from_equal_strata():
    batch = causal_batch(None)
    found = occlude(llama(), batch, max_units=5)
    hidden = ~found.importance.isnan()
    assert hidden.sum(1).tolist() == [5, 5, 5]
    assert found.why_not(0, int((~hidden[0]).nonzero()[0])) == "not sampled"
    whole = occlude(llama(), batch)
    torch.testing.assert_close(found.importance[hidden], whole.importance[hidden])
    again = occlude(llama(), batch, max_units=5, seed=1)
    assert not torch.equal(again.importance.isnan(), found.importance.isnan())
    for row in hidden:  # of 10 that can be hidden, one of each pair (the last has nothing after it)
        assert row[:10].reshape(5, 2).sum(1).tolist() == [1] * 5


class KeepsNothing(nn.Module):
    """A causal model of one's own, by name but without a cache."""

    def __init__(self):
        super().__init__()
        self.inner = llama()
        self.config = self.inner.config

    def get_input_embeddings(self):
        return self.inner.get_input_embeddings()

    def forward(self, input_ids, attention_mask=None):
        return self.inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)


class ForgetsItsCache(KeepsNothing):
    """Takes a cache, fills it, and does not look at it."""

    def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=False):
        if past_key_values is not None and past_key_values.get_seq_length() == 0:
            return self.inner(input_ids=input_ids, attention_mask=attention_mask, **{CACHE: past_key_values})
        return self.inner(input_ids=input_ids, attention_mask=attention_mask[:, -input_ids.shape[1] :], use_cache=False)


@pytest.mark.parametrize("kind", [KeepsNothing, ForgetsItsCache])
def test_without_a_cache_that_can_be_used_rows_are_computed_whole(kind):
    model, batch = kind(), causal_batch("right")
    found, expected = occlude(model, batch), occlude(llama(), batch)
    assert found.route == "full"
    assert found.why_full
    assert expected.route == "cached_prefix"
    torch.testing.assert_close(found.matrix, expected.matrix, atol=1e-5, rtol=1e-4, equal_nan=True)
    assert found.num_forwards == planned_forwards(model, batch)


def test_what_is_not_hidden_has_its_reason():
    batch = causal_batch("right")
    batch["attention_mask"][2] = 0  # padding only
    batch["input_ids"][0, 4] = 2  # the end of a sentence
    found = occlude(llama(), batch)
    assert found.importance[2].isnan().all()
    assert {found.why_not(2, token) for token in range(TOKENS)} == {"padding"}
    assert found.why_not(0, 4) == "a special token"
    assert found.why_not(0, TOKENS - 1) == "no prediction depends on it"
    assert found.why_not(0, 5) == "hidden"
    assert torch.equal(found.importance.isnan(), found.reasons != REASONS.index("hidden"))


def test_batch_of_padding_only():
    batch = {"input_ids": torch.zeros(2, 5, dtype=torch.int64), "attention_mask": torch.zeros(2, 5, dtype=torch.int64)}
    for model in (llama(), classifier("bert")):
        found = occlude(model, batch)
        assert found.importance.isnan().all()
        assert {REASONS[each] for each in found.reasons.flatten()} == {"padding"}


def test_sequence_without_label_is_left_out():
    batch = {**causal_batch("right"), "labels": torch.tensor([1, -100, 0])}
    found = occlude(classifier("bert"), batch)
    assert found.importance[1].isnan().all()
    assert "no label" in found.why_not(1, 0)
    assert not found.importance[0].isnan().any()


def test_labels_of_a_language_model_say_which_predictions_count():
    batch = causal_batch(None)
    labels = batch["input_ids"].clone()
    labels[:, :6] = -100
    found, whole = occlude(llama(), {**batch, "labels": labels}), occlude(llama(), batch)
    assert found.matrix[:, :, :5].isnan().all()
    torch.testing.assert_close(found.matrix[:, 2, 5:-1], whole.matrix[:, 2, 5:-1], atol=1e-5, rtol=1e-4)


class Tokenizer:
    """What is asked of a tokenizer of transformers: [PAD], [CLS] and [UNK]."""

    all_special_ids = (0, 9, 10)
    pad_token_id, cls_token_id, unk_token_id, mask_token_id = 0, 9, 10, 11
    bos_token_id = eos_token_id = sep_token_id = None


def test_tokenizer_says_what_is_special():
    batch = causal_batch(None)
    batch["input_ids"][:, 0], batch["input_ids"][:, 1] = 9, 10
    found = occlude(classifier("bert"), batch, tokenizer=Tokenizer(), hide="mask_token")
    assert found.why_not(0, 0) == "a special token"
    assert found.why_not(0, 1) == "hidden"  # an unknown word is a word
    expected = occlude(classifier("bert"), batch, special_ids=[9], hide="mask_token", mask_token_id=11)
    assert torch.equal(found.importance.nan_to_num(), expected.importance.nan_to_num())


def undirected(std: float = 0.3) -> nn.Module:
    """Looks both ways, and nothing but its outputs says so."""
    model = seeded(lambda: hf.BertLMHeadModel(bert().config))
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            nn.init.normal_(parameter, std=std, generator=torch.Generator().manual_seed(0))
    return model


def of_tokens() -> nn.Module:
    config = llama().config
    config.num_labels = VOCABULARY  # so that ids could be labels
    return seeded(lambda: hf.LlamaForTokenClassification(config))


ERRORS = {
    "hide": (lambda: llama(), {"hide": "blur"}, "`hide` must be one of 'remove', 'mask_token', 'mean', got 'blur'"),
    "effect": (lambda: llama(), {"effect": "logit"}, "`effect` must be one of 'label', 'loss', 'kl' or None"),
    "mask token": (lambda: llama(), {"hide": "mask_token"}, "LlamaForCausalLM has none: pass `mask_token_id`"),
    "label of tokens": (lambda: llama(), {"effect": "label"}, "give 'loss' or 'kl'"),
    "no labels": (lambda: classifier("bert"), {"effect": "label"}, "needs `labels` in the batch"),
    "loss of a class": (lambda: classifier("bert"), {"effect": "loss"}, "give 'label' or 'kl'"),
    "one output": (lambda: classifier("bert", num_labels=1), {"effect": "kl"}, "the model has 1 output"),
    "masked": (lambda: seeded(lambda: hf.BertForMaskedLM(bert().config)), {}, "are about the hidden tokens: pass effe"),
    "classes of tokens": (lambda: of_tokens(), {}, "LlamaForTokenClassification are about the token itself: pass effe"),
    "not causal": (lambda: undirected(), {}, "hiding a token changes predictions before it: pass effect='kl'"),
    "encoder-decoder": (lambda: t5_for_generation(), {}, "`model`: T5ForConditionalGeneration is an encoder-decoder"),
    "mask token's id": (lambda: llama(), {"hide": "mask_token", "mask_token_id": 50}, "from 0 to 49; got 50"),
    "special_ids": (lambda: llama(), {"special_ids": ["a"]}, "`special_ids` must be a list of token ids"),
    "seed": (lambda: llama(), {"seed": "x"}, "`seed` must be an integer of at least 0, got 'x'"),
    "tokenizer": (lambda: llama(), {"tokenizer": "bert-base"}, "`tokenizer` must be .* got the text 'bert-base'"),
    "alibi": (lambda: seeded(lambda: hf.BloomForCausalLM(bloom().config)), {}, "would shift the other tokens"),
    "units": (lambda: llama(), {"units": torch.zeros(2, 2, dtype=torch.int64)}, r"`units` must be integers of shape"),
    "max_units": (lambda: llama(), {"max_units": 0}, "`max_units` must be an integer of at least 1"),
    "no embedding": (
        lambda: nn.Linear(1, 1),
        {"hide": "mean", "forward": lambda m, b: torch.zeros(3, 2)},
        r"`get_input_embeddings\(\)`",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_what_can_be_done(case):
    build, options, message = ERRORS[case]
    with pytest.raises(ConfigurationError, match=message):
        occlude(build(), causal_batch("right"), **options)


@pytest.mark.parametrize("std", [0.3, 0.02])
@pytest.mark.parametrize("first", [1, 8, TOKENS - 1])
@pytest.mark.parametrize("hide", ["remove", "mean"])
def test_model_that_looks_both_ways_is_refused_whatever_has_labels(hide, first, std):
    labels = torch.full((3, TOKENS), -100)
    labels[:, first:] = 7
    with pytest.raises(ConfigurationError, match="hiding a token changes predictions before it"):
        occlude(undirected(std), {"input_ids": token_ids(), "labels": labels}, hide=hide)


@pytest.mark.parametrize("labelled", [slice(1, 3), slice(TOKENS - 2, TOKENS), slice(TOKENS - 1, TOKENS)])
def test_few_labels_of_a_causal_model(labelled):
    batch = causal_batch(None)
    labels = torch.full((3, TOKENS), -100)
    labels[:, labelled] = batch["input_ids"][:, labelled]
    found, whole = occlude(llama(), {**batch, "labels": labels}), occlude(llama(), batch)
    outputs = [token - 1 for token in range(*labelled.indices(TOKENS))]
    expected = whole.matrix[:, : outputs[0], outputs]
    torch.testing.assert_close(found.matrix[:, : outputs[0], outputs], expected, atol=1e-5, rtol=1e-4)


def test_classes_of_tokens_have_a_divergence():
    found = occlude(of_tokens(), {**causal_batch(None), "labels": token_ids(seed=1)}, effect="kl")
    assert not found.importance.isnan().any()


def test_numbers_to_be_hit_are_no_labels():
    batch = {**causal_batch("right"), "labels": torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])}
    with pytest.raises(ConfigurationError, match=r"or for multi-label models 0.0 and 1.0 of shape .3, 2.; got"):
        occlude(classifier("bert", problem_type="regression"), batch)


def test_regression_has_no_label_to_measure_by():
    with pytest.raises(ConfigurationError, match=r"`effect` 'label' needs .* the model has 1 output: pass `forward`"):
        occlude(classifier("bert", num_labels=1), {**causal_batch("right"), "labels": torch.tensor([0, 0, 0])})


@pytest.mark.parametrize("side", ["left", "right"])
def test_no_position_is_negative(side):
    model, batch = opt(), causal_batch(side)
    given = []
    model.register_forward_pre_hook(lambda _, args, kwargs: given.append(kwargs.get("position_ids")), with_kwargs=True)
    occlude(model, batch)
    given = [each for each in given if each is not None]
    assert given
    assert all(int(each.min()) >= 0 for each in given)
    with torch.no_grad():
        plain = model.eval()(**batch).logits
        same = model(**batch, position_ids=positions_by_mask(batch["attention_mask"])).logits
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(same[real], plain[real], atol=1e-5, rtol=1e-4)


def test_nan_is_called_nan():
    model = llama()
    nn.init.constant_(model.lm_head.weight, torch.nan)
    with pytest.raises(ConfigurationError, match="outputs of LlamaForCausalLM are not finite"):
        occlude(model, causal_batch("right"))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"input_ids": token_ids(), "labels": [1, 0, 1]}, "`batch`: `labels` must be a tensor, got a list"),
        ({"input_ids": token_ids(0)}, r"`batch` is empty, `input_ids` has shape \[0, 12\]"),
        ({"input_ids": token_ids(3, 0)}, r"`batch` is empty, `input_ids` has shape \[3, 0\]"),
        ({"input_ids": token_ids(), "attention_mask": [1]}, "`attention_mask` must be .3, 12. .* got a list"),
        ((token_ids(), LABELS), "`batch` must be a mapping with `input_ids`.* got a tuple"),
    ],
)
def test_wrong_batches_are_named(batch, message):
    with pytest.raises(ConfigurationError, match=message):
        occlude(classifier("bert"), batch)


def test_model_without_mask_of_keys():
    class Blind(KeepsNothing):
        def forward(self, input_ids):
            return self.inner(input_ids=input_ids)

    with pytest.raises(ConfigurationError, match="Blind takes no `attention_mask`"):
        occlude(Blind(), {"input_ids": token_ids()})


def test_outputs_of_another_length_are_refused():
    batch = {**causal_batch("right"), "decoder_input_ids": token_ids(tokens=4)}
    with pytest.raises(ConfigurationError, match="12 tokens give 4 outputs"):
        occlude(t5_for_generation(), batch, forward=lambda model, given: model(**given))


@pytest.mark.slow
@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(2, 10), st.integers(1, 60), st.integers(0, 10**6))
def test_rows_in_one_forward_do_not_matter(size, tokens, tokens_per_forward, seed):
    ids = token_ids(size, tokens, seed=seed)
    lengths = torch.randint(1, tokens + 1, (size, 1), generator=torch.Generator().manual_seed(seed))
    batch = {"input_ids": ids, "attention_mask": (torch.arange(tokens) < lengths).long()}
    model = llama()
    found = occlude(model, batch, tokens_per_forward=tokens_per_forward)
    expected = occlude(model, batch, tokens_per_forward=10**6)
    torch.testing.assert_close(found.matrix, expected.matrix, atol=1e-4, rtol=1e-3, equal_nan=True)


@pytest.mark.parametrize("hide", ["remove", "mask_token", "mean"])
def test_model_and_random_state_stay(hide):
    model = llama(dropout=0.1)
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    weights = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    occlude(model, causal_batch("left"), hide=hide, mask_token_id=MASK_TOKEN, max_units=3)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert not model.get_input_embeddings()._forward_hooks
    assert all(parameter.grad is None for parameter in model.parameters())
