"""Heads of saved weights, read without building a model or running pickled code."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from attnwatch.capture import KEPT_HEADS, site_name
from attnwatch.errors import ConfigurationError
from attnwatch.heads.head_map import HeadMap
from attnwatch.heads.names import named_alike
from attnwatch.utils.files import UnreadableFileError, read_json

# Names used by transformers, Accelerate and the Trainer; the first one found in a folder is used.
_NAMES = (
    *("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
    "adapter_model.safetensors",
)


def weight_files(path: Path, variant: str | None = None) -> list[Path]:
    """Return the files that hold a model's weights: the file itself, or those in a folder.

    Args:
        path: a `.safetensors` file, a file written by `torch.save`, or a folder.
        variant: part of the files' names, as in `model.fp16.safetensors`.

    Raises:
        ConfigurationError: an index is invalid, or names files that are not in this folder.
    """
    if path.is_file():
        return [path]
    for name in _NAMES:
        stem, _, ending = name.partition(".")
        file = path / (f"{stem}.{variant}.{ending}" if variant else name)
        if file.is_file():
            return _shards(file) if ending.endswith("json") else [file]
    return []


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
        files = [index.with_name(name) for name in names]
    except UnreadableFileError as error:
        raise ConfigurationError(f"{index.name} {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"{index.name} is not an index of weights ({error!r})") from None
    if any(Path(name).name != name or not file.is_file() for name, file in zip(names, files, strict=True)):
        raise ConfigurationError(f"{index.name} names weights that are not in the same folder: {', '.join(names[:3])}")
    return files


def saved_heads(files: Iterable[Path]) -> dict[str, list[int]]:
    """Return the numbers of the heads left in each pruned attention module of a saved model, by module path.

    Raises:
        ConfigurationError: a file holds no weights, or invalid head numbers.
    """
    found: dict[str, list[int]] = {}
    for file in files:
        for path, kept in _kept_in(file).items():
            numbers = kept.double().flatten().tolist()
            heads = [round(number) if math.isfinite(number) else -1 for number in numbers]
            if kept.ndim != 1 or sorted(set(heads)) != heads or min(heads, default=0) < 0:
                raise ConfigurationError(
                    f"{file.name}: {path}.{KEPT_HEADS} is not an ascending list of heads: {heads[:9]}"
                )
            found[path] = heads
    return found


def _kept_in(file: Path) -> dict[str, Tensor]:
    """Return the heads of the pruned modules by module path."""
    try:
        if file.suffix == ".safetensors":
            return _kept_in_safetensors(file)
        content = torch.load(file, weights_only=True, map_location="cpu", mmap=True)
    except Exception as error:  # from safetensors, unpickling or the disk
        raise ConfigurationError(f"{file.name} holds no readable weights ({error})") from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping):
        raise ConfigurationError(f"{file.name} holds no state dict, but a {type(content).__name__}")
    return {_owner(name): value for name, value in state.items() if _is_kept(name) and isinstance(value, Tensor)}


def _kept_in_safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import safe_open

    with safe_open(file, "pt") as tensors:
        return {_owner(name): tensors.get_tensor(name) for name in tensors.keys() if _is_kept(name)}  # noqa: SIM118


def _is_kept(name: object) -> bool:
    return isinstance(name, str) and f".{name}".endswith(f".{KEPT_HEADS}")


def _owner(name: str) -> str:
    return name.removesuffix(KEPT_HEADS).removesuffix(".")


def sites_of(kept: Mapping[str, list[int]], heads: HeadMap) -> dict[str, list[int]]:
    """Return the saved heads by site of a model.

    Names in files may differ: transformers writes the names of a family's first checkpoints, and wrappers add a prefix.

    Raises:
        ConfigurationError: the model has no such module, several of them, or fewer heads there.
    """
    sites = heads.sites
    in_files = _names_in_files(heads.model, sites)
    found = {}
    for path, saved in kept.items():
        name = site_name(path, heads.model)
        names = named_alike(name, sites) if name in sites else named_alike(name, in_files) or named_alike(name, sites)
        if len(names) != 1:
            raise ConfigurationError(
                f"the weights have heads of {path!r}, which is {'none' if not names else 'more than one'} of the "
                f"model's attention modules: {', '.join(names or sites)}"
            )
        site = in_files.get(names[0], names[0])
        if max(saved, default=0) >= heads.num_heads[site]:
            raise ConfigurationError(
                f"the weights have head {max(saved)} at {path!r}, where the model has {heads.num_heads[site]} heads "
                "unpruned"
            )
        found[site] = saved
    return found


def _names_in_files(model: nn.Module, sites: Iterable[str]) -> dict[str, str]:
    """Return the sites by their names in transformers' files."""
    try:
        from transformers import PreTrainedModel
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # before transformers 5, the names are the same
        return {}
    if not isinstance(model, PreTrainedModel):
        return {}
    nothing = torch.zeros(0)
    names = {}
    for site in sites:
        for name in revert_weight_conversion(model, {f"{site}.{KEPT_HEADS}": nothing}):
            names[_owner(name)] = site
    return names
