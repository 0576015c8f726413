"""Forward passes of a model in which the layers of one stack get only the kept tokens."""

import contextlib
import inspect
import threading
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from attnwatch.capture import in_backward
from attnwatch.errors import ConfigurationError
from attnwatch.tokens.call import ModelCall
from attnwatch.tokens.choice import choose
from attnwatch.tokens.chooser import TokenChooser
from attnwatch.tokens.route import Route
from attnwatch.tokens.stacks import Stack
from attnwatch.utils.interception import Run, intercept, is_intercepted, without_wrappers
from attnwatch.utils.messages import WarnOnce


class _Forward(threading.local):
    """Current forward pass of a thread; other threads may run the same model at the same time."""

    def __init__(self, stack: Stack):
        self.model_call = ModelCall(stack)
        self.route: Route | None = None


class RoutedForwards:
    """Forward passes of a model in which some layers of a stack compute only the kept tokens.

    Args:
        stack: stack of layers and the model around it.
        layers: layers of the stack in which tokens are dropped.
        chooser: chooser of the tokens to keep.
        drop_in_evaluation: True to always drop tokens, and never let them rejoin.
    """

    def __init__(self, stack: Stack, layers: tuple[nn.Module, ...], chooser: TokenChooser, *, drop_in_evaluation: bool):
        self._stack, self._layers = stack, layers
        self._names = [list(_parameters(layer)) for layer in layers]
        self._chooser = chooser
        self._drop_in_evaluation = drop_in_evaluation
        self._warn_once = WarnOnce()
        self._now = _Forward(stack)
        self._attached = contextlib.ExitStack()

    def attach(self) -> None:
        """Intercept the calls of the layers and of the models around them.

        Raises:
            ConfigurationError: another dropper is attached.
        """
        if any(map(is_intercepted, self._stack.layers)):
            raise ConfigurationError(
                f"`model`: another TokenDropper is attached to {self._stack.name!r}; detach it first."
            )
        with contextlib.ExitStack() as attached:
            for index, layer in enumerate(self._layers):
                attached.callback(intercept(layer, partial(self._call_layer, index)))
            for module in self._stack.entries:
                attached.callback(intercept(module, partial(self._call_model, module)))
            attached.enter_context(self._chooser.scoring.observed(self._is_dropping, self._chooser.generator))
            self._attached = attached.pop_all()

    def detach(self) -> None:
        """Restore the original state. May be called twice."""
        self._attached.close()

    def _call_model(self, module: nn.Module, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one of the models around the stack. The outermost call provides the information about the tokens."""
        is_outermost = self._now.model_call.arguments is None
        if not is_outermost and kwargs.get("output_hidden_states"):
            self._now.model_call.reads_between = True
        if not is_outermost or not self._is_on(module):
            return run(*args, **kwargs)
        given = {**dict(zip(_parameters(module), args, strict=False)), **kwargs}
        self._now.model_call, self._now.route = ModelCall(self._stack, given), None
        try:
            output = run(*args, **kwargs)
            self._check_route_has_ended()
            if module.training and not torch.compiler.is_compiling():
                self._learn(module, given, output)
            return output
        finally:
            self._now.model_call, self._now.route = ModelCall(self._stack), None

    def _check_route_has_ended(self) -> None:
        if self._now.route is not None:
            raise ConfigurationError(
                "`model`: a layer in which tokens are dropped was skipped, so the dropped tokens never rejoined; "
                "disable layer skipping (layerdrop), or choose `first_layer` and `last_layer` to exclude it."
            )

    def _learn(self, module: nn.Module, given: Mapping[str, Any], output: Any) -> None:
        try:
            self._chooser.scoring.learn(module, given, output, self._chooser.generator())
        except Exception as error:  # training must continue
            criterion = self._chooser.scoring.name
            self._warn_once(f"the criterion {criterion!r} can't learn from this model: {type(error).__name__}: {error}")

    def _is_on(self, module: nn.Module) -> bool:
        return self._drop_in_evaluation or (module.training and torch.is_grad_enabled())

    def _is_dropping(self) -> bool:
        return self._chooser.keep_ratio < 1 and (self._drop_in_evaluation or self._layers[0].training)

    def _call_layer(self, index: int, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one of the layers in which tokens are dropped."""
        layer, names = self._layers[index], self._names[index]
        if not torch.compiler.is_compiling() and in_backward() and self._chooser.keep_ratio < 1 and self._is_on(layer):
            raise ConfigurationError(
                "activation checkpointing around the calls of the layers runs them again in the backward pass, where "
                "the same tokens can't be chosen; use the checkpointing of transformers, or torch's checkpoint_wrapper."
            )
        if index == 0 and self._now.route is None:
            self._now.route = self._begin(layer, {**dict(zip(names, args, strict=False)), **kwargs})
        route = self._now.route
        if route is None:
            return run(*args, **kwargs)
        if route.num_layers != index:
            self._now.route = None
            raise ConfigurationError(
                "`model`: one of the layers in which tokens are dropped was skipped or ran twice; each must run once, "
                "in order."
            )
        try:
            output = route.through(layer, names, run, args, kwargs)
        except Exception:  # the forward pass may be retried
            self._now.route = None
            raise
        if index < len(self._layers) - 1:
            return output
        self._now.route = None
        if self._drop_in_evaluation:
            return output
        return route.rejoin(output, batch_first=self._stack.layout.is_batch_first(layer))

    def _begin(self, layer: nn.Module, to_layer: Mapping[str, Any]) -> Route | None:
        """Return the route of a forward pass; None if all tokens are computed."""
        if not self._is_on(layer):
            return None
        layout, call = self._stack.layout, self._now.model_call
        states = to_layer[layout.states]
        if states.is_nested or states.ndim != 3:
            self._warn_once(
                "all tokens are computed when the hidden states are not a tensor [batch, tokens, features]."
            )
            return None
        if not layout.is_batch_first(layer):
            states = states.transpose(0, 1)
        number = num_tokens = states.shape[1]
        if self._chooser.keep_ratio < 1:
            number = self._chooser.num_kept(num_tokens, call.why_all(to_layer, num_tokens))
        kept = choose(self._chooser.number, states, number, call.known(to_layer))
        return None if number == num_tokens else Route(layout, kept, states)


def _parameters(module: nn.Module) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a module's forward by name, in order."""
    return inspect.signature(without_wrappers(module).forward).parameters
