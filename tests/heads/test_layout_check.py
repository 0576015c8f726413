"""Layouts that users declare are tried on their modules."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnwatch import ConfigurationError, HeadLayout, ModelFamily, PruningPlan, check_layout, prune_heads
from tests.support.models import HEAD_DIM, HEADS, WIDTH, bert, token_ids


class Own(nn.Module):
    """Keys and values for half of the heads; sizes are taken from the weights."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def sizes(self) -> tuple[int, int]:
        queries = self.proj.in_features
        return queries, (self.qkv.out_features - queries) // 2

    def forward(self, x: Tensor) -> Tensor:
        queries, keys = self.sizes()
        split = self.qkv(x).split([queries, keys, keys], -1)
        q, k, v = (part.unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2) for part in split)
        return self.proj(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2))


class Counting(Own):
    """Counts its heads by a name that nobody knows."""

    def __init__(self):
        super().__init__()
        self.heads = HEADS

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0 * self.heads)


class Doubling(Own):
    """Makes up for heads that it does not have."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * WIDTH / self.proj.in_features


class Rigid(Own):
    def sizes(self) -> tuple[int, int]:
        return WIDTH, WIDTH // 2


class Bare(Own):
    pass


X = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0))


def layout(segments: str = "q|k|v", **options) -> HeadLayout:
    return HeadLayout({"qkv": segments}, output="proj", head_dim=HEAD_DIM, **{"returns": "output"} | options)


def test_right_layout_passes_and_leaves_the_module_alone(registered):
    registered(ModelFamily("own", heads={Own: layout()}))
    module = Own()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    check_layout(module, X)
    assert module.training
    assert not PruningPlan.of(module).heads
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in before.items())


def test_whole_model_passes():
    check_layout(bert(), input_ids=token_ids())


WRONG = {
    "factor that depends on the heads": (Doubling, layout(), "its output differs from the one with their columns"),
    "sizes of the unpruned model": (Rigid, layout(), "without the heads .* its forward raises RuntimeError: "),
    "return value of a layer without heads": (Bare, layout(returns="pair"), "forward raises|its output differs"),
    "number of heads by another name": (Counting, layout(), "its forward uses 'heads', which is 4 like its number of"),
}


@pytest.mark.parametrize(("kind", "wrong", "message"), WRONG.values(), ids=WRONG)
def test_wrong_layouts_are_found(kind: type, wrong: HeadLayout, message: str, registered):
    torch.manual_seed(0)
    registered(ModelFamily("own", heads={kind: wrong}))
    with pytest.raises(ConfigurationError, match=message):
        check_layout(kind(), X)


def test_number_that_only_looks_like_that_of_the_heads(registered):
    registered(ModelFamily("own", heads={Counting: layout(whole=("heads",))}))
    check_layout(Counting(), X)
    prune_heads(Counting(), {0: [0, 1]})


def test_query_heads_among_keys_are_found(registered):
    class Interleaved(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            heads = self.qkv(x).unflatten(-1, (-1, 3, HEAD_DIM))
            q, k, v = (part.transpose(1, 2) for part in heads.unbind(3))
            return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    registered(ModelFamily("own", heads={Interleaved: layout("q|k|v")}))
    with pytest.raises(ConfigurationError, match="Are the segments and"):
        check_layout(Interleaved(), X)
    registered(ModelFamily("own", heads={Interleaved: layout("qkv")}))
    check_layout(Interleaved(), X)


def test_module_without_heads():
    with pytest.raises(ConfigurationError, match=r"`module` has no attention whose heads can be removed. It has none"):
        check_layout(nn.Linear(2, 2), torch.zeros(1, 2))
