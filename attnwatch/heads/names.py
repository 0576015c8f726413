"""Names of the same attention modules in a model and in the wrappers around it."""

from collections.abc import Iterable, Mapping


def aligned(names: Mapping[str, int], model_names: Mapping[str, int]) -> dict[str, str] | None:
    """Map the sites of a plan to those of a model when either has been wrapped.

    PEFT prefixes the names of its base with `base_model.model.`, a LightningModule with the name of its attribute. The
    names after such prefixes must be equal, with equal numbers of heads.

    Args:
        names, model_names: number of heads by site, in the plan and in the model.

    Returns:
        The name in the model for each of `names`; None if the sites differ.

    Example:
        >>> aligned({"net.layers.0.attn": 4, "net.layers.1.attn": 4}, {"layers.0.attn": 4, "layers.1.attn": 4})
        {'net.layers.0.attn': 'layers.0.attn', 'net.layers.1.attn': 'layers.1.attn'}
    """
    depth, model_depth = _shared_depth(names), _shared_depth(model_names)
    cuts = [(cut, model_cut) for cut in range(depth + 1) for model_cut in range(model_depth + 1)]
    for cut, model_cut in sorted(cuts, key=sum):
        behind, behind_model = _behind(names, cut), _behind(model_names, model_cut)
        numbers = {part: names[name] for part, name in behind.items()}
        has_context = not cut or not model_cut or cut < depth  # otherwise any two models of equal sizes would match
        if has_context and numbers == {part: model_names[name] for part, name in behind_model.items()}:
            return {name: behind_model[part] for part, name in behind.items()}
    return None


def named_alike(name: str, model_names: Iterable[str]) -> list[str]:
    """Return the names that equal this one except for a prefix of either."""
    exact = [other for other in model_names if other == name]
    return exact or [other for other in model_names if other.endswith(f".{name}") or name.endswith(f".{other}")]


def _behind(names: Iterable[str], cut: int) -> dict[str, str]:
    """Return the names, each keyed by its remainder after the first `cut` parts."""
    return {".".join(name.split(".")[cut:]): name for name in names}


def _shared_depth(names: Iterable[str]) -> int:
    """Return the number of leading parts that all names share, not counting the last part of a name."""
    paths = [name.split(".") for name in names]
    shared = 0
    while paths and all(len(path) > shared + 1 and path[shared] == paths[0][shared] for path in paths):
        shared += 1
    return shared
