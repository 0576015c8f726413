"""Names of the same attention modules in a model and in the wrappers around it."""

from collections.abc import Iterable, Mapping


def aligned(names: Mapping[str, int], model_names: Mapping[str, int]) -> dict[str, str] | None:
    """Map sites of a plan to those of a model that lies in a wrapper, or around which one lies.

    PEFT puts `base_model.model.` before the names of its base, a LightningModule the name of its attribute. The names
    must be equal behind such prefixes, and have equally many heads.

    Args:
        names, model_names: number of heads by site, of the plan and of the model.

    Returns:
        The name in the model for each of `names`; None where the sites are not the same.

    Example:
        >>> aligned({"net.layers.0.attn": 4, "net.layers.1.attn": 4}, {"layers.0.attn": 4, "layers.1.attn": 4})
        {'net.layers.0.attn': 'layers.0.attn', 'net.layers.1.attn': 'layers.1.attn'}
    """
    depth, model_depth = _shared_depth(names), _shared_depth(model_names)
    cuts = [(cut, model_cut) for cut in range(depth + 1) for model_cut in range(model_depth + 1)]
    for cut, model_cut in sorted(cuts, key=sum):
        behind, behind_model = _behind(names, cut), _behind(model_names, model_cut)
        numbers = {part: names[name] for part, name in behind.items()}
        has_context = not cut or not model_cut or cut < depth  # else any two models of equal sizes would be the same
        if has_context and numbers == {part: model_names[name] for part, name in behind_model.items()}:
            return {name: behind_model[part] for part, name in behind.items()}
    return None


def named_alike(name: str, model_names: Iterable[str]) -> list[str]:
    """Return the names that are equal to this one but for a prefix of either."""
    exact = [other for other in model_names if other == name]
    return exact or [other for other in model_names if other.endswith(f".{name}") or name.endswith(f".{other}")]


def _behind(names: Iterable[str], cut: int) -> dict[str, str]:
    """Return the names by what is left of them without their first parts."""
    return {".".join(name.split(".")[cut:]): name for name in names}


def _shared_depth(names: Iterable[str]) -> int:
    """Return how many parts all names begin with; the last part of a name does not count."""
    paths = [name.split(".") for name in names]
    shared = 0
    while paths and all(len(path) > shared + 1 and path[shared] == paths[0][shared] for path in paths):
        shared += 1
    return shared
