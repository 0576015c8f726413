"""Layers from outside of the package: tokens are dropped in them as in those that attnwatch knows."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

import attnwatch
from attnwatch import AttnwatchWarning, ConfigurationError, ModelFamily, TokenDropper, TokenLayout
from attnwatch.lightning import TokenDropping
from attnwatch.models import Refused, TokenPredictions
from tests.support.equality import assert_same_weights
from tests.support.lightning_training import train
from tests.support.models import HEADS, TOKENS, VOCABULARY, WIDTH, seeded, token_ids

pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")

IDS = token_ids()
SMALL = {"keep_ratio": 0.5, "min_tokens": 2}


class Block(nn.Module):
    """Is given a table of positions that all sequences share, and a mask."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.mlp = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, table: Tensor, hidden: Tensor) -> Tensor:
        y = x * (table if table.ndim == 3 else table[None])
        x = x + self.attention(y, y, y, attn_mask=hidden.repeat_interleave(HEADS, 0), need_weights=False)[0]
        return x + self.mlp(x)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.table = nn.Parameter(torch.rand(TOKENS, WIDTH))

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> tuple[Tensor | None, Tensor]:
        x = self.embedding(input_ids)
        hidden = torch.ones(len(x), TOKENS, TOKENS, dtype=torch.bool).triu(1)
        for block in self.blocks:
            x = block(x, self.table, hidden)
        logits = self.head(x)
        losses = None if labels is None else nn.functional.cross_entropy(logits[:, :-1].mT, labels[:, 1:])
        return losses, logits


class Blocks(ModelFamily):
    name = "blocks"

    def token_layout(self, layer):
        return self.layout if isinstance(layer, Block) else None

    def is_model(self, module):
        return isinstance(module, Model)

    def check_tokens(self, stack, layers, *, protect_first, drop_in_evaluation):
        if drop_in_evaluation and isinstance(stack.entries[0], Model):
            raise Refused("it has a result for each token")

    def token_predictions(self, model, given, output):
        if isinstance(model, Model) and given.get("labels") is not None:
            return TokenPredictions(output[1], given["labels"], is_shifted=True)
        return None

    layout = TokenLayout(
        "x",
        routed={"table": lambda table, kept, layer, arguments: table[kept], "hidden": "batch tokens tokens"},
    )


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.model, self.losses = seeded(Model), []

    def training_step(self, batch, batch_idx):
        loss, _ = self.model(batch, labels=batch)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def families() -> dict:
    return {
        "instance": lambda: ModelFamily("mine", tokens={Block: Blocks.layout}),
        "class with a table": lambda: type("Mine", (ModelFamily,), {"name": "mine", "tokens": {Block: Blocks.layout}}),
        "class with methods": lambda: Blocks,
    }


@pytest.mark.parametrize("make", families().values(), ids=families())
def test_kept_tokens_are_computed_as_by_hand(registered, make):
    registered(make())
    model = seeded(Model).double()
    scores = torch.rand(3, TOKENS, generator=torch.Generator().manual_seed(3))
    kept = torch.cat([torch.zeros(3, 1, dtype=torch.long), 1 + scores[:, 1:].topk(5).indices], 1).sort(1).values
    index = kept[..., None].expand(-1, -1, WIDTH)
    whole, causal = (torch.ones(3, number, number, dtype=torch.bool).triu(1) for number in (TOKENS, 6))
    states = model.blocks[0](model.embedding(IDS), model.table, whole)
    own = states.gather(1, index)
    for block in model.blocks[1:3]:
        own = block(own, model.table[kept], causal)
    expected = model.head(model.blocks[3](states.scatter(1, index, own), model.table, whole))
    with TokenDropper(model, **SMALL, criterion=lambda tokens: scores) as dropper:
        torch.testing.assert_close(model(IDS)[1], expected, rtol=1e-10, atol=1e-10)
    assert dropper.layer_tokens == 3 * (2 * TOKENS + 2 * 6)


def test_trained_logged_and_resumed(registered, tmp_path):
    registered(Blocks)
    epochs, options = {"limit_train_batches": 4}, {"min_tokens": 2, "criterion": "loss"}
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1, filename="{step}")
    logger = TensorBoardLogger(tmp_path, name="run", version="")
    whole, resumed = (TokenDropping(0.5, **options) for _ in range(2))
    module = train(whole, checkpoint, module=Module(), logger=logger, log_every_n_steps=1, **epochs)
    again = train(resumed, module=Module(), ckpt_path=tmp_path / "step=8.ckpt", **epochs)
    assert again.losses == module.losses[8:]
    assert_same_weights(again, module)
    computed = EventAccumulator(str(tmp_path / "run")).Reload().Scalars("tokens/layer_tokens")
    assert computed[-1].value == whole.dropper.layer_tokens == resumed.dropper.layer_tokens
    means = whole.dropper.state_dict()["criteria"]["loss"]["losses"]["means"]
    assert (~means.isnan()).sum() > VOCABULARY // 2


def test_unknown_layers_are_named_with_the_remedy():
    with pytest.raises(
        ConfigurationError,
        match=r"blocks: the token axes of the arguments of its layers \(Block\) .* an attnwatch.ModelFamily and regis",
    ):
        TokenDropper(Model())


def test_what_a_family_refuses_is_said_with_its_reason(registered):
    registered(Blocks)
    with pytest.raises(ConfigurationError, match="can't be dropped in 'blocks': it has a result for each token"):
        TokenDropper(Model(), drop_in_evaluation=True)

    class Refusing(Blocks):
        name = "refusing"

        def token_layout(self, layer):
            if isinstance(layer, Block):
                raise Refused("mix neighbours")

    attnwatch.unregister(Blocks)
    attnwatch.register(Refusing)
    with pytest.raises(ConfigurationError, match=r"blocks: its layers \(Block\) mix neighbours"):
        TokenDropper(Model())
    attnwatch.unregister(Refusing)
    attnwatch.register(Blocks)


def failing(*_, **__):
    raise RuntimeError("no such layer")


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"token_layout": failing}, "failed with RuntimeError: no such layer"),
        ({"check_tokens": failing}, "failed with RuntimeError: no such layer"),
        ({"is_model": failing}, "failed with RuntimeError: no such layer"),
        ({"argument_prefix": failing}, "failed with RuntimeError: no such layer"),
        ({"token_layout": lambda self, layer: "x"}, "the token layout of Block must be a TokenLayout, got 'x'"),
    ],
    ids=["layout", "check", "model", "prefix", "no layout"],
)
def test_failing_family_is_named(registered, declared, message):
    registered(type("Wrong", (Blocks,), {"name": "wrong", **declared}))
    with pytest.raises(ConfigurationError, match=rf"the model family 'wrong' \({__name__}.Wrong\).* {message}"):
        TokenDropper(Model())


def test_family_that_fails_to_find_losses_is_named_once(registered):
    registered(type("Wrong", (Blocks,), {"name": "wrong", "token_predictions": failing}))
    model = Model()
    message = "'loss' can't learn .* model family 'wrong' .* no such layer"
    with TokenDropper(model, **SMALL, criterion="loss"), pytest.warns(AttnwatchWarning, match=message) as warned:
        model(IDS, labels=IDS)[1] + model(IDS, labels=IDS)[1]
    assert len(warned) == 1


@pytest.mark.parametrize(
    ("route", "message"),
    [
        (failing, "`routed`: the function for 'table' of Block failed with RuntimeError: no such layer"),
        (lambda table, *_: table, r"must return a tensor with an axis for the 6 kept tokens, got \[12, 32\]"),
        (lambda *_: None, "must return a tensor with an axis for the 6 kept tokens, got NoneType"),
    ],
    ids=["raises", "whole", "nothing"],
)
def test_wrong_routes_are_named_in_the_first_step(registered, route, message):
    registered(ModelFamily("mine", tokens={Block: TokenLayout("x", routed={**Blocks.layout.routed, "table": route})}))
    model = Model()
    with TokenDropper(model, **SMALL), pytest.raises(ConfigurationError, match=message):
        model(IDS)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ({Block: TokenLayout("states")}, "`tokens`: the forward of Block has no argument 'states'"),
        ({Block: TokenLayout("x", routed={"rope": failing})}, "the forward of Block has no argument 'rope'"),
        ({Block: "x"}, r"'mine' \(.*\): the token layout of Block must be a TokenLayout, got 'x'"),
        ({"Block": TokenLayout("x")}, "`tokens` must map classes of modules to layouts, got 'Block'"),
    ],
)
def test_wrong_declarations_are_named(tokens, message):
    with pytest.raises(ConfigurationError, match=message):
        attnwatch.register(ModelFamily("mine", tokens=tokens))
    assert "mine" not in ModelFamily.registry


def test_cell_of_a_notebook_that_runs_again_replaces_the_family(registered):
    registered(ModelFamily("mine", tokens={Block: TokenLayout("x")}))
    layout = TokenLayout("x", whole=("hidden",))
    redefined = type("Block", (nn.Module,), {"forward": Block.forward, "__module__": __name__})
    attnwatch.register(ModelFamily("mine", tokens={redefined: layout}))
    assert ModelFamily.registry["mine"].tokens == {redefined: layout}
    with pytest.raises(ConfigurationError, match="has the name of the model family 'mine'"):
        attnwatch.register(ModelFamily("mine", tokens={Model: TokenLayout("input_ids")}))


def test_families_of_users_are_asked_first(registered):
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, batch_first=True)
    model = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    registered(ModelFamily("mine", tokens={nn.TransformerEncoderLayer: TokenLayout("src", whole=("src_mask",))}))
    assert TokenDropper(model)._stack.layout.whole == ("src_mask",)
