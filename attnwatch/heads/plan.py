"""Plan of the heads to remove: a value that can be printed, stored and applied."""

import json
import operator
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from attnwatch.errors import ConfigurationError
from attnwatch.heads.head_map import HeadMap
from attnwatch.heads.names import aligned
from attnwatch.heads.surgery import HeadsBySite, Surgery
from attnwatch.heads.weights import saved_heads, sites_of, weight_files
from attnwatch.utils.files import UnreadableFileError, read_json, replaced_file
from attnwatch.utils.hooks import put
from attnwatch.utils.notebooks import as_html

PLAN_FILE = "pruning_plan.json"
_FORMAT = 1


@dataclass(frozen=True)
class PruningPlan:
    """Heads to remove, or removed heads. Prints as a table.

    Attributes:
        heads: heads to remove by site, numbered as in the unpruned model.
        num_heads: number of heads of the unpruned model, for each of its sites.

    Example:
        >>> print(PruningPlan({"layers.1": (0, 2, 3, 4)}, {"layers.0": 8, "layers.1": 8}))
        site      heads  removed  which
        layers.0      8        0  –
        layers.1      8        4  0, 2-4
        all          16        4  25%
    """

    heads: Mapping[str, tuple[int, ...]]
    num_heads: Mapping[str, int]

    @property
    def num_removed(self) -> int:
        """Number of heads to remove."""
        return sum(map(len, self.heads.values()))

    @property
    def num_unpruned(self) -> int:
        """Number of heads of the unpruned model."""
        return sum(self.num_heads.values())

    @classmethod
    def of(cls, model: nn.Module | HeadMap) -> "PruningPlan":
        """Return the heads removed from a model so far."""
        heads = HeadMap.of(model)
        return cls.leaving(heads.kept, heads.num_heads)

    @classmethod
    def saved_in(cls, path: str | Path, model: nn.Module) -> "PruningPlan":
        """Return the heads removed from the model whose weights are in a file or folder.

        ```python
        PruningPlan.saved_in("state", model).apply(model)  # before optimizers are created
        accelerator.load_state("state")
        ```

        Args:
            path: a folder (`save_pretrained`, `Trainer.save_model`, Accelerate's `save_state` and `save_model`), or a
                file with a state dict (`.safetensors`, Lightning's `.ckpt`, `torch.save`).
            model: model like the saved one before heads were removed. It is not changed.

        Raises:
            ConfigurationError: there are no weights, or they belong to another model.
        """
        heads = HeadMap.of(model)
        try:
            files = weight_files(Path(path))
            if not files:
                raise ConfigurationError("there are no weights")
            kept = sites_of(saved_heads(files), heads)
        except ConfigurationError as error:
            raise ConfigurationError(f"`path`: no plan can be read from {str(path)!r}: {error}.") from error
        return cls.leaving(kept, heads.num_heads)

    @classmethod
    def leaving(cls, kept: Mapping[str, Sequence[int]], num_heads: Mapping[str, int]) -> "PruningPlan":
        """Return the plan that removes all heads except these; sites that are not named keep all their heads."""
        gone = {name: tuple(head for head in range(num_heads[name]) if head not in kept[name]) for name in kept}
        return cls({name: heads for name, heads in gone.items() if heads}, dict(num_heads))

    def apply(self, model: nn.Module, optimizers: Iterable[Optimizer] = ()) -> None:
        """Remove the heads from a model and from the optimizers that hold its parameters, either all or none.

        The model may be in a wrapper (PEFT's, a LightningModule), or may have been in one when the plan was made.

        Raises:
            ConfigurationError: the plan is for another model, or one of its heads was already removed.
        """
        heads = HeadMap.of(model)
        Surgery(heads, self.named_as_in(heads).heads, optimizers).apply()
        save_beside_adapters(model)

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON. An existing file is replaced only once the new one is complete."""
        content = {"format": _FORMAT, "num_heads": dict(self.num_heads)}
        content["heads"] = {site: list(heads) for site, heads in self.heads.items()}
        with replaced_file(path) as stream:
            stream.write(json.dumps(content, indent=2).encode())

    @classmethod
    def load(cls, path: str | Path) -> "PruningPlan":
        """Read a file written by `save`.

        Raises:
            ConfigurationError: the file is not a plan, or is damaged.
        """
        try:
            content = read_json(path)
            if content["format"] != _FORMAT:
                raise ConfigurationError(f"`path`: {str(path)!r} has format {content['format']}, expected {_FORMAT}.")
            heads = {site: tuple(map(operator.index, heads)) for site, heads in content["heads"].items()}
            num_heads = {site: operator.index(number) for site, number in content["num_heads"].items()}
        except UnreadableFileError as error:
            raise ConfigurationError(f"`path`: {str(path)!r} {error}; pass a file of `PruningPlan.save`.") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigurationError(f"`path`: {str(path)!r} is not a saved pruning plan ({error!r}).") from None
        for site, gone in heads.items():
            number = num_heads.get(site, 0)
            if len({*gone}) < len(gone) or not all(0 <= head < number for head in gone):
                raise ConfigurationError(
                    f"`path`: {str(path)!r} is damaged: its heads of {site!r} must be distinct numbers from 0 to "
                    f"{number - 1}, got {list(gone)!s:.80}."
                )
        return cls(heads, num_heads)

    def _repr_html_(self) -> str:
        return as_html(str(self))

    def __str__(self) -> str:
        width = max([len("site"), *map(len, self.num_heads)])
        rows = [
            (site, number, len(self.heads.get(site, ())), _ranges(self.heads.get(site, ())))
            for site, number in self.num_heads.items()
        ]
        rows.append(("all", self.num_unpruned, self.num_removed, f"{self.num_removed / max(self.num_unpruned, 1):.0%}"))
        lines = [f"{site:<{width}}  {number:>5}  {gone:>7}  {which}" for site, number, gone, which in rows]
        return "\n".join([f"{'site':<{width}}  heads  removed  which", *lines])

    def named_as_in(self, model: nn.Module | HeadMap) -> "PruningPlan":
        """Return the plan with the names of its sites in this model, which may be in a wrapper or not.

        Raises:
            ConfigurationError: the plan is for another model.
        """
        has = HeadMap.of(model).num_heads
        names = aligned(self.num_heads, has) if self.heads.keys() <= self.num_heads.keys() else None
        if names is None:
            raise ConfigurationError(
                f"this plan, for {', '.join(self.heads) or 'no site'}, is for a model with the heads "
                f"{dict(self.num_heads)}; `model` has {has}."
            )
        return PruningPlan({names[site]: heads for site, heads in self.heads.items()}, has)

    def __add__(self, later: "PruningPlan") -> "PruningPlan":
        """Return the plan that removes the heads of both plans."""
        both = {
            site: tuple(sorted({*self.heads.get(site, ()), *later.heads.get(site, ())})) for site in later.num_heads
        }
        return PruningPlan({site: heads for site, heads in both.items() if heads}, later.num_heads)


def prune_heads(model: nn.Module, heads: HeadsBySite, *, optimizers: Iterable[Optimizer] = ()) -> PruningPlan:
    """Remove attention heads from a model and from the optimizers that train it, either all or none.

    Weights, biases, config and attributes are cut, so that the model is smaller and faster from the next step on.
    New, smaller parameters replace the old ones, also in the optimizers, which keep the state of the remaining
    entries. Outputs equal those of the model with the heads' columns of the output projection set to zero.

    Args:
        model: any module that contains attention with a known layout; a `ModelFamily` describes other layouts.
        heads: query heads by site (as in a recorder's coverage) or by layer, counted over the model's sites; numbered
            as in the unpruned model, even if some are already removed.
        optimizers: all optimizers that hold parameters of the model. An omitted one would train the old parameters.

    Returns:
        The heads that this call removed.

    Raises:
        ConfigurationError: a site or head does not exist, a head was already removed, all heads of the model would
            go, groups in grouped-query attention would differ in size, or an optimizer belongs to another model.
            Nothing was changed.

    Example:
        >>> from torch import nn
        >>> layer = nn.TransformerEncoderLayer(d_model=32, nhead=4, batch_first=True)
        >>> print(prune_heads(layer, {"self_attn": [0, 3]}))
        site       heads  removed  which
        self_attn      4        2  0, 3
        all            4        2  50%
    """
    surgery = Surgery(found := HeadMap.of(model), heads, optimizers)
    surgery.apply()
    save_beside_adapters(model)
    return PruningPlan(surgery.removed, found.num_heads)


def save_beside_adapters(model: nn.Module) -> None:
    """Let PEFT's `save_pretrained` of a pruned model write the plan beside the adapters, whose files do not hold it.

    Args:
        model: model with adapters, or a module that contains some; other models are left unchanged.
    """
    for module in model.modules():
        is_ours = isinstance(vars(module).get("save_pretrained"), _SavePretrained)
        if hasattr(module, "peft_config") and hasattr(type(module), "save_pretrained") and not is_ours:
            put(module, attributes={"save_pretrained": _SavePretrained(module)})


class _SavePretrained:
    """Replacement for a model's `save_pretrained` that also writes which heads were removed."""

    def __init__(self, module: nn.Module):
        self._module = weakref.ref(module)

    def __call__(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> Any:
        module: Any = self._module()
        result = type(module).save_pretrained(module, save_directory, *args, **kwargs)
        plan = PruningPlan.of(module)
        adapters = getattr(module, "peft_config", ())  # absent once the adapters are merged
        for folder in (Path(save_directory), *(Path(save_directory, name) for name in adapters)):
            if plan.heads and (folder / "adapter_config.json").is_file():
                plan.save(folder / PLAN_FILE)
        return result


def _ranges(heads: Sequence[int]) -> str:
    """Format the numbers as text such as `0, 3-5, 7`."""
    parts: list[list[int]] = []
    for head in sorted(heads):
        if parts and head == parts[-1][-1] + 1:
            parts[-1].append(head)
        else:
            parts.append([head])
    shown = [f"{part[0]}-{part[-1]}" if len(part) > 2 else ", ".join(map(str, part)) for part in parts]
    return ", ".join(shown) or "–"
