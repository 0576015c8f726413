"""`torch.nn.functional.scaled_dot_product_attention`."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import has_torch_function

from attnwatch.attention import AttentionInputs
from attnwatch.capture import function_mode
from attnwatch.capture.call_owners import Args, Kwargs, hooked, owner_of
from attnwatch.capture.calls.base import FunctionCall
from attnwatch.capture.code_names import CodeNames
from attnwatch.capture.delivery import CallInputs, deliver, is_armed, site_id
from attnwatch.capture.forward_pass import in_backward
from attnwatch.capture.patching import shared_patch
from attnwatch.capture.sites import Site
from attnwatch.capture.tensor_subclasses import SDPA, call_of_subclasses, patch_biases
from attnwatch.plugins import register

if TYPE_CHECKING:
    from attnwatch.capture.capture import Capture


@register
class ScaledDotProductAttention(FunctionCall):
    """Modules that call torch's fused attention."""

    name = "sdpa"
    paths = ("torch.nn.functional.scaled_dot_product_attention",)
    unobserved = (torch.ops.aten.scaled_dot_product_attention, torch.ops.aten.scaled_dot_product_attention.default)

    @property
    def function(self) -> Callable[..., Tensor]:
        """The function itself, even while other code has patched it."""
        return SDPA

    def read(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> CallInputs:
        if query.ndim != 4:
            return (
                f"query has {query.ndim} dimensions, so its heads can't be told apart; "
                "call scaled_dot_product_attention with [batch, heads, tokens, head_dim]"
            )
        if attn_mask is not None and type(attn_mask) is not Tensor:
            attn_mask = _with_values(attn_mask, query.device)
        return AttentionInputs(query, key, attn_mask=attn_mask, is_causal=is_causal, scale=scale)

    def compute(self, original: Callable[..., Any], args: Args, kwargs: Kwargs) -> Any:
        if has_torch_function((*args, *kwargs.values())):
            return call_of_subclasses(partial(original, *args, **kwargs), args, kwargs)
        return original(*args, **kwargs)

    def why_unreadable(self, code: CodeNames) -> str:
        """See `AttentionCall.why_unreadable`; this covers the operator below the function."""
        if not {"aten", self.title} <= code.names and not any(map(code.refers_to, self.unobserved)):
            return ""
        return f"calls torch.ops.aten.{self.title} directly; use torch.nn.functional.{self.title} to have it observed"

    def why_silent(self, site: Site) -> str:
        """See `AttentionCall.why_silent`. A function mode sees held references."""
        reason = self.why_unreadable(site.code)
        return reason and f"its forward {reason}"

    @contextlib.contextmanager
    def watched(self, sites: Sequence[Site]) -> Iterator[None]:
        """See `AttentionCall.watched`. A function mode in the site's forward sees references that can't be patched."""
        hidden = [site.module for site in sites if site.code.holds(SDPA)]
        with super().watched(sites), contextlib.ExitStack() as patches:
            for module in hidden:
                if not function_mode.changes_path(module):
                    patches.enter_context(hooked(module, self._begin_to_see, self._end_to_see))
            if hidden:
                patches.enter_context(shared_patch("torch.nn.attention.bias", patch_biases))
            yield

    @contextlib.contextmanager
    def discovering(self, model: nn.Module, finder: "Capture") -> Iterator[None]:
        if function_mode.changes_path(model):
            yield
            return
        function_mode.begin(finder, SDPA, self._call_by_reference)
        try:
            yield
        finally:
            function_mode.end(finder)

    def _call_by_reference(self, *args: Any, **kwargs: Any) -> Any:
        """Handle a call that came through a reference other than the patched names."""
        entry = owner_of(self, by_name=False)
        if entry is not None and entry.number is not None:
            deliver(entry.number, self.read_call, entry, args, kwargs)
        return call_of_subclasses(partial(SDPA, *args, **kwargs), args, kwargs)

    def _begin_to_see(self, module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        if not torch.compiler.is_compiling() and not in_backward() and is_armed(site_id(module)):
            function_mode.begin(module, SDPA, self._call_by_reference)

    def _end_to_see(self, module: nn.Module, args: Args, output: object) -> None:
        if not torch.compiler.is_compiling() and not in_backward():
            function_mode.end(module)


def _with_values(mask: Tensor, device: torch.device) -> Tensor:
    """Return torch's own causal masks, whose values are meaningless, as tensors with values."""
    from torch.nn.attention.bias import CausalBias, CausalVariant  # here, because it takes a second

    if not isinstance(mask, CausalBias):
        return mask
    offset = mask.seq_len_kv - mask.seq_len_q if mask.variant is CausalVariant.LOWER_RIGHT else 0
    return torch.ones(mask.seq_len_q, mask.seq_len_kv, dtype=torch.bool, device=device).tril(offset)
