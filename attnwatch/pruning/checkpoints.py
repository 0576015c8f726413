"""Pruned transformers models in folders."""

import contextlib
import copy
import fnmatch
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from attnwatch.capture import KEPT_HEADS
from attnwatch.errors import ConfigurationError
from attnwatch.files import beside, replaced_folder
from attnwatch.pruning.heads import head_sites
from attnwatch.pruning.plan import PruningPlan

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

PLAN_FILE = "pruning_plan.json"
# What else a saved model consists of; other files in a folder are somebody else's.
_MODEL_FILES = ("config.json", "generation_config.json", "model*.safetensors*", "pytorch_model*", PLAN_FILE)


def save_pruned(model: "PreTrainedModel", directory: str | Path) -> None:
    """Save a pruned transformers model, with its config; `load_pruned` loads it.

    Where every layer has equally many heads and the config has a `head_dim` of its own (Llama, Qwen3, Mistral, …), the
    folder is an ordinary one that `from_pretrained` loads without attnwatch; its heads are then counted anew.
    Otherwise heads keep the numbers of the unpruned model. Files hold no pickled code. A model that the folder has is
    replaced once the new one is complete; other files in it stay.

    Args:
        model: with fewer heads than its config says, or as many.
        directory: made where it does not exist.

    Raises:
        ConfigurationError: `model` is not of one of transformers' own classes, or has adapters; or `directory` is a
            file.
    """
    import transformers

    if getattr(transformers, type(model).__name__, None) is not type(model):
        raise ConfigurationError(
            f"`model` must be of one of transformers' own classes, got {type(model).__name__}. Merge adapters into it "
            "first; of other models keep the state_dict(), see attnwatch.accept_pruned_state."
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ConfigurationError("`model` has adapters, which would be all that is saved: merge them into it first.")
    stock, directory = _stock_config(model), Path(directory).resolve()
    with replaced_folder(directory, _ignore_model(directory)) as folder:
        if stock is None:
            # Weights as they are called and shaped here: what transformers converts, it splits by the config.
            model.save_pretrained(folder, save_original_format=False)
            PruningPlan.of(model).save(folder / PLAN_FILE)
        else:
            state = {name: value for name, value in model.state_dict().items() if not name.endswith(KEPT_HEADS)}
            with _config_of(model, stock):
                model.save_pretrained(folder, state_dict=state)


def load_pruned(directory: str | Path, **options: Any) -> "PreTrainedModel":
    """The model that `save_pruned` has saved, in evaluation mode.

    Args:
        directory: of the model.
        options: of transformers' `from_pretrained`, such as `attn_implementation` or `device_map`; its `dtype` is by
            default that of the saved weights.

    Raises:
        ConfigurationError: the folder holds no model that it could load.
    """
    import transformers

    directory = Path(directory).resolve()
    if not directory.exists() and beside(directory, "old").exists():  # save_pruned was killed between its renames
        directory = beside(directory, "old")
    if not (directory / "config.json").is_file():
        raise ConfigurationError(f"`directory`: {str(directory)!r} holds no saved model: it has no config.json.")
    if "torch_dtype" not in options:
        options = {"dtype": "auto", **options}  # before transformers 5 it was float32
    try:
        config = transformers.AutoConfig.from_pretrained(directory)
        if not config.architectures:
            raise ConfigurationError("its config.json does not say of which class it is (`architectures`)")
        model_class = getattr(transformers, config.architectures[0])
        with torch.random.fork_rng(devices=[]):  # some models draw weights before they are loaded
            if not (directory / PLAN_FILE).exists():
                _refuse_without_plan(directory)
                return model_class.from_pretrained(directory, **options)
            plan = PruningPlan.load(directory / PLAN_FILE)
            model, found = _pruned_class(model_class, plan).from_pretrained(
                directory, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
    except Exception as error:  # of transformers, of safetensors, of the plan
        raise ConfigurationError(f"`directory`: {str(directory)!r} can't be loaded: {error}") from error
    wrong = {name: sorted(map(str, found[name])) for name in found if found[name]}
    if wrong:
        raise ConfigurationError(f"`directory`: the weights in {str(directory)!r} do not fit its plan: {wrong}.")
    model.__class__ = model_class
    return model


def _refuse_without_plan(directory: Path) -> None:
    from safetensors import safe_open

    for file in directory.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            if any(name.endswith(KEPT_HEADS) for name in tensors.keys()):  # noqa: SIM118
                raise ConfigurationError("it is a pruned model that save_pretrained has saved; use save_pruned.")


def _pruned_class(model_class: type, plan: PruningPlan) -> type:
    """Models of this class that are pruned when they are made, before they get their weights."""

    def init(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, *args, **kwargs)
        plan.apply(self)

    return type(model_class.__name__, (model_class,), {"__init__": init})


def _stock_config(model: "PreTrainedModel") -> "PretrainedConfig | None":
    """A config that builds the pruned model as it is; None where there is none."""
    sites = head_sites(model)[0].values()
    if all(site.num_heads == site.num_unpruned_heads for site in sites):
        return model.config
    numbers = {(site.num_heads, site.num_key_value_heads) for site in sites}
    if len(numbers) != 1 or not isinstance(model.config.to_dict().get("head_dim"), int):
        return None
    stock = copy.deepcopy(model.config)
    (stock.num_attention_heads, stock.num_key_value_heads) = numbers.pop()
    try:
        with torch.device("meta"):
            built = type(model)(type(stock).from_dict(stock.to_dict()))
    except Exception:  # of the config's own checks: Llama's width must be a multiple of its number of heads
        return None
    has, needs = ({name: p.shape for name, p in each.named_parameters()} for each in (model, built))
    return stock if has == needs else None


@contextlib.contextmanager
def _config_of(model: "PreTrainedModel", config: Any) -> Iterator[None]:
    before, model.config = model.config, config
    try:
        yield
    finally:
        model.config = before


def _ignore_model(directory: Path):
    def ignored(folder: str, names: list[str]) -> set[str]:
        is_top = Path(folder) == directory
        return {name for pattern in _MODEL_FILES for name in fnmatch.filter(names, pattern)} if is_top else set()

    return ignored
