"""Attention layers without a residual connection, read from the graph of autograd."""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Node = Any
"""Node of the graph of autograd, whose `next_functions` are what its forward was computed from."""

_FUSED, _SOFTMAX = "ScaledDotProduct", ("SoftmaxBackward0", "SafeSoftmaxBackward0")
# Products of matrices, each with the number of its first factor among its inputs.
_PRODUCTS = {"BmmBackward0": 0, "BaddbmmBackward0": 1}
# Operations on all entries alike, or on their arrangement, which lie between a softmax and these products.
_PASSED = re.compile(
    "(Add|Sub|Mul|Div|MaskedFill|Where|NativeDropout|Dropout|View|UnsafeView|ReshapeAlias|Expand|Clone|ToCopy|"
    "Transpose|Permute|Unsqueeze|Squeeze|Slice|Alias|NanToNum|T)Backward[0-9]"
)
# The time grows with the third power of the number of calls.
_MOST_CALLS = 100


@dataclass(frozen=True)
class Residuals:
    """Self-attention layers that all information from the layers below has to pass.

    Attributes:
        num_layers: number of self-attention layers above others.
        num_missing: number of those without a path around them.
    """

    num_layers: int = 0
    num_missing: int = 0


@dataclass(frozen=True)
class _Attention:
    """Product of attention weights and values in the graph.

    Attributes:
        queries, keys: what queries and keys are computed from; None if unknown.
        is_square: True if there are as many queries as keys.
    """

    queries: Node = None
    keys: Node = None
    is_square: bool = False


def residuals(outputs: Sequence[Node]) -> Residuals:
    """Return which attention layers have a path around them in the graph behind the outputs of a model."""
    found = _attentions(outputs)
    if len(found) > _MOST_CALLS:
        return Residuals()
    direct = _reached(outputs, found)
    if len(direct) == len(found):  # each layer has added to what the outputs are computed from
        return Residuals(len(found))
    below = {node: _reached(_inputs(node), found) for node in found}
    squares = {node: each for node, each in found.items() if each.is_square}
    upper = {node: each for node, each in squares.items() if _below_both(each, found)}
    missing = [node for node, each in upper.items() if _below_both(each, found) - _without(node, direct, below)]
    return Residuals(len(upper), len(missing))


def _below_both(attention: _Attention, found: Collection[Node]) -> set[Node]:
    """Return the attention layers from which both the queries and the keys of another one are computed."""
    return _reached([attention.queries], found) & _reached([attention.keys], found)


def _without(node: Node, direct: Collection[Node], below: dict[Node, set[Node]]) -> set[Node]:
    """Return the attention layers from which a path to the outputs does not lead through one of them."""
    return set(_walked([each for each in direct if each is not node], lambda each: below[each] - {node}))


def _reached(nodes: Iterable[Node], found: Collection[Node]) -> set[Node]:
    """Return the attention layers to which paths lead that do not pass another one."""
    return {node for node in _walked(nodes, lambda node: () if node in found else _inputs(node)) if node in found}


def _attentions(outputs: Sequence[Node]) -> dict[Node, _Attention]:
    """Return the products of attention weights and values in a graph."""
    users: dict[Node, list[Node]] = {}
    nodes = list(_walked(outputs, _inputs))
    for node in nodes:
        for each in _inputs(node):
            users.setdefault(each, []).append(node)
    found: dict[Node, _Attention] = {}
    for node in nodes:
        if node.name().startswith(_FUSED):
            found[node] = _fused(node)
        elif node.name() in _SOFTMAX:
            for product in _next_products([node], lambda each: users.get(each, [])):
                found[product] = _by_hand(node, product)
    return found


def _fused(node: Node) -> _Attention:
    queries, keys = (each[0] for each in node.next_functions[:2])
    return _Attention(queries, keys, _length(node, 0) == _length(*node.next_functions[1]))


def _by_hand(softmax: Node, product: Node) -> _Attention:
    """Return the attention whose weights a softmax computes from a product of queries and keys, if there is one."""
    logits = _next_products([softmax], _inputs)
    if not logits:
        return _Attention()
    first = _PRODUCTS[logits[0].name()]
    queries, keys = (each[0] for each in logits[0].next_functions[first : first + 2])
    values = product.next_functions[_PRODUCTS[product.name()] + 1]
    return _Attention(queries, keys, _length(product, 0) == _length(*values))


def _next_products(nodes: Sequence[Node], following: Callable[[Node], Iterable[Node]]) -> list[Node]:
    """Return the nearest products of matrices in one direction of the graph."""

    def next_of(node: Node) -> Iterable[Node]:
        return following(node) if node in nodes or _PASSED.fullmatch(node.name()) else ()

    return [node for node in _walked(nodes, next_of) if node.name() in _PRODUCTS]


def _length(node: Node, index: int) -> int | None:
    """Return the number of tokens of the result [..., tokens, features] of the forward of a node."""
    shape: Sequence[int] = () if node is None else node._input_metadata[index].shape
    return None if len(shape) < 2 else int(shape[-2])


def _inputs(node: Node) -> list[Node]:
    return [each for each, _ in node.next_functions if each is not None]


def _walked(nodes: Iterable[Node], following: Callable[[Node], Iterable[Node]]) -> dict[Node, None]:
    """Return nodes and all that follow, each once, the nearest first."""
    seen = dict.fromkeys(node for node in nodes if node is not None)
    waiting = list(seen)
    for node in waiting:
        for each in following(node):
            if each not in seen:
                seen[each] = None
                waiting.append(each)
    return seen
