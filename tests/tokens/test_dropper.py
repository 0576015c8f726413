"""What a token dropper leaves alone, refuses, and survives."""

import copy
import gc
import io
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import checkpoint

from attnwatch import AttentionRecorder, AttnwatchWarning, ConfigurationError, ModelFamily, prune_heads, register
from attnwatch.attention import Identity
from attnwatch.tokens import TokenCriterion, TokenDropper, TokenLayout
from tests.support.layers_by_hand import deep
from tests.support.models import (
    HEADS,
    LENGTHS,
    TOKENS,
    VOCABULARY,
    WIDTH,
    bart,
    bert,
    bloom,
    deberta,
    gpt,
    gpt2_with_cross_attention,
    llama,
    mistral,
    opt,
    padding_mask,
    seeded,
    t5,
    token_ids,
    vit,
)
from tests.support.versions import CACHE, EARLY, enable_checkpointing

IDS = token_ids()
SMALL = {"keep_ratio": 0.5, "min_tokens": 2}


def deep_llama() -> nn.Module:
    return deep(llama)().float()


def scores(seed: int = 3) -> Tensor:
    return torch.rand(len(LENGTHS), TOKENS, generator=torch.Generator().manual_seed(seed))


def by_scores(tokens) -> Tensor:
    return scores()


# What is left alone.


@pytest.mark.filterwarnings("ignore:attnwatch. all tokens are computed when a key-value cache")
def test_evaluation_generation_and_caches_are_left_alone():
    model = deep_llama()
    cases = {
        "eval": lambda: model.eval()(IDS).logits,
        "no gradients": lambda: _without_gradients(model),
        "generate": lambda: model.train().generate(IDS, max_new_tokens=4, do_sample=False),
        "cache that was asked for": lambda: model.train()(IDS, use_cache=True).logits,
        "cache that was given": lambda: _with_cache(model),
    }
    expected = {name: case() for name, case in cases.items()}
    with TokenDropper(model, **SMALL) as dropper:
        for name, case in cases.items():
            assert torch.equal(case(), expected[name]), name
        assert dropper.layer_tokens == dropper.all_layer_tokens
        model.train()(IDS)
        assert dropper.layer_tokens < dropper.all_layer_tokens


def _without_gradients(model) -> Tensor:
    with torch.no_grad():
        return model.train()(IDS).logits


def _with_cache(model) -> Tensor:
    cache = model.train()(IDS[:, :6], use_cache=True)[CACHE]
    return model(IDS[:, 6:], **{CACHE: cache}).logits


NOTHING = {"criterion": lambda tokens: torch.full(IDS.shape, torch.nan)}


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({}, {"use_cache": True}, "all tokens are computed when a key-value cache is passed or requested"),
        (NOTHING, {}, "the criterion scores all tokens nan"),
    ],
)
def test_warns_once_of_what_makes_the_dropping_useless(options, arguments, message):
    model = deep_llama().train()
    with TokenDropper(model, **SMALL, **options), warnings.catch_warnings(record=True, action="always") as caught:
        for _ in range(2):
            model(IDS, **arguments)
    assert len(caught) == 1
    assert message in str(caught[0].message)


def test_everything_is_put_back():
    model = deep_llama()
    classes = [type(layer) for layer in model.model.layers]
    dropper = TokenDropper(model, **SMALL)
    for _ in range(2):
        with dropper:
            assert type(model.model.layers[1]) is not classes[1]
            assert isinstance(model.model.layers[1], classes[1])
        assert [type(layer) for layer in model.model.layers] == classes
        assert type(model) is type(deep_llama())
    dropper.detach()
    with pytest.raises(ZeroDivisionError), dropper:
        raise ZeroDivisionError
    assert [type(layer) for layer in model.model.layers] == classes


def test_copies_and_pickles_are_of_the_model_as_it_was():
    model = deep_llama()
    expected, state = model(IDS).logits, list(model.state_dict())
    classes = [type(module) for module in model.modules()]
    with TokenDropper(model, **SMALL):
        assert list(model.state_dict()) == state
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        for clone in (
            copy.deepcopy(model),
            pickle.loads(pickle.dumps(model)),
            torch.load(file, weights_only=False),
        ):
            assert [type(module) for module in clone.modules()] == classes
            assert torch.equal(clone(IDS).logits, expected)
        assert not torch.equal(model(IDS).logits, expected)


def test_forward_that_failed_leaves_no_trace():
    model = deep_llama()
    with TokenDropper(model, **SMALL, criterion=by_scores):
        expected = model(IDS).logits
        handle = model.model.layers[2].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(IDS)
        handle.remove()
        assert torch.equal(model(IDS).logits, expected)


# Ways to train.


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_of_transformers(use_reentrant):
    plain, checkpointed = deep_llama(), deep_llama()
    enable_checkpointing(checkpointed, use_reentrant=use_reentrant)
    for model in (plain, checkpointed):
        with TokenDropper(model, **SMALL) as dropper:
            first, second = (model(input_ids=token_ids(seed=seed), labels=IDS).loss for seed in (0, 1))
            (first + 2 * second).backward()  # two forwards before one backward, with other tokens each
            assert dropper.layer_tokens == 2 * 36 * 3
    for (name, ours), theirs in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)


def test_checkpoint_wrappers_of_torch():
    plain, wrapped = deep_llama(), deep_llama()
    for index, layer in enumerate(wrapped.model.layers):
        wrapped.model.layers[index] = checkpoint_wrapper(layer)
    for model in (plain, wrapped):
        with TokenDropper(model, **SMALL):
            # A cache that the model makes would get the tokens twice, in transformers 4.
            model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    for ours, theirs in zip(plain.parameters(), wrapped.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


class Block(nn.Module):
    """A pre-norm block that is given its mask."""

    def __init__(self):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(WIDTH), nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.mlp = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.norm(x)
        hidden = None if mask is None else ~mask.repeat_interleave(HEADS, 0)
        x = x + self.attention(y, y, y, attn_mask=hidden, need_weights=False)[0]
        return x + self.mlp(x)


class Own(nn.Module):
    def __init__(self, *, checkpointed: bool = False):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.checkpointed = checkpointed

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.embedding(ids)
        for block in self.blocks:
            x = checkpoint(block, x, mask, use_reentrant=False) if self.checkpointed else block(x, mask)
        return x


@pytest.fixture(autouse=True)
def _own_blocks(registered):
    registered(ModelFamily("own", tokens={Block: TokenLayout("x", routed={"mask": "batch tokens tokens"})}))


@pytest.mark.parametrize("with_mask", [False, True])
def test_own_stack_equals_running_it_by_hand(with_mask):
    model = seeded(Own).double()
    mask = torch.ones(3, TOKENS, TOKENS, dtype=torch.bool).tril() if with_mask else None
    kept = torch.cat([torch.zeros(3, 1, dtype=torch.long), 1 + scores()[:, 1:].topk(5).indices], 1).sort(1).values
    x = model.blocks[0](model.embedding(IDS), mask)
    own = x.gather(1, kept[..., None].expand(-1, -1, WIDTH))
    own_mask = None if mask is None else torch.stack([mask[i][kept[i]][:, kept[i]] for i in range(3)])
    for block in model.blocks[1:3]:
        own = block(own, own_mask)
    expected = model.blocks[3](x.scatter(1, kept[..., None].expand(-1, -1, WIDTH), own), mask)
    with TokenDropper(model, **SMALL, criterion=by_scores):
        torch.testing.assert_close(model(IDS, mask), expected, rtol=1e-10, atol=1e-10)


def test_checkpoint_around_the_calls_is_an_error_in_the_first_step():
    model = Own(checkpointed=True)
    with TokenDropper(model, **SMALL):
        loss = model(IDS).sum()
        with pytest.raises(ConfigurationError, match="activation checkpointing around the calls of the layers"):
            loss.backward()


@pytest.mark.slow
@pytest.mark.parametrize("criterion", TokenCriterion.registry)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_model_computes_the_same_and_compiles_once_per_length(backend, criterion):
    plain, compiled = deep_llama(), deep_llama()
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    compiled.compile(backend=counter, fullgraph=True)
    counts = []
    options = {**SMALL, "criterion": criterion}
    with TokenDropper(plain, **options) as ours, TokenDropper(compiled, **options) as theirs:
        for keep_ratio in (0.5, 0.5, 0.5, 0.75, 0.5, 0.75):
            ours.keep_ratio = theirs.keep_ratio = keep_ratio
            for model in (plain, compiled):
                model.zero_grad()
                model(input_ids=IDS, labels=IDS).loss.backward()
            for (name, first), second in zip(plain.named_parameters(), compiled.parameters(), strict=True):
                torch.testing.assert_close(first.grad, second.grad, msg=name, rtol=1e-4, atol=1e-5)
            counts.append(counter.frame_count)
    assert counts[0] == counts[2]
    assert counts[3] == counts[5]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"multiple_of": 4}, {"criterion": "attention"}])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile uses what torch deprecates
def test_compiled_model_is_not_compiled_for_each_length_of_a_batch(options):
    plain, compiled = deep_llama(), deep_llama()
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled.compile(backend=counter, fullgraph=True)
    with TokenDropper(plain, **SMALL, **options), TokenDropper(compiled, **SMALL, **options):
        for num_tokens in (12, 16, 21, 37, 18):
            ids = torch.randint(VOCABULARY, (2, num_tokens), generator=torch.Generator().manual_seed(num_tokens))
            mask = torch.ones_like(ids)
            mask[0, -3:] = 0
            losses = [model(input_ids=ids, attention_mask=mask, labels=ids).loss for model in (plain, compiled)]
            torch.testing.assert_close(*losses)
    assert counter.frame_count == 2  # for the first length, and for any


def test_torchs_encoder_equals_running_it_by_hand():
    for batch_first in (True, False):
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 48, dropout=0.0, batch_first=batch_first)
        model = seeded(lambda layer=layer: nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)).double()
        x = torch.randn(3, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1)).double()
        padding = padding_mask("right") == 0
        causal = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
        per_head = causal.repeat(3 * HEADS, 1, 1)
        for options in (
            {},
            {"src_key_padding_mask": padding},
            {"mask": causal},
            {"mask": causal, "is_causal": True},
            {"mask": per_head},
            {"mask": causal, "src_key_padding_mask": padding},
        ):
            kept = _kept(padding if "src_key_padding_mask" in options else None)
            expected = _encoder_by_hand(model, x, kept, "mask" in options, options.get("src_key_padding_mask"))
            with TokenDropper(model, **SMALL, criterion=by_scores):
                output = model(x if batch_first else x.transpose(0, 1), **options)
            output = output if batch_first else output.transpose(0, 1)
            real = ~options.get("src_key_padding_mask", torch.zeros_like(padding))
            torch.testing.assert_close(output[real], expected[real], rtol=1e-9, atol=1e-9)


def _kept(padding: Tensor | None) -> Tensor:
    ranks = scores()
    if padding is not None:
        ranks = ranks.masked_fill(padding, -1)
    ranks[:, 0] = 2
    return ranks.topk(6).indices.sort(1).values


def _encoder_by_hand(model, x: Tensor, kept: Tensor, is_causal: bool, padding: Tensor | None) -> Tensor:
    """Sequence by sequence, with masks of float64."""
    outputs = []
    for sequence in range(3):
        states = x[sequence : sequence + 1]
        for index, layer in enumerate(model.layers):
            tokens = kept[sequence] if index in (1, 2) else torch.arange(TOKENS)
            hidden = torch.zeros(len(tokens), len(tokens), dtype=torch.bool)
            if is_causal:
                hidden |= tokens[None] > tokens[:, None]
            if padding is not None:
                hidden |= padding[sequence, tokens][None]
            own = states[:, tokens] if layer.self_attn.batch_first else states[:, tokens].transpose(0, 1)
            own = layer(own, src_mask=torch.where(hidden, -1e30, 0.0).double())
            own = own if layer.self_attn.batch_first else own.transpose(0, 1)
            states = states.index_copy(1, tokens, own)
        outputs.append(states)
    return torch.cat(outputs)


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_masks_that_the_user_gives(kind):
    """Block-diagonal for packed sequences, without positions that restart: a document's first token is protected."""
    model = deep(llama)()
    documents = torch.tensor([0] * 5 + [1] * 4 + [2] * (TOKENS - 9))
    allowed = (documents[:, None] == documents) & torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
    mask = allowed[None, None].expand(3, 1, -1, -1)
    mask = mask if kind == "bool" else torch.where(mask, 0.0, -1e30).double()
    positions = torch.arange(TOKENS)[None]
    seen = {}
    layers = model.model.layers
    handle = layers[1].self_attn.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    with TokenDropper(model, **SMALL, criterion=by_scores):
        model(IDS, attention_mask=mask, position_ids=positions)
    handle.remove()
    ranks = scores()
    ranks[:, [0, 5, 9]] = 2
    kept = ranks.topk(6).indices.sort(1).values
    for sequence in range(3):
        own = allowed[kept[sequence]][:, kept[sequence]]
        given = seen["attention_mask"][sequence, 0]
        assert torch.equal(given if kind == "bool" else given == 0, own)
    cos, _ = model.model.rotary_emb(torch.zeros(1, dtype=torch.float64), kept)
    assert torch.equal(seen["position_embeddings"][0], cos)
    assert torch.equal(seen["position_ids"], kept)


def test_images_keep_their_class_token():
    model = deep(vit)()
    pixels = torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(0)).double()
    states = []
    layers = model.encoder.layer if EARLY else model.layers
    handle = layers[1].register_forward_pre_hook(lambda module, args, kwargs: states.append(args[0]), with_kwargs=True)
    with TokenDropper(model, **SMALL):
        before = layers[0].register_forward_hook(lambda module, args, output: states.append(output))
        model(pixels)
        before.remove()
    handle.remove()
    whole, kept = states
    assert (whole.shape[1], kept.shape[1]) == (10, 5)
    assert torch.equal(kept[:, 0], whole[:, 0])


def test_cross_attention_sees_all_of_the_encoder():
    model = deep(gpt2_with_cross_attention)().float()
    memory = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(0))
    options = {"encoder_hidden_states": memory, "encoder_attention_mask": torch.tensor([[1, 1, 1, 0, 0]] * 3)}
    with TokenDropper(model, **SMALL) as dropper:
        model(input_ids=IDS, labels=IDS, **options).loss.backward()
        assert dropper.layer_tokens == 36 * 3


@pytest.mark.parametrize("stack", ["encoder.layers", "decoder.layers"])
def test_one_of_several_stacks(stack):
    model = deep(bart, encoder_layers=4, decoder_layers=4)().float()
    with pytest.raises(ConfigurationError, match=r"`stack` must be one of 'encoder.layers', 'decoder"):
        TokenDropper(model, **SMALL)
    with TokenDropper(model, **SMALL, stack=stack) as dropper:
        model(input_ids=IDS, attention_mask=padding_mask("right")).last_hidden_state.sum().backward()
        assert dropper.layer_tokens == 36 * 3


# In evaluation too.


def test_dropped_in_evaluation_too():
    model = deep(bert)().float()
    expected = model.eval()(IDS).last_hidden_state
    with TokenDropper(model, **SMALL, first_layer=2, criterion=by_scores, drop_in_evaluation=True) as dropper:
        trained = model.train()(IDS)
        assert trained.last_hidden_state.shape == (3, 6, WIDTH)
        tested = model.eval()(IDS)
        assert torch.equal(tested.last_hidden_state, trained.last_hidden_state)
        with torch.no_grad():
            assert torch.equal(model(IDS).pooler_output, tested.pooler_output)
        assert (dropper.layer_tokens, dropper.all_layer_tokens) == (3 * (2 * TOKENS + 2 * 6), 3 * 4 * TOKENS)
    assert torch.equal(model(IDS).last_hidden_state, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"last_layer": 2}, "`last_layer` can't be set with `drop_in_evaluation`"),
        ({"protect_first": 0}, "`protect_first` must be at least 1 with `drop_in_evaluation`"),
    ],
)
def test_dropping_in_evaluation_has_no_end_and_a_result(options, message):
    with pytest.raises(ConfigurationError, match=message):
        TokenDropper(bert(), **SMALL, drop_in_evaluation=True, **options)


def test_dropping_in_evaluation_is_refused_where_each_token_has_a_result():
    with pytest.raises(
        ConfigurationError, match="`drop_in_evaluation` is for models that read their result from the first token"
    ):
        TokenDropper(deep_llama(), **SMALL, drop_in_evaluation=True)


@pytest.mark.parametrize("criterion", ["random", "attention"])
def test_dropping_in_evaluation_says_the_same_of_the_same_text_in_evaluation(criterion):
    model = deep(bert)().float().eval()
    with TokenDropper(model, **SMALL, criterion=criterion, drop_in_evaluation=True) as dropper, torch.no_grad():
        outputs = [model(IDS).pooler_output for _ in range(2)]
        assert torch.equal(*outputs)
        before = dropper.state_dict()
        model(IDS)
        assert dropper.state_dict() == before


def test_state_of_another_criterion_is_taken_and_of_something_else_refused():
    model = deep_llama().train()
    with TokenDropper(model, **SMALL) as dropper:
        model(IDS, labels=IDS)
        state = dropper.state_dict()
    other = TokenDropper(model, **SMALL, criterion="loss")
    other.load_state_dict(state)
    assert other.layer_tokens == dropper.layer_tokens > 0
    with pytest.raises(ConfigurationError, match=r"`state` must come from TokenDropper.state_dict\(\)"):
        other.load_state_dict({})


# With the rest of attnwatch.


def test_recorder_sees_true_distances_and_the_keys_that_are_left():
    model = deep_llama()
    for attention in (layer.self_attn for layer in model.model.layers):
        nn.init.zeros_(attention.q_proj.weight)  # uniform attention
    kept = torch.cat([torch.zeros(3, 1, dtype=torch.long), 1 + scores()[:, 1:].topk(5).indices], 1).sort(1).values
    with (
        AttentionRecorder(model, every_n_steps=1, num_query_rows=None) as recorder,
        TokenDropper(model, **SMALL, criterion=by_scores),
    ):
        with recorder.step(0):
            model(IDS)
        with recorder.step(1):  # as many tokens as were kept, and none of them dropped
            model.eval()(IDS[:, :6])
        history = recorder.history()
    assert history["distance"][1, 1, 0] == pytest.approx(sum(row / 2 for row in range(1, 6)) / 5)
    distance, entropy = history["distance"][0, 1, 0], history["entropy"][0, 1, 0]
    rows = [
        (sum(tokens[row] - tokens[: row + 1]) / (row + 1), torch.log(torch.tensor(row + 1.0)))
        for tokens in kept
        for row in range(1, 6)
    ]
    distances, entropies = zip(*rows, strict=True)
    assert distance == pytest.approx(float(torch.stack(distances).mean()), rel=1e-5)
    assert entropy == pytest.approx(float(torch.stack(entropies).mean()), rel=1e-5)
    assert history["distance"][0, 0, 0] == pytest.approx(sum(row / 2 for row in range(1, TOKENS)) / (TOKENS - 1))


def test_heads_are_removed_while_tokens_are_dropped():
    model = deep_llama()
    with TokenDropper(model, **SMALL, criterion=by_scores):
        prune_heads(model, {1: [0, 1], 2: range(4)})
        model(input_ids=IDS, labels=IDS).loss.backward()
        expected = model(IDS).logits
    prune_heads(model, {0: [0, 1]})
    with TokenDropper(model, **SMALL, criterion=by_scores):
        assert model(IDS).logits.shape == expected.shape


# Refused at construction.


REFUSED = {
    "relative positions": (
        deberta,
        {},
        r"can be dropped. encoder.layer: its .* take .*relative_pos, rel_embeddings, which can't",
    ),
    "alibi": (bloom, {}, r"h: its layers \(BloomBlock\) take alibi, which can't be cut to the kept tokens"),
    "t5": (
        t5,
        {"stack": "encoder.block"},
        r"`stack`: tokens can't .* in 'encoder.block': its layers \(T5Block\) take position_bias",
    ),
    "unknown blocks": (gpt, {}, "the token axes of the arguments of its layers .* are unknown"),
    "no layers": (lambda: nn.Linear(2, 2), {}, "no stack of layers in which tokens can be dropped. It has none"),
    "other stack": (llama, {"stack": "layers"}, "`stack` is 'layers'; it must be one of 'model.layers'"),
    "flash attention with a window": (
        lambda: _with(mistral, _attn_implementation="flash_attention_2"),
        {},
        "flash attention measures its window of 4 tokens in the tensor",
    ),
    "flex attention": (lambda: _with(llama, _attn_implementation="flex_attention"), {}, "flex attention's block masks"),
    "shared layers": (lambda: _with(llama, num_hidden_layers=12), {}, "its 12 layers share the weights of 2"),
    "positions without a batch axis": (lambda: dinov3(), {}, "dinov3_vit has one table of positions for all sequences"),
    "router logits": (lambda: _with(llama, output_router_logits=True), {}, "its loss needs the router logits"),
    "layer too far": (llama, {"first_layer": 2}, "`first_layer` must be one of the 2 layers 0 to 1, got 2"),
    "layer too far back": (llama, {"last_layer": -3}, "`last_layer` must be one of the 2 layers 0 to 1, got -3"),
    "layer that is none": (llama, {"first_layer": 1.5}, "`first_layer` must be one of the 2 layers"),
    "wrong order": (llama, {"first_layer": 1, "last_layer": 0}, "`first_layer` must not come after `last_layer`, got"),
    "keep nothing": (llama, {"keep_ratio": 0}, "`keep_ratio` must be the share .* above 0 and up to 1; got 0"),
    "keep more": (llama, {"keep_ratio": 1.5}, "`keep_ratio` must be the share .*; got 1.5"),
    "criterion": (llama, {"criterion": "entropy"}, "`criterion` must be one of 'attention', .*'random', or a"),
    "attention before the first": (
        llama,
        {"first_layer": 0, "criterion": "attention"},
        "`criterion` 'attention' reads the layer before `first_layer`, so `first_layer` must be at least 1",
    ),
    "protected ids": (llama, {"protected_ids": ["a"]}, "`protected_ids` must be a list of vocabulary ids, integers"),
    "protected id": (llama, {"protected_ids": 5}, "`protected_ids` must be a list of vocabulary ids, .* got 5"),
    "no model": (lambda: "gpt2", {}, "`model` must be a torch.nn.Module, got str"),
    "minimum": (llama, {"min_tokens": 0}, "`min_tokens` must be an integer of at least 1, got 0"),
    "multiple": (llama, {"multiple_of": 0}, "`multiple_of` must be an integer of at least 1, got 0"),
}


def dinov3() -> nn.Module:
    config = hf.DINOv3ViTConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS, intermediate_size=48, image_size=32
    )
    return hf.DINOv3ViTModel(config)


def _with(build: Callable, **config) -> nn.Module:
    model = build()
    for name, value in config.items():
        setattr(model.config, name, value)
    return model


@pytest.mark.parametrize(("build", "options", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # which DeBERTa used in transformers 4
def test_refused_by_name_at_construction(build, options, message):
    model = build()
    options = {"last_layer": 1, **options} if "first_layer" not in options else options
    with pytest.raises(ConfigurationError, match=message):
        TokenDropper(model, **options)


INSIDE = {
    "convolution": (
        lambda layer: setattr(layer, "conv", nn.Conv1d(2, 2, 3)),
        "conv (Conv1d) mixes neighbouring tokens",
    ),
    "recurrence": (lambda layer: setattr(layer, "rnn", nn.GRU(2, 2)), "rnn (GRU) mixes neighbouring tokens"),
    "rotary embedding": (
        lambda layer: setattr(layer, "rotary_emb", type("RotaryEmbedding", (nn.Module,), {})()),
        "rotary_emb (RotaryEmbedding) derives positions",
    ),
    "table of distances": (
        lambda layer: layer.self_attn.register_parameter("relative_attention_bias", nn.Parameter(torch.ones(2))),
        "self_attn (relative_attention_bias) derives positions",
    ),
    "its own mask": (
        lambda layer: layer.self_attn.register_buffer("local", torch.ones(4, 4, dtype=torch.bool).triu()),
        "self_attn has its own mask",
    ),
}


@pytest.mark.parametrize(("change", "message"), INSIDE.values(), ids=INSIDE)
def test_layers_that_go_by_places_in_the_tensor_are_refused(change, message):
    model = deep_llama()
    change(model.model.layers[2])
    with pytest.raises(ConfigurationError, match=r"tokens can't be dropped in 'model.layers': layer 2") as caught:
        TokenDropper(model, **SMALL)
    assert message in str(caught.value)
    TokenDropper(model, **SMALL, last_layer=1)  # the others are fine


def test_layers_that_are_left_out_at_random_are_refused():
    with pytest.raises(ConfigurationError, match=r"layers are skipped at random \(layerdrop=0.1\); set it to 0"):
        TokenDropper(deep(opt, layerdrop=0.1)(), **SMALL)


def test_attention_that_counts_tokens_in_the_tensor_is_refused():
    options = {"attn_temperature_tuning": True, "num_local_experts": 2, "intermediate_size_mlp": 48}
    sizes = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": HEADS}
    model = seeded(lambda: hf.Llama4ForCausalLM(hf.Llama4TextConfig(vocab_size=VOCABULARY, **sizes, **options)))
    with pytest.raises(ConfigurationError, match="layer 1: self_attn uses indices in the tensor as positions"):
        TokenDropper(model, **SMALL)


def test_flash_attention_needs_the_first_token_of_each_document():
    model = _with(llama, _attn_implementation="flash_attention_2")
    TokenDropper(model, **SMALL, first_layer=0)
    with pytest.raises(ConfigurationError, match="finds documents by their first tokens: `protect_first` must be"):
        TokenDropper(model, **SMALL, first_layer=0, protect_first=0)


@pytest.mark.parametrize(
    "order",
    [(0, 1, 3), (0, 1, 1, 2, 3), (0, 1, 2, 2, 1, 3), (3, 2, 1, 0), (0, 2, 3), (0, 2, 1, 3)],
    ids=lambda order: "".join(map(str, order)),
)
def test_layers_that_do_not_run_one_after_the_other_are_an_error_in_the_first_step(order):
    class Other(Own):
        def forward(self, ids, mask=None):
            x = self.embedding(ids)
            for index in order:
                x = self.blocks[index](x, mask)
            return x

    model = Other()
    dropper = TokenDropper(model, **SMALL)
    if order == (0, 2, 3):  # the first of them is left out, and with it the choice
        with dropper:
            assert torch.equal(model(IDS), model(IDS))
        return
    with dropper, pytest.raises(ConfigurationError, match="was skipped"):
        model(IDS)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (lambda: TokenLayout("x", routed={"mask": "tokens tokens"}), "`routed`: the axes of 'mask' must be words that"),
        (lambda: TokenLayout("x", routed={"mask": "batch tokenz"}), "`routed`: the axes of 'mask' must be words that"),
        (lambda: TokenLayout("x", routed={"mask": 3}), "`routed`: the axes of 'mask' must be words that"),
        (lambda: TokenLayout("hidden"), "`tokens`: the forward of Block has no argument 'hidden'"),
        (lambda: TokenLayout("x", routed={"rope": "batch tokens"}), "the forward of Block has no argument 'rope'"),
        (lambda: "x", "the token layout of Block must be a TokenLayout, got 'x'"),
    ],
)
def test_wrong_registrations_are_named(layout, message):
    with pytest.raises(ConfigurationError, match=message):
        register(ModelFamily("wrong", tokens={Block: layout()}))


def test_what_all_sequences_share_is_routed_by_a_function(registered):
    class Rotated(Block):
        def forward(self, x: Tensor, table: Tensor) -> Tensor:
            return super().forward(x * (table[None] if table.ndim == 2 else table))

    def route(table, kept, layer, arguments):
        return table[kept]

    registered(ModelFamily("rotated", tokens={Rotated: TokenLayout("x", routed={"table": route})}))
    table = torch.rand(TOKENS, WIDTH, generator=torch.Generator().manual_seed(0)).double()

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(Rotated() for _ in range(4))

        def forward(self, x):
            for block in self.blocks:
                x = block(x, table)
            return x

    model = seeded(Model).double()
    x = torch.randn(3, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1)).double()
    kept = _kept(None)
    states = model.blocks[0](x, table)
    index = kept[..., None].expand(-1, -1, WIDTH)
    own = states.gather(1, index)
    for block in model.blocks[1:3]:
        own = block(own, table[kept])
    expected = model.blocks[3](states.scatter(1, index, own), table)
    with TokenDropper(model, **SMALL, criterion=by_scores):
        torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


def test_decoder_goes_by_its_own_tokens():
    model = deep(bart, encoder_layers=4, decoder_layers=4)().float()
    seen = []

    def note(tokens):
        seen.append(tokens)
        return scores()

    own, mask = token_ids(seed=5), padding_mask("right")
    with TokenDropper(model, **SMALL, stack="decoder.layers", criterion=note):
        model(input_ids=IDS, attention_mask=mask, decoder_input_ids=own)
    assert torch.equal(seen[0].input_ids, own)
    assert seen[0].padding is None or not seen[0].padding.any()


def test_router_logits_of_all_tokens_are_computed_where_they_are_asked_for():
    model = deep_llama()
    with TokenDropper(model, **SMALL) as dropper:
        with pytest.warns(AttnwatchWarning, match="router logits of all tokens are requested"):
            model(IDS, output_router_logits=True)
        assert dropper.layer_tokens == dropper.all_layer_tokens


def test_causal_mask_of_its_own_is_right_for_tokens_in_their_order():
    model = deep_llama()
    model.model.layers[2].self_attn.register_buffer("bias", torch.ones(4, 4, dtype=torch.bool).tril())
    assert TokenDropper(model, **SMALL).num_layers == 2


def test_second_dropper_is_refused_while_the_first_is_attached():
    model = deep_llama()
    with TokenDropper(model, **SMALL), pytest.raises(ConfigurationError, match="another TokenDropper is attached"):
        TokenDropper(model, **SMALL).attach()
    own = Own()
    with TokenDropper(own, **SMALL), pytest.raises(ConfigurationError, match="another TokenDropper is attached"):
        TokenDropper(own, **SMALL).attach()


@pytest.mark.parametrize("first_to_go", [0, 1])
def test_droppers_of_two_stacks_end_in_any_order(first_to_go):
    model = deep(bart, encoder_layers=4, decoder_layers=4)().float()
    classes = [type(module) for module in model.modules()]
    droppers = [TokenDropper(model, stack=f"{side}.layers", **SMALL) for side in ("encoder", "decoder")]
    for dropper in droppers:
        dropper.attach()
    model(IDS)
    both = [dropper.layer_tokens for dropper in droppers]
    assert [dropper.all_layer_tokens * 3 // 4 for dropper in droppers] == both
    droppers[first_to_go].detach()
    model(IDS)
    counted = [dropper.layer_tokens for dropper in droppers]
    other = 1 - first_to_go
    assert counted[first_to_go] == both[first_to_go]
    assert counted[other] == 2 * both[other]
    droppers[other].detach()
    assert [type(module) for module in model.modules()] == classes


def test_two_layers_have_none_in_the_middle():
    with pytest.raises(ConfigurationError, match="`last_layer`: none of the 2 layers is between"):
        TokenDropper(llama(), **SMALL)


def test_model_with_layers_of_several_kinds_is_refused_by_name():
    model = deep_llama()
    model.model.layers[1] = nn.Linear(2, 2)
    with pytest.raises(
        ConfigurationError, match=r"model.layers: its layers are of several kinds \(LlamaDecoderLayer, Linear\)"
    ):
        TokenDropper(model, **SMALL)


# A batch that can't be routed is computed whole, with one warning.


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        ({"min_tokens": TOKENS}, {}, r"the sequences of a batch have at most 12 tokens \(`min_tokens`\)"),
        ({"multiple_of": 64}, {}, "`min_tokens` .2., `multiple_of` .64. and `protect_first` .1. leave none to drop"),
    ],
    ids=["short", "long multiple"],
)
def test_batch_that_can_not_be_routed_is_computed_whole_with_one_warning(options, given, message):
    model = deep_llama()
    given = {"input_ids": IDS} | given
    expected = model(**given).logits
    with TokenDropper(model, **{**SMALL, **options}) as dropper:
        with pytest.warns(AttnwatchWarning, match=f"all tokens are computed when .*{message}") as seen:
            outputs = [model(**given).logits for _ in range(3)]
        assert len(seen) == 1
        assert dropper.layer_tokens == dropper.all_layer_tokens
    assert all(torch.equal(output, expected) for output in outputs)


@pytest.mark.parametrize(
    ("criterion", "given", "message"),
    [
        (lambda tokens: 1 / 0, {}, "ZeroDivisionError: division by zero"),
        (lambda tokens: torch.zeros(3), {}, r"must return scores of shape \[3, 12\], got \[3\]"),
        ("loss", {"inputs_embeds": torch.zeros(3, TOKENS, WIDTH)}, "'loss' needs `input_ids`"),
    ],
    ids=["raises", "wrong scores", "no ids"],
)
def test_criterion_that_fails_leaves_the_choice_to_chance_with_one_warning(criterion, given, message):
    model = deep_llama()
    with TokenDropper(model, **SMALL, criterion=criterion) as dropper:
        with pytest.warns(AttnwatchWarning, match=f"chosen at random when the criterion fails: .*{message}") as seen:
            outputs = [model(**(given or {"input_ids": IDS})).logits for _ in range(3)]
        assert len(seen) == 1
        assert dropper.layer_tokens == 3 * 36 * 3
    assert given or not torch.equal(outputs[0], outputs[1])


def test_states_that_change_between_the_layers_are_an_error_in_the_first_step():
    class Deepstack(Own):
        def forward(self, ids, mask=None):
            x = self.embedding(ids)
            for block in self.blocks:
                x = block(x, mask) + 1
            return x

    model = Deepstack()
    with TokenDropper(model, **SMALL), pytest.raises(ConfigurationError, match="the hidden states change between"):
        model(IDS)
    with TokenDropper(model, **SMALL, first_layer=2, last_layer=2):
        model(IDS)


def test_masks_of_earlier_steps_are_not_kept():
    """The criterion watches the layer before all the time."""
    model = deep_llama()
    with TokenDropper(model, **SMALL, criterion="attention"):
        for step in range(6):
            ids = token_ids(seed=step)
            model(input_ids=ids, attention_mask=padding_mask("right"), labels=ids).loss.backward()
        assert 0 < sum(type(each) is Identity for each in gc.get_objects()) <= 2
