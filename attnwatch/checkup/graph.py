"""Graph of autograd behind the outputs of a forward pass: what they were computed from."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from attnwatch.checkup.residuals import Residuals, residuals


@dataclass(frozen=True)
class Graph:
    """Provenance of the outputs of a forward pass in the graph of autograd.

    Attributes:
        foreign: trainable parameters that were used and are in no module of the model.
        unused: names of the called modules that return their inputs, or whose outputs had gradients but are not part
            of the outputs of the model.
        cut: names of the trainable matrices of modules whose outputs are used, but do not depend on these matrices.
        without_grad: names of the modules that were called while gradients were disabled.
        apart: names of those `without_grad` that received an input of the model itself, not a tensor computed from it.
        residuals: attention layers with and without a residual connection.
    """

    foreign: tuple[nn.Parameter, ...] = ()
    unused: frozenset[str] = frozenset()
    cut: tuple[str, ...] = ()
    without_grad: tuple[str, ...] = ()
    apart: tuple[str, ...] = ()
    residuals: Residuals = field(default_factory=Residuals)


@dataclass
class GraphRecorder:
    """Recorder of the places of modules in the graph of autograd during a forward pass.

    Args:
        names: names of the modules of the model.
    """

    names: Mapping[nn.Module, str]
    _nodes: dict[nn.Module, list[Any]] = field(default_factory=dict)
    _without_grad: dict[nn.Module, set[int]] = field(default_factory=dict)

    def add(self, module: nn.Module, args: Sequence[Any], outputs: Sequence[Tensor]) -> None:
        """Add the outputs of a call of a module; only those of the first call count."""
        nodes = [tensor.grad_fn for tensor in outputs if tensor.grad_fn is not None]
        if nodes:
            is_passed_on = any(outputs[0] is each for each in args)
            self._nodes.setdefault(module, [] if is_passed_on else nodes)

    def add_without_grad(self, module: nn.Module, inputs: Iterable[Tensor]) -> None:
        """Add a module that was called while gradients were disabled."""
        self._without_grad.setdefault(module, set(map(id, inputs)))

    def take(self, outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> Graph:
        """Return what the outputs of the model were computed from, other than its inputs, and forget the nodes.

        The nodes must not be kept, because they hold the activations.
        """
        called, self._nodes = self._nodes, {}
        nodes = [tensor.grad_fn for tensor in outputs]
        # Some models add their outputs to the mapping that they received.
        before = [tensor.grad_fn for tensor in inputs if tensor.grad_fn is not None and tensor.grad_fn not in nodes]
        seen, leaves = _walk(nodes, without=before)
        known = {parameter for module in self.names for parameter in module.parameters(recurse=False)}
        foreign = tuple(each for each in leaves if isinstance(each, nn.Parameter) and each not in known)
        is_used = {module: not seen.isdisjoint(nodes) for module, nodes in called.items()}
        unused = frozenset(self._name(module) for module, used in is_used.items() if not used)
        found = set(leaves)
        cut = [name for module, used in is_used.items() if used for name in self._cut_off(module, found)]
        given = set(map(id, inputs))
        apart = [module for module, received in self._without_grad.items() if received & given]
        return Graph(
            foreign,
            unused,
            tuple(cut),
            without_grad=tuple(map(self._name, self._without_grad)),
            apart=tuple(map(self._name, apart)),
            residuals=residuals(nodes[:1]),  # later outputs may be a cache or states
        )

    def _name(self, module: nn.Module) -> str:
        """Return the name of a module; "" for a shallow copy of a module, which has the same hooks."""
        return self.names.get(module, "")

    def _cut_off(self, module: nn.Module, leaves: set[Tensor]) -> list[str]:
        """Return the trainable matrices of a module without children if none of them is a leaf of the graph."""
        if next(module.children(), None) is not None:
            return []
        own = {
            name: each
            for name, each in module.named_parameters(self._name(module), recurse=False)
            if each.requires_grad and each.ndim > 1 and each.is_leaf
        }
        return [] if any(each in leaves for each in own.values()) else list(own)


def _walk(nodes: Sequence[Any], *, without: Sequence[Any]) -> tuple[set[Any], list[Tensor]]:
    """Return the nodes of a graph of autograd and the tensors at its leaves, not going through the nodes `without`."""
    seen, waiting = set(without), list(nodes)
    leaves: list[Tensor] = []
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        waiting += [following for following, _ in node.next_functions]
    return seen, leaves
