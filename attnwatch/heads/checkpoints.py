"""Saving and loading of pruned transformers models."""

import contextlib
import fnmatch
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from attnwatch.capture import KEPT_HEADS
from attnwatch.errors import ConfigurationError
from attnwatch.heads import folders
from attnwatch.heads.head_map import HeadMap
from attnwatch.heads.plan import PLAN_FILE, PruningPlan
from attnwatch.heads.stock import stock_config
from attnwatch.heads.weights import saved_heads, sites_of, weight_files
from attnwatch.utils.files import beside, replaced_folder
from attnwatch.utils.messages import listed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Files that make up a saved model; other files in a folder are left alone.
_MODEL_FILES = ("config.json", "generation_config.json", "model*.safetensors*", "pytorch_model*", PLAN_FILE)

# Encoders are often saved without the pooling layer above their first token, which is rarely needed.
_MAY_BE_MISSING = re.compile(r"(^|\.)pooler\.")


def save_pruned(model: "PreTrainedModel", directory: str | Path) -> None:
    """Save a pruned transformers model and its config, for `load_pruned`.

    If all layers have the same number of heads and the model reads the width of a head from its config (Llama, Qwen2,
    Qwen3, Mistral, …), `from_pretrained` loads the folder without attnwatch, and the heads are renumbered. Otherwise
    heads keep the numbers of the unpruned model. The files contain no pickled code. An existing model in the folder is
    replaced once the new one is complete; other files stay.

    Args:
        model: a transformers model, or an instance of your own subclass of `PreTrainedModel`, which `load_pruned` then
            needs as `model_class`.
        directory: folder, created if it does not exist.

    Raises:
        ConfigurationError: `model` is not a transformers model, or has adapters; or `directory` is a file.

    Example:
        >>> import attnwatch, tempfile
        >>> from transformers import BertConfig, BertModel
        >>> sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}
        >>> model = BertModel(BertConfig(**sizes))
        >>> plan = attnwatch.prune_heads(model, {0: [1, 2]})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     attnwatch.save_pruned(model, folder)
        ...     attnwatch.PruningPlan.of(attnwatch.load_pruned(folder)) == plan
        True
    """
    _refuse_unsavable(model)
    stock, directory = stock_config(model), Path(directory).resolve()
    with replaced_folder(directory, _ignore_model(directory)) as folder:
        if stock is None:
            # Keep the weights' names and shapes as in memory: transformers' conversion would split them by the config.
            model.save_pretrained(folder, save_original_format=False)
            PruningPlan.of(model).save(folder / PLAN_FILE)
        else:
            state = {name: value for name, value in model.state_dict().items() if not name.endswith(KEPT_HEADS)}
            with _config_of(model, stock):
                model.save_pretrained(folder, state_dict=state)


def load_pruned(
    directory: str | Path, *, model_class: "type[PreTrainedModel] | None" = None, **options: Any
) -> "PreTrainedModel":
    """Load a pruned model from a folder, in evaluation mode.

    The folder may be written by `save_pruned`, by `save_pretrained` (also through `Trainer.save_model` and
    `push_to_hub`), as a checkpoint by the Trainer, or by a SentenceTransformer, whose transformers model is loaded.
    PEFT adapters are loaded onto their base model, if it is also in a local folder. No code in the folder is run.

    Args:
        directory: folder of the model.
        model_class: class of the model, if it is not part of transformers; by default the one that the config names.
        options: options of transformers' `from_pretrained`, such as `attn_implementation` or `device_map`; `dtype`
            defaults to that of the saved weights.

    Raises:
        ConfigurationError: the folder holds no model that can be loaded, or `trust_remote_code` is set.
    """
    if options.pop("trust_remote_code", False):
        raise ConfigurationError(
            "`trust_remote_code`: load_pruned never runs code from a folder. Import the class, or get it from "
            "transformers' AutoModel, and pass it as `model_class`."
        )
    if model_class is not None and not folders.is_model_class(model_class):
        raise ConfigurationError(f"`model_class` must be a subclass of PreTrainedModel, got {model_class!r}.")
    directory = _existing(Path(directory).resolve())
    if "torch_dtype" not in options:
        options = {"dtype": "auto", **options}  # before transformers 5, the default was float32
    try:
        with torch.random.fork_rng(devices=[]):  # some models draw random weights before the saved ones are loaded
            if not (directory / folders.CONFIG_FILE).is_file():
                return _load_adapters(directory, model_class, options)
            return _load(directory, model_class, options)
    except Exception as error:  # from transformers, safetensors or the plan
        raise ConfigurationError(f"`directory`: {str(directory)!r} can't be loaded: {_words(error)}") from error


def _refuse_unsavable(model: object) -> None:
    kind = type(model)
    if not folders.is_model_class(kind):
        raise ConfigurationError(
            f"`model` must be a transformers model, got {kind.__name__}. Merge adapters into it and take it out of its "
            "wrapper first; for other models, save the state_dict(), see attnwatch.accept_pruned_state."
        )
    namesake = folders.found_by_name(kind)
    if namesake not in (kind, None):
        raise ConfigurationError(
            f"the class of `model`, {kind.__name__} in {kind.__module__}, has the same name as a class in "
            f"{namesake.__module__}, which would be loaded in its place: rename yours."
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ConfigurationError("`model` has adapters, and only these would be saved: merge them into it first.")


def _existing(directory: Path) -> Path:
    """Return the folder of the model in `directory`."""
    if directory.is_file():
        raise ConfigurationError(
            f"`directory`: {str(directory)!r} is a file; pass the folder of a model. A state dict or a Lightning "
            "checkpoint is loaded by its own module, see attnwatch.accept_pruned_state."
        )
    if not directory.exists() and beside(directory, "old").exists():  # save_pruned was killed between its renames
        directory = beside(directory, "old")
    directory = folders.model_folder(directory)
    if not any((directory / name).is_file() for name in (folders.CONFIG_FILE, folders.ADAPTER_FILE)):
        has_weights = directory.is_dir() and weight_files(directory)
        more = _WEIGHTS_ALONE if has_weights else ""
        raise ConfigurationError(f"`directory`: {str(directory)!r} holds no saved model: it has no config.json.{more}")
    return directory


_WEIGHTS_ALONE = (
    " It has weights, as Accelerate's save_model and save_state write them: save the model's config beside them "
    "(`model.config.save_pretrained(directory)`, with `architectures`), or build the unpruned model, apply "
    "`PruningPlan.saved_in(directory, model)` to it, and load the weights into it."
)


def _load(directory: Path, model_class: "type[PreTrainedModel] | None", options: dict[str, Any]) -> "PreTrainedModel":
    config = folders.config_of(directory)
    if "attn_implementation" not in options:
        folders.refuse_downloaded_code(config)
    model_class = model_class or folders.class_of(config)
    files = weight_files(directory, options.get("variant"))
    if files:
        folders.refuse_impossible_sizes(model_class, directory, files)
    options = {**options, "trust_remote_code": False, "weights_only": True}
    plan = PruningPlan.load(directory / PLAN_FILE) if (directory / PLAN_FILE).exists() else None
    kept = saved_heads(files)
    options["output_loading_info"] = True
    if plan is None and not kept:
        loaded: Any = model_class.from_pretrained(directory, **options)
        model, found = loaded
        lacking = sorted(name for name in found["missing_keys"] if not _MAY_BE_MISSING.search(name))
        if lacking:
            raise ConfigurationError(f"the weights lack {listed(lacking)}, which would be initialized randomly")
        return model
    model, found = _pruned_class(model_class, plan, kept).from_pretrained(
        directory, ignore_mismatched_sizes=True, **options
    )
    wrong = {name: sorted(map(str, found[name])) for name in found if found[name]}
    if wrong:
        more = f" Delete {PLAN_FILE} to use the heads that the weights name." if plan and kept else ""
        raise ConfigurationError(f"the weights do not fit its plan: {wrong}.{more}")
    model.__class__ = model_class
    return model


def _load_adapters(directory: Path, model_class: "type[PreTrainedModel] | None", options: dict[str, Any]) -> Any:
    """Load PEFT adapters onto their base model, after removing the heads that were removed during training."""
    import peft

    name = folders.base_of_adapters(directory)
    if not name or not Path(name).is_dir() or Path(name).resolve() == directory:
        raise ConfigurationError(
            f"it holds PEFT adapters of {name!r}, which is not a local folder: load the base with load_pruned, or "
            f"with from_pretrained and then PruningPlan.load(…).apply(base), and add the adapters with "
            "peft.PeftModel.from_pretrained(base, directory)"
        )
    base = load_pruned(name, model_class=model_class, **options)
    if (directory / PLAN_FILE).exists():
        plan = PruningPlan.load(directory / PLAN_FILE)
        if plan.named_as_in(base) != PruningPlan.of(base):
            plan.apply(base)
    try:
        return peft.PeftModel.from_pretrained(base, directory).eval()
    except RuntimeError as error:  # sizes differ
        raise ConfigurationError(
            f"its adapters do not fit the model in {name!r}: {error}. If heads were removed during training, save the "
            f"plan as {PLAN_FILE} beside the adapters: PruningPlan.of(model).save(…)"
        ) from error


def _pruned_class(model_class: Any, plan: PruningPlan | None, kept: dict[str, list[int]]) -> Any:
    """Return a subclass whose models are pruned when they are built, before their weights are loaded."""

    def init(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, *args, **kwargs)
        (plan or _plan_of(kept, self)).apply(self)
        for module in self.modules():
            if isinstance(module, nn.MultiheadAttention):
                # All its weights are loaded, and transformers' initialization can't handle a pruned module.
                vars(module)["_is_hf_initialized"] = True

    # Transformers looks up the names of a class's weights in files by class name and module.
    return type(model_class.__name__, (model_class,), {"__init__": init, "__module__": model_class.__module__})


def _plan_of(kept: dict[str, list[int]], model: nn.Module) -> PruningPlan:
    heads = HeadMap.of(model)
    return PruningPlan.leaving(sites_of(kept, heads), heads.num_heads)


def _words(error: Exception) -> str:
    says_enough = isinstance(error, OSError | ValueError | RuntimeError | ImportError) and str(error)
    return str(error) if says_enough else f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def _config_of(model: "PreTrainedModel", config: Any) -> Iterator[None]:
    before, model.config = model.config, config
    try:
        yield
    finally:
        model.config = before


def _ignore_model(directory: Path) -> Callable[[str, list[str]], set[str]]:
    """Return a function for `shutil.copytree` that leaves out the files of a saved model."""

    def ignored(folder: str, names: list[str]) -> set[str]:
        is_top = Path(folder) == directory
        return {name for pattern in _MODEL_FILES for name in fnmatch.filter(names, pattern)} if is_top else set()

    return ignored
