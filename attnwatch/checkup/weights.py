"""Gain of the weight matrices of a model, the factor by which they amplify states."""

import re
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from attnwatch.capture import undisturbed
from attnwatch.checkup.forward import CannotCheck, is_of_adapter
from attnwatch.utils.entries import as_real

LEAST_GAIN = 1e-3
"""Gain below which a matrix passes on almost nothing. GPT-2 initialises with gains of 0.5 to 0.8."""
# Initialisers have gains of 0.1 to 2; trained matrices of GPT-2 have 4.
_MOST_GAIN = 8.0
# The mean of random entries is near 0; uniform numbers from 0 to 1 have a mean of 0.87 times their root mean square.
# That of 100 random entries is above half of it once in a million times.
_ONE_SIDED, _LEAST_ENTRIES = 0.5, 100
# LayerScale starts at 1e-6 to 0.1. What is scaled by more than this still shows.
_SMALL_SCALE = 0.02
# Names of vectors that are added to states rather than multiplied with them.
_ADDED = re.compile(r"token|emb|pos|query", re.IGNORECASE)
_NORM = re.compile(r"norm|(^|[._])ln", re.IGNORECASE)
# Largest scale of norms drawn like the weights of linear layers.
_MOST_RANDOM_SCALE = 0.5
# Standard deviation of torch.randn.
_RANDN, _TOLERANCE, _LEAST_INPUTS = 1.0, 0.05, 16


def linear_weights(module: nn.Module) -> Iterator[tuple[str, Tensor, int]]:
    """Yield the nonzero matrices of linear layers, with their names and numbers of inputs."""
    for path, part in module.named_modules():
        if isinstance(part, nn.Embedding):
            continue
        for name, weight in part.named_parameters(prefix=path, recurse=False):
            if weight.ndim == 2 and weight.numel() and not is_of_adapter(name):
                yield name, weight.detach(), weight.shape[0 if type(part).__name__ == "Conv1D" else 1]


def hidden_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters in plain lists, tuples and dicts of modules, including those of modules inside them."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name.startswith("_") or type(value) not in (list, tuple, dict):
                continue
            for each in value.values() if isinstance(value, dict) else value:
                where = f"{path}.{name}" if path else name
                if isinstance(each, nn.Parameter):
                    yield where, each
                elif isinstance(each, nn.Module):
                    yield from ((f"{where}: {inner}", parameter) for inner, parameter in each.named_parameters())


def gains(module: nn.Module) -> dict[str, float]:
    """Return the gain of each nonzero matrix of a linear layer: its root mean square times √inputs.

    A random matrix with a gain of 1 preserves the scale of its inputs. Glorot's initialisation has a gain of 1,
    PyTorch's default 0.6.
    """
    weights = list(linear_weights(module))
    known = zip(weights, _numbers(map(_norm, (weight for _, weight, _ in weights))), strict=True)
    return {name: norm * (inputs / weight.numel()) ** 0.5 for (name, weight, inputs), norm in known if norm}


def large_weights(module: nn.Module) -> dict[str, float]:
    """Return the gains of matrices that are too large for an initialiser, or have the scale of torch.randn."""
    inputs = {name: number for name, _, number in linear_weights(module)}
    return {name: gain for name, gain in gains(module).items() if _is_large(gain, inputs[name])}


def has_large_weights(module: nn.Module) -> bool:
    """Return whether most matrices are too large for an initialiser, or have the scale of torch.randn."""
    return len(large_weights(module)) > len(gains(module)) / 2


def _is_large(gain: float, inputs: int) -> bool:
    is_randn = inputs >= _LEAST_INPUTS and abs(gain / inputs**0.5 - _RANDN) < _TOLERANCE
    return is_randn or gain > _MOST_GAIN


def one_sided_weights(module: nn.Module) -> dict[str, float]:
    """Return the share of the mean in the root mean square of matrices far from 0 on average; empty unless most are."""
    weights = {name: weight for name, weight, _ in linear_weights(module) if weight.numel() >= _LEAST_ENTRIES}
    shares = zip(weights, _numbers(map(_share_of_mean, weights.values())), strict=True)
    found = {name: share for name, share in shares if share > _ONE_SIDED}
    return found if len(found) > len(weights) / 2 else {}


def equal_weights(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the matrices with one nonzero number in all entries; empty unless most matrices have that."""
    weights = {name: weight for name, weight, _ in linear_weights(module) if min(weight.shape) > 1}
    # All first rows are compared before a whole matrix is.
    in_row = _numbers(((row == row[0]) & (row != 0)).all() for row, *_ in weights.values())
    likely = [name for name, is_equal in zip(weights, in_row, strict=True) if is_equal]
    equal = tuple(name for name in likely if bool((weights[name] == weights[name][0, 0]).all()))
    return equal if len(equal) > len(weights) / 2 else ()


def _norm(weight: Tensor) -> Tensor:
    numbers = as_real(weight)  # not copied to another dtype, because a model may be large
    return torch.linalg.vector_norm(numbers, dtype=torch.promote_types(numbers.dtype, torch.float32))


def _share_of_mean(weight: Tensor) -> Tensor:
    numbers, norm = as_real(weight), _norm(weight)
    return numbers.mean(dtype=norm.dtype).abs() * numbers.numel() ** 0.5 / norm


def _numbers(values: Iterable[Tensor]) -> list[float]:
    """Return scalars of any devices as numbers, for which each device is waited for once."""
    tensors = list(values)
    return torch.stack([each.to(tensors[0].device) for each in tensors]).tolist() if tensors else []


def small_scales(module: nn.Module) -> Iterator[str]:
    """Yield the names of vectors that scale states by small factors, as LayerScale does at the start."""
    for name, parameter in module.named_parameters():
        is_added = name.endswith("bias") or _ADDED.search(name) or is_of_adapter(name)
        is_scale = not is_added and parameter.numel() > 1 and parameter.squeeze().ndim == 1
        if is_scale and 0 < float(parameter.detach().abs().max()) < _SMALL_SCALE:
            yield name


def have_learned(parameters: Mapping[str, nn.Parameter]) -> bool:
    """Return whether vectors of norms among the parameters differ from their initial values; True if there are none."""
    vectors = [each for name, each in parameters.items() if each.ndim == 1 and _NORM.search(name)]
    return not vectors or any(bool(((each != 0) & (each != 1)).any()) for each in vectors)


def has_random_scale(norm: nn.Module) -> bool:
    """Return whether a norm of vectors multiplies them by small random numbers of both signs.

    Some norms multiply by 1 plus their weights, so its outputs are compared with normalised inputs.
    """
    weight = getattr(norm, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 1 or len(weight) < _LEAST_INPUTS or not weight.any():
        return False
    if any(True for _ in norm.buffers()):  # a norm over the batch, which must not see other states
        return False
    states = torch.linspace(-1, 1, len(weight) + 1 - len(weight) % 2, device=weight.device)[: len(weight)]
    try:
        with undisturbed(norm, seed=0):
            one, other = (norm.forward(sign * states[None].to(weight.dtype)).float() for sign in (1, -1))
    except Exception:  # a norm that takes more than the states
        return False
    if one.shape != (1, len(weight)):
        return False
    scales = (one - other)[0] / 2 / states.where(states != 0, 1) * states.square().mean().sqrt()
    return bool(scales.mean().abs() < scales.std() / 2 and scales.abs().max() < _MOST_RANDOM_SCALE)


def require_weights(module: nn.Module) -> None:
    """Raise `CannotCheck` if weights hide how the outputs depend on the inputs.

    A parameter may be zero, as gates may be at the start, matrices or scales almost zero, or most matrices constant.
    Then outputs hardly change with anything before that parameter.
    """
    if equal := equal_weights(module):
        raise CannotCheck(f"{equal[0]} has the same number in all entries, so nothing after it changes")
    for name, parameter in module.named_parameters():
        is_norm = parameter.ndim == 1 and _NORM.search(name)  # some norms add 1 to their weights
        if is_norm or name.endswith("bias") or is_of_adapter(name) or not parameter.numel():
            continue
        if not parameter.any():
            raise CannotCheck(f"{name} is zero, so nothing after it changes")
    for name in small_scales(module):
        raise CannotCheck(f"{name} is almost zero, so the states that it scales hardly change")
    for name, gain in gains(module).items():
        if gain < LEAST_GAIN:
            raise CannotCheck(f"{name} is almost zero, so nothing after it changes")
