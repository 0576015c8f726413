"""Weights that are frozen while those around them are trained."""

import re
from collections.abc import Iterator, Mapping
from statistics import median

from torch import nn

from attnwatch.capture import find_sites
from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, known, register
from attnwatch.checkup.evidence import StepEvidence
from attnwatch.checkup.forward import POSITIONS, is_of_adapter
from attnwatch.checkup.weights import have_learned
from attnwatch.utils.messages import listed

# Share of the rank of frozen matrices that matrices of adapters have at most.
_LOW_RANK = 0.5
_SAME_DEVIATION = 0.05
# Parts of the names of embeddings that are not of words.
_NO_WORDS = re.compile(f"{POSITIONS.pattern}|type|segment", re.IGNORECASE)
_NEW_HEAD = "Train the new classifier too: with peft, name it in `modules_to_save` or set the task type."
_EMBEDDINGS = (
    "Embedding.from_pretrained freezes its vectors unless it is given freeze=False; random vectors should be trained."
)


@register
class FrozenParameters(Check):
    """Some weights are frozen while the weights around them are trained.

    Attention with frozen query and key weights can't learn where to look. In a stack of layers, a frozen layer above a
    trained one is reported, and so are frozen weights in a layer whose other weights are trained. The finding is a note
    if the frozen layer was trained before: its norms and biases differ from their initial values. In models with
    adapters, weights are frozen by design, so there is only a note on a classifier of sequences that seems to be new.
    Frozen embeddings of tokens are noted if all other weights are trained from their initial values. Adapters are known
    by their names, or by their low rank beside the frozen matrices.
    """

    name = "frozen_parameters"
    decides = True
    severity = 0.5
    remedy = "Set requires_grad=True on these weights before creating the optimizer, or freeze the whole layer."

    def look(self, step: StepEvidence) -> Fault | None:
        sites = find_sites(step.model)
        if not sites:
            raise CannotCheck("no known attention was found in the model")
        if any(is_of_adapter(name) for name, each in step.model.named_parameters() if each.requires_grad):
            return _of_new_head(step)
        frozen = [name for site in sites for name in _partly_frozen(site.name, site.module)]
        if frozen:
            return _fault("some weights are frozen while others in the same attention layers are trained", frozen)
        for stack in _stacks(step.model):
            above = _above_trained(stack)
            if above:
                what = "layers are frozen although lower ones are trained"
                return _fault(what, above, is_note=_has_learned(stack, above))
            parts = [name for path, layer in stack.items() for name in _partly_frozen(path, layer)]
            if parts:
                what = "some weights are frozen while others in the same layers are trained"
                return _fault(what, parts, is_note=_has_learned(stack, parts))
        return _of_embeddings(step)


def _of_embeddings(step: StepEvidence) -> Fault | None:
    """Return the note on frozen embeddings of tokens in a model that has learned nothing and is trained otherwise."""
    model = step.forward.module
    frozen = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and not module.weight.requires_grad and not _NO_WORDS.search(name)
    }
    own = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    others = [each for each in model.parameters() if each.ndim > 1 and id(each) not in own]
    is_trained = all(each.requires_grad for each in others) and not have_learned(dict(model.named_parameters()))
    names = [f"{name}.weight" for name in frozen if f"{step.forward.name}.{name}".strip(".") in step.forward.called]
    if not names or not is_trained:
        return None
    what = f"the embeddings {listed(names)} are frozen, while all other weights are trained from their initial values"
    return Fault(what, tuple(names), {"weights": float(len(names))}, is_note=True, remedy=_EMBEDDINGS)


def _of_new_head(step: StepEvidence) -> Fault | None:
    """Return the note on a frozen classifier of sequences that has learned nothing, beside adapters that train."""
    targets = known(lambda: step.targets, None)
    if targets is None or targets.classes.ndim > 1 or not have_learned(dict(step.model.named_parameters())):
        return None
    for name in reversed(step.forward.called):
        head = step.model.get_submodule(name)
        if isinstance(head, nn.Linear) and head.out_features == targets.num_classes:
            is_new = _is_initial(head, getattr(getattr(step.forward.module, "config", None), "initializer_range", None))
            if any(each.requires_grad for each in head.parameters()) or not is_new:
                return None
            what = f"the classifier {name} is frozen and seems to have its initial weights, while adapters are trained"
            return Fault(what, (f"{name}.weight",), {"weights": 1.0}, is_note=True, remedy=_NEW_HEAD)
    return None


def _is_initial(head: nn.Linear, deviation: float | None) -> bool:
    """Return whether a layer looks untrained: its biases are zero, or its weights are spread as initialisers do.

    Args:
        head: layer.
        deviation: standard deviation of the model's initialiser; None if it is unknown.
    """
    if head.bias is not None:
        bound = head.in_features**-0.5  # of PyTorch's default
        return not head.bias.any() or all(float(each.detach().abs().max()) <= bound for each in head.parameters())
    size = float(head.weight.detach().float().square().mean().sqrt())
    return deviation is not None and abs(size / deviation - 1) < _SAME_DEVIATION


def _fault(what: str, names: list[str], *, is_note: bool = False) -> Fault:
    return Fault(f"{what}: {listed(names, most=2)}", tuple(names), {"weights": float(len(names))}, is_note=is_note)


def _partly_frozen(path: str, module: nn.Module) -> list[str]:
    """Return the frozen matrices of a module whose other matrices are trained; none if only adapters are trained."""
    matrices = {name: each for name, each in module.named_parameters() if each.ndim > 1}
    still = [name for name, each in matrices.items() if not each.requires_grad]
    trained = [min(each.shape) for each in matrices.values() if each.requires_grad]
    if not still or not trained or max(trained) <= _LOW_RANK * median(min(matrices[name].shape) for name in still):
        return []
    return [f"{path}.{name}" for name in still]


def _stacks(model: nn.Module) -> Iterator[Mapping[str, nn.Module]]:
    """Yield the layers of each list of modules of one class, by name."""
    for path, module in model.named_modules():
        layers = list(module.children()) if isinstance(module, nn.ModuleList | nn.Sequential) else []
        if len(layers) > 1 and len(set(map(type, layers))) == 1 and any(True for _ in layers[0].parameters()):
            yield {f"{path}.{index}": layer for index, layer in enumerate(layers)}


def _above_trained(stack: Mapping[str, nn.Module]) -> list[str]:
    """Return the layers without a trainable matrix above a layer whose matrices are all trainable."""
    trains = {
        name: [each.requires_grad for each in layer.parameters() if each.ndim > 1] for name, layer in stack.items()
    }
    names = [name for name, matrices in trains.items() if matrices]
    first = next((index for index, name in enumerate(names) if all(trains[name])), len(names))
    return [name for name in names[first:] if not any(trains[name])]


def _has_learned(stack: Mapping[str, nn.Module], frozen: list[str]) -> bool:
    """Return whether norms in the layers with these weights differ from their usual initial values."""
    layers = [layer for path, layer in stack.items() if any(f"{name}.".startswith(f"{path}.") for name in frozen)]
    return have_learned(
        {f"{index}.{name}": each for index, layer in enumerate(layers) for name, each in layer.named_parameters()}
    )
