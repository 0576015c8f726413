"""Batches with tensors that no attention function looks at: they blind no monitor and keep no token from going."""

import copy
import functools

import numpy as np
import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from attnwatch import AttentionRecorder, ModelFamily, TokenDropper, TokenLayout
from attnwatch.capture import ignores
from attnwatch.statistics import Statistic
from attnwatch.transformers import AttentionMonitor, TokenDropping
from tests.support.language_models import number_tokenizer
from tests.support.models import TOKENS, bart, bert, gpt2, gpt_neox, llama, opt, qwen3, t5, token_ids, vit
from tests.support.transformers_training import Sequences, train
from tests.support.versions import BEFORE_5

pytestmark = pytest.mark.skipif(BEFORE_5, reason=f"transformers {hf.__version__}: few models take what they don't name")

EXTRA = {"example_id": torch.arange(3), "weight_of_token": torch.rand(3, TOKENS), "seq_idx": torch.zeros(3, TOKENS)}
IDS = token_ids()


def batch_for(model: nn.Module) -> dict[str, Tensor]:
    if isinstance(model, hf.ViTModel):
        return {"pixel_values": torch.rand(3, 3, 12, 12)}
    return {"input_ids": IDS} | ({"decoder_input_ids": IDS} if isinstance(model, hf.T5Model) else {})


def record(model: nn.Module, batch: dict[str, Tensor]):
    with AttentionRecorder(model, num_query_rows=None) as recorder:
        with recorder.step(0):
            model(**batch)
        return recorder.history()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("build", [llama, gpt2, bert, t5, gpt_neox, qwen3, vit, bart, opt])
def test_statistics_are_those_without_them(build, implementation: str):
    model = build(implementation).eval()
    batch = batch_for(model)
    expected, history = record(model, batch), record(model, {**batch, **EXTRA})
    assert set(history.coverage.values()) == {"observed"}
    for name in Statistic.registry:
        np.testing.assert_array_equal(history[name], expected[name])


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("build", [llama, gpt2, bert, vit])
def test_tokens_are_dropped_as_without_them(build, implementation: str):
    model, outputs = build(implementation), []
    batch = batch_for(model)
    for extra in ({}, EXTRA):
        with TokenDropper(model, first_layer=0, last_layer=-1, min_tokens=2) as dropper:
            outputs.append(model(**batch, **extra)[0])
        assert dropper.layer_tokens < dropper.all_layer_tokens
    assert outputs[0].equal(outputs[1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile uses what torch deprecates
def test_compiled_model_is_one_graph_with_them():
    torch._dynamo.reset()
    model = llama(layers=3)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with TokenDropper(model, min_tokens=2) as dropper, AttentionRecorder(compiled) as recorder:
        with recorder.step(0):
            compiled(input_ids=IDS, use_cache=False, **EXTRA).logits.sum().backward()
        assert set(recorder.coverage().values()) == {"observed"}
    assert dropper.layer_tokens < dropper.all_layer_tokens


class Layer(nn.Module):
    """A user's, whose attention looks at what the layer only hands on."""

    def __init__(self, part: type[nn.Module]):
        super().__init__()
        self.part = part()

    def forward(self, x: Tensor, **options) -> Tensor:
        return x + self.part(x, **options)


class Looking(nn.Linear):
    def __init__(self):
        super().__init__(8, 8)

    def forward(self, x: Tensor, **options) -> Tensor:
        return super().forward(x * options["factor"])


class NotLooking(Looking):
    def forward(self, x: Tensor, **options) -> Tensor:
        return nn.Linear.forward(self, x)


class Layers(nn.Module):
    def __init__(self, part: type[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(Layer(part) for _ in range(3))

    def forward(self, x: Tensor, **options) -> Tensor:
        for layer in self.layers:
            x = layer(x, **options)
        return x


@pytest.mark.parametrize(("part", "is_looked_at"), [(Looking, True), (NotLooking, False)])
def test_what_a_part_of_a_layer_looks_at_keeps_all_tokens(registered, part, is_looked_at: bool):
    registered(ModelFamily("layers", tokens={Layer: TokenLayout("x")}))
    model, x, factor = Layers(part), torch.randn(2, TOKENS, 8), torch.rand(2, TOKENS, 1)
    with TokenDropper(model, min_tokens=2) as dropper:
        if is_looked_at:
            with pytest.warns(match="the layers receive 'factor', a tensor that is not in the token layout"):
                model(x, factor=factor)
        else:
            model(x, factor=factor)
    assert (dropper.layer_tokens == dropper.all_layer_tokens) == is_looked_at


def looking(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    bias = kwargs.get("bias", 0)
    return sdpa_attention_forward(module, query + bias, key, value, attention_mask, dropout, scaling)


def handing_on(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)


def naming(module, query, key, value, attention_mask, scaling=None, dropout=0.0, example_id=None, **kwargs):
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling)


def not_looking(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling)


@pytest.mark.parametrize(
    ("function", "is_ignored"),
    [(looking, False), (handing_on, False), (naming, False), (not_looking, True), (functools.partial(naming), False)],
    ids=["looking", "handing on", "naming", "not looking", "partial"],
)
@pytest.mark.filterwarnings("ignore::attnwatch.AttnwatchWarning")
def test_the_function_that_is_called_decides(function, is_ignored: bool, monkeypatch):
    """Here a user's own in the place of sdpa."""
    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", function)
    model = llama(layers=3)
    history = record(model, {"input_ids": IDS, "example_id": torch.arange(3)})
    reasons = set(history.coverage.values())
    if is_ignored:
        assert reasons == {"observed"}
    else:
        assert all("a tensor whose effect is unknown: example_id" in reason for reason in reasons)
    with TokenDropper(model, min_tokens=2) as dropper:
        model(input_ids=IDS, example_id=torch.arange(3))
    assert (dropper.layer_tokens < dropper.all_layer_tokens) == is_ignored


def test_own_functions_of_transformers_ignore_what_they_do_not_name():
    from transformers.integrations.flash_attention import flash_attention_forward
    from transformers.integrations.flex_attention import flex_attention_forward
    from transformers.models.llama.modeling_llama import eager_attention_forward

    for function in (sdpa_attention_forward, eager_attention_forward, flex_attention_forward, flash_attention_forward):
        assert ignores(function, "example_id")
        assert not ignores(function, "attention_mask")
    assert ignores(sdpa_attention_forward, "position_ids")
    assert not ignores(flash_attention_forward, "position_ids")  # which a function that it calls names
    assert ignores(eager_attention_forward, "softcap")
    assert not ignores(flex_attention_forward, "softcap")


class Numbered(Sequences):
    def __getitem__(self, index: int) -> dict:
        return super().__getitem__(index) | {"example_id": index}


def test_trainer_with_a_column_of_numbers(tmp_path):
    monitor, dropping = (
        AttentionMonitor(every_n_steps=1),
        TokenDropping(0.5, first_layer=0, last_layer=-1, min_tokens=2),
    )
    train(
        monitor,
        dropping,
        directory=tmp_path,
        train_dataset=Numbered(),
        remove_unused_columns=False,
        max_steps=2,
    )
    assert set(monitor.coverage().values()) == {"observed"}
    assert monitor.history["entropy"].shape[0] == 2
    assert dropping.dropper.layer_tokens < dropping.dropper.all_layer_tokens


def entropy_by_hand(model: nn.Module, ids: Tensor, positions: Tensor) -> np.ndarray:
    """Mean over the rows that see two keys or more, float64 [layers, heads], each document given to the model alone."""
    starts = (positions[0] == 0).nonzero().flatten().tolist()
    total, rows = 0.0, 0
    for start, end in zip(starts, [*starts[1:], positions.shape[1]], strict=True):
        if end - start == 1:
            continue
        with torch.no_grad():
            weights = model(input_ids=ids[:, start:end], output_attentions=True).attentions
        rows += end - start - 1
        total += torch.stack([torch.special.entr(each[0]).sum(-1)[:, 1:].sum(-1) for each in weights])
    return (total / rows).numpy()


@pytest.mark.parametrize(
    "options", [{"packing": True}, {"padding_free": True, "max_length": None}], ids=["packing", "free"]
)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.filterwarnings("ignore")
def test_packed_batches_of_trl(options, implementation: str, tmp_path):
    """Its batches have the boundaries of the documents, and of each token the number of its document."""
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    lengths = [5, 9, 4, 11, 7, 6, 8, 10]
    data = datasets.Dataset.from_list([{"input_ids": token_ids(1, length)[0].tolist()} for length in lengths])
    model = llama(implementation, layers=3)
    by_hand = llama("eager", layers=3).double().eval()
    monitor, dropping = AttentionMonitor(every_n_steps=1, num_query_rows=None), TokenDropping(0.5, min_tokens=2)
    defaults = {"max_length": 24, "max_steps": 1, "per_device_train_batch_size": 3, "report_to": "none"}
    arguments = trl.SFTConfig(
        str(tmp_path), save_strategy="no", use_cpu=True, disable_tqdm=True, **defaults | {"bf16": False} | options
    )
    trainer = trl.SFTTrainer(
        model, arguments, train_dataset=data, processing_class=number_tokenizer(), callbacks=[monitor, dropping]
    )
    batches, collate = [], trainer.data_collator
    trainer.data_collator = lambda rows: batches.append(collate(rows)) or copy.copy(batches[-1])
    trainer.train()
    assert "seq_idx" in batches[0]
    assert (batches[0]["position_ids"] == 0).sum() > 2
    assert set(monitor.coverage().values()) == {"observed"}
    expected = entropy_by_hand(by_hand, batches[0]["input_ids"], batches[0]["position_ids"])
    all_tokens = [0, 2]  # the layer between sees half of them
    np.testing.assert_allclose(monitor.history["entropy"][0][0], expected[0], rtol=0, atol=1e-5)
    assert dropping.dropper.layer_tokens < dropping.dropper.all_layer_tokens
    assert np.isfinite(monitor.history["entropy"][0][all_tokens]).all()
