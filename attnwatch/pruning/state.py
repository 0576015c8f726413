"""State dicts of pruned models, which resize the model that they are loaded into."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from attnwatch.capture import KEPT_HEADS, UNPRUNED_HEADS
from attnwatch.hooks import put
from attnwatch.pruning.heads import HeadSite, head_sites
from attnwatch.pruning.projections import features_of
from attnwatch.pruning.surgery import Surgery, attribute_swaps, replaced_parameter


def accept_pruned_state(model: nn.Module) -> RemovableHandle:
    """Let `model.load_state_dict` take the state of a pruned model: the model gets the heads that the state has.

    In a LightningModule's `__init__` it makes `load_from_checkpoint` work:

    ```python
    class Classifier(LightningModule):
        def __init__(self):
            super().__init__()
            self.model = AutoModel.from_pretrained(...)
            attnwatch.accept_pruned_state(self)
    ```

    Heads that the model does not have come back, as in `trainer.test(ckpt_path="best")` of a checkpoint from before a
    cut. Load before optimizers are made: they would hold parameters that are replaced.

    Deep copies of the model take such states too. A pickle of it does not, so that it loads without attnwatch.

    Returns:
        A handle whose `remove()` ends it.
    """
    handle = model.register_load_state_dict_pre_hook(_resize)
    put(model, handles=[handle], again=accept_pruned_state)
    return handle


def _resize(model: nn.Module, state: Mapping[str, Any], prefix: str, *_: object) -> None:
    paths = {id(module): path for path, module in model.named_modules()}
    removed = {}
    for name, site in head_sites(model)[0].items():
        at = ".".join(filter(None, (prefix.rstrip("."), paths[id(site.module)])))
        heads = _heads_in_state(site, state, at)
        if set(heads) <= set(site.kept):
            removed[name] = [head for head in site.kept if head not in heads]
        else:
            _grow(site, heads, state, at)
    if any(removed.values()):
        Surgery(model, removed).apply()


def _heads_in_state(site: HeadSite, state: Mapping[str, Any], path: str) -> Sequence[int]:
    """Those of the site's heads that a state dict has; all that the site has where it says nothing of them."""
    at = f"{path}." if path else ""
    if f"{at}{KEPT_HEADS}" in state:
        return state[f"{at}{KEPT_HEADS}"].round().long().tolist()
    is_other = any(
        f"{at}{name}" in state and state[f"{at}{name}"].shape != parameter.shape
        for name, parameter in site.module.named_parameters()
    )
    return range(site.num_unpruned_heads) if is_other else site.kept


def _grow(site: HeadSite, heads: Sequence[int], state: Mapping[str, Any], path: str) -> None:
    """Room for these heads; their values are what is loaded next."""
    outside = site.layout.output.removeprefix("../")
    roots = [(path, site.module)]
    if site.is_output_outside:
        roots.append((".".join(filter(None, (path.rpartition(".")[0], outside))), site.projection))
    for at, root in roots:
        for within, module in root.named_modules():
            for name, old in module._parameters.items():
                value = state.get(".".join(filter(None, (at, within, name))))
                if old is not None and value is not None and value.shape != old.shape:
                    module._parameters[name] = replaced_parameter(old, old.detach().new_zeros(value.shape))
            if "weight" in module._parameters and module.weight is not None:
                vars(module).update(features_of(module))
    for adapter in site.adapters:
        vars(adapter).update(features_of(adapter))
    num_key_value_heads = site.count_key_value_heads(len(heads))
    for swap in attribute_swaps(site, list(heads), num_key_value_heads):
        swap.apply()
    if len(heads) == site.num_unpruned_heads:
        del site.module._buffers[KEPT_HEADS], vars(site.module)[UNPRUNED_HEADS]
