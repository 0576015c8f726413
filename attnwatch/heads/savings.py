"""Savings by head pruning, computed from shapes."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from attnwatch.heads.head_map import HeadMap
from attnwatch.heads.plan import PruningPlan
from attnwatch.heads.site import HeadSite
from attnwatch.utils.arguments import require_int


@dataclass(frozen=True)
class Savings:
    """Savings of a plan at one sequence length. Prints as a sentence.

    Attributes:
        num_tokens: length of the sequence.
        parameters, parameters_after: number of parameters of the whole model.
        flops, flops_after: FLOPs of one forward pass per token: 2 per weight of a matrix, and
            4 · tokens · features of the heads for attention itself (causal or not).
        attention_share: share of `flops` in attention including its projections: the f in `speed_ceiling`.
        speed_ceiling: upper bound of the speedup of a step, 1 / (1 - s·f), where s is the share of attention removed.
    """

    num_tokens: int
    parameters: int
    parameters_after: int
    flops: float
    flops_after: float
    attention_share: float
    speed_ceiling: float

    def __str__(self) -> str:
        return (
            f"{self.parameters:,} to {self.parameters_after:,} parameters "
            f"({self.parameters_after / self.parameters - 1:+.1%}); at {self.num_tokens} tokens "
            f"{self.flops_after / self.flops - 1:+.1%} FLOPs per forward, {self.attention_share:.0%} of them in "
            f"attention: at most {self.speed_ceiling:.2f} times as fast"
        )


def savings(model: nn.Module, plan: PruningPlan, *, num_tokens: int) -> Savings:
    """Compute the savings of `plan.apply(model)`. The model is not changed.

    Args:
        model: model in its current state; heads removed earlier do not count.
        plan: heads to remove.
        num_tokens: sequence length.

    Raises:
        ConfigurationError: the plan is for another model.

    Example:
        >>> from torch import nn
        >>> layer = nn.TransformerEncoderLayer(d_model=32, nhead=4, dim_feedforward=64)
        >>> plan = PruningPlan({"self_attn": (0, 1)}, {"self_attn": 4})
        >>> print(savings(layer, plan, num_tokens=128))
        8,544 to 6,448 parameters (-24.5%); at 128 tokens -37.5% FLOPs per forward, 75% of them in attention: \
at most 1.60 times as fast
    """
    require_int("num_tokens", num_tokens, minimum=1)
    heads = HeadMap.of(model)
    sites = heads.sites
    plan = plan.named_as_in(heads)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    attention = {name: _cost(site, site.kept, num_tokens) for name, site in sites.items()}
    flops = 2 * _matrix_weights(model) + sum(4 * num_tokens * site.num_heads * site.head_dim for site in sites.values())
    gone_parameters = gone_flops = 0
    for name, gone in plan.heads.items():
        kept = [head for head in sites[name].kept if head not in gone]
        parameters_after, flops_after = _cost(sites[name], kept, num_tokens)
        gone_parameters += attention[name][0] - parameters_after
        gone_flops += attention[name][1] - flops_after
    return Savings(
        num_tokens,
        parameters,
        parameters - gone_parameters,
        flops,
        flops - gone_flops,
        sum(of_site for _, of_site in attention.values()) / flops,
        flops / (flops - gone_flops),
    )


def _cost(site: HeadSite, kept: Sequence[int], num_tokens: int) -> tuple[int, int]:
    """Return the number of a site's head parameters and its FLOPs per token, if only these heads stay."""
    cuts, _ = site.keep(kept)
    sizes = [(cut.parameter.numel() // max(cut.parameter.shape[cut.dim], 1) * len(cut.kept), cut) for cut in cuts]
    weights = sum(size for size, cut in sizes if cut.parameter.ndim == 2)
    return sum(size for size, _ in sizes), 2 * weights + 4 * num_tokens * len(kept) * site.head_dim


def _matrix_weights(model: nn.Module) -> int:
    """Count the elements of all matrices that tokens are multiplied with; embeddings are only looked up."""
    return sum(
        parameter.numel()
        for module in model.modules()
        if not isinstance(module, nn.Embedding)
        for parameter in module._parameters.values()
        if parameter is not None and parameter.ndim == 2
    )
