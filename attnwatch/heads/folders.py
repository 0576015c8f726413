"""Identification of the model in a folder, without running, downloading or allocating what the folder requests."""

import importlib
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import torch

from attnwatch.errors import ConfigurationError
from attnwatch.utils.files import UnreadableFileError, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG_FILE = "config.json"
ADAPTER_FILE = "adapter_config.json"
# List of the parts of a SentenceTransformer.
_MODULES_FILE = "modules.json"
# Building a model takes time for each layer, long before its weights are read.
_MOST_LAYERS = 10_000
_LAYER_WORDS = ("layer", "depth", "block", "stage", "expert")
# The smallest weights have four bits; files omit some buffers and heads.
_PARAMETERS_PER_BYTE = 2
_MOST_NEW_PARAMETERS = 100_000_000
_MOST_BUFFER_ENTRIES = 4_000_000_000


def model_folder(directory: Path) -> Path:
    """Return the folder of the transformers model: `directory`, or the subfolder that a SentenceTransformer names."""
    if (directory / CONFIG_FILE).is_file() or not (directory / _MODULES_FILE).is_file():
        return directory
    modules = _json(directory / _MODULES_FILE)
    paths = [module.get("path") for module in modules if isinstance(module, dict)] if isinstance(modules, list) else []
    for path in paths:
        folder = (directory / str(path)).resolve()
        if folder.is_relative_to(directory.resolve()) and (folder / CONFIG_FILE).is_file():
            return folder
    return directory


def config_of(directory: Path) -> dict[str, Any]:
    """Return the content of a folder's config.json.

    Raises:
        ConfigurationError: the file is not JSON, or requests attention code that would be downloaded.
    """
    content = _json(directory / CONFIG_FILE)
    if not isinstance(content, dict):
        raise ConfigurationError(f"its {CONFIG_FILE} is not a JSON object, but a {type(content).__name__}")
    return content


def base_of_adapters(directory: Path) -> str:
    """Return the name or path of the base model of a folder's PEFT adapters."""
    content = _json(directory / ADAPTER_FILE)
    base = content.get("base_model_name_or_path") if isinstance(content, dict) else None
    return base if isinstance(base, str) else ""


def class_of(config: Mapping[str, Any]) -> "type[PreTrainedModel]":
    """Return the transformers class that a config.json names, even if transformers does not export it.

    Raises:
        ConfigurationError: it names no class, or one that is not a model or not in transformers.
    """
    names = config.get("architectures")
    if not names:
        raise ConfigurationError(f"its {CONFIG_FILE} does not name the model's class (`architectures`)")
    if not isinstance(names, list) or not isinstance(names[0], str):
        raise ConfigurationError(f"`architectures` in its {CONFIG_FILE} must be a list of names, got {names!r:.80}")
    for found in _called(names[0], config):
        if is_model_class(found):
            return found
        what = "a class" if isinstance(found, type) else f"a {type(found).__name__}"
        raise ConfigurationError(f"its {CONFIG_FILE} names {names[0]!r}, {what} of transformers that is not a model")
    in_folder = " Its code is in the folder (`auto_map`), and attnwatch never runs code from a folder."
    raise ConfigurationError(
        f"its {CONFIG_FILE} names the class {names[0]!r}, which is not in transformers."
        f"{in_folder if config.get('auto_map') else ''} Import the class "
        "yourself and pass it as `model_class`"
    )


def is_model_class(found: object) -> "TypeGuard[type[PreTrainedModel]]":
    """Return whether an object is a transformers model class that can be built."""
    from transformers import PreTrainedModel

    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        return False
    return found.forward is not PreTrainedModel.forward  # base classes of a family have none


def found_by_name(model_class: type) -> Any:
    """Return the object that `class_of` finds by the name of this class: the class itself, another one, or None."""
    config = {"model_type": getattr(getattr(model_class, "config_class", None), "model_type", None)}
    return next(_called(model_class.__name__, config), None)


def _called(name: str, config: Mapping[str, Any]) -> Iterator[object]:
    """Iterate over the objects of this name in transformers, exported or in the module of the config's model type."""
    import transformers

    if name.isidentifier() and not name.startswith("_"):
        for module in (transformers, *_modules_of(config.get("model_type"))):
            if hasattr(module, name):
                yield getattr(module, name)


def _modules_of(model_type: object) -> Iterator[Any]:
    from transformers import CONFIG_MAPPING

    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        return
    package = CONFIG_MAPPING[model_type].__module__.rpartition(".")[0]
    if not package.startswith("transformers.models."):  # registered by the user with AutoConfig.register
        return
    for found in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if found.name.startswith("modeling_"):
            yield importlib.import_module(f"{package}.{found.name}")


def refuse_downloaded_code(config: Mapping[str, Any]) -> None:
    """Raise a `ConfigurationError` if a config.json requests an attention function from the Hub."""
    for name, value in _entries(config):
        if "_implementation" in name and "/" in str(value):
            raise ConfigurationError(
                f"its {CONFIG_FILE} requests code from the Hub, {name}: {value!r:.80}; pass `attn_implementation`, "
                "such as 'sdpa', to do without it"
            )


def refuse_impossible_sizes(model_class: "type[PreTrainedModel]", directory: Path, files: Iterable[Path]) -> None:
    """Raise a `ConfigurationError` if a config.json describes far more than the weights beside it can hold."""
    for name, value in _entries(config_of(directory)):
        is_of_layers = any(word in name.rpartition(".")[2] for word in _LAYER_WORDS)
        if is_of_layers and isinstance(value, int | float) and value > _MOST_LAYERS:
            raise ConfigurationError(f"its {CONFIG_FILE} has {name}: {value}, more than any model of transformers has")
    stored = sum(file.stat().st_size for file in files)
    config = cast(Any, model_class.config_class).from_pretrained(directory)
    config._attn_implementation = "eager"  # other values may trigger a lookup on the Hub
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        built = model_class(config)
    parameters = sum(parameter.numel() for parameter in built.parameters())
    buffers = sum(buffer.numel() for buffer in built.buffers())
    if parameters > _PARAMETERS_PER_BYTE * stored + _MOST_NEW_PARAMETERS or buffers > _MOST_BUFFER_ENTRIES:
        raise ConfigurationError(
            f"its {CONFIG_FILE} describes a model of {parameters:,} parameters and {buffers:,} entries of buffers, "
            f"but the weights beside it have only {stored:,} bytes"
        )


def _entries(content: object) -> Iterator[tuple[str, object]]:
    """Iterate over the leaf values of nested JSON with their dotted names."""
    stack: list[tuple[str, object]] = [("", content)]
    while stack:
        name, value = stack.pop()
        if isinstance(value, Mapping):
            stack += [(f"{name}.{key}".lstrip("."), each) for key, each in value.items()]
        elif isinstance(value, list):
            stack += [(name, each) for each in value]
        else:
            yield name, value


def _json(file: Path) -> Any:
    try:
        return read_json(file)
    except UnreadableFileError as error:
        raise ConfigurationError(f"its {file.name} {error}") from error
