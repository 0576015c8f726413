"""Forward passes that repeat a recorded one with one thing changed."""

import contextlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from attnwatch.capture import undisturbed
from attnwatch.checkup.attention_scale import AttentionScale
from attnwatch.checkup.containers import tensors_in
from attnwatch.checkup.embeddings import changed_embeddings
from attnwatch.checkup.forward import CannotCheck, RecordedForward, is_encoder_decoder, known
from attnwatch.checkup.function_calls import FunctionCalls
from attnwatch.checkup.scales import attention_scales
from attnwatch.checkup.sequences import changed_sequences, first_sequences
from attnwatch.checkup.tokens import tokens_of
from attnwatch.utils.processes import without_communication

MOST_SEQUENCES = 4
"""Maximum number of sequences in a repeated forward pass."""
# Names of outputs with one entry per token or sequence, in order of preference.
_OUTPUTS = ("logits", "last_hidden_state", "prediction_logits", "start_logits")
# Arguments that a forward pass changes in place, so that a second pass would see the changes of the first.
_CACHES = ("past_key_values", "past_key_value", "cache_params", "encoder_outputs")


class CannotRepeat(CannotCheck):
    """Exception raised if the forward pass can't be repeated, now or later."""


class Repeats:
    """Forward passes that repeat a recorded one with one thing changed, in eval mode and without gradients.

    Args:
        forward: forward pass to repeat, with only its first sequences.

    Raises:
        CannotCheck: the forward pass can't be repeated.
    """

    def __init__(self, forward: RecordedForward):
        if forward.changes:
            raise CannotCheck(f"the forward pass changes {forward.changes}, so repeating it would have side effects")
        self._forward = forward
        held = [name for name in _CACHES if forward.arguments.get(name) is not None]
        if held:
            raise CannotCheck(f"the model received `{held[0]}`, which its forward pass changes")
        size = forward.num_sequences
        # Tensors [tokens, batch], [tokens, tokens] and [batch, tokens] would have to be cut along different axes.
        self.num_sequences = size if forward.has_tokens_first else min(size, MOST_SEQUENCES)
        with undisturbed(forward.module):  # classes of batches may draw random numbers
            self.arguments: dict[str, Any] = first_sequences(dict(forward.arguments), size, self.num_sequences)
        self._has_decoder = is_encoder_decoder(forward.module)
        self._length = known(lambda: tokens_of(forward).length, 0)
        axis = int(not forward.has_tokens_first)
        self._lengths = {value.shape[axis] for _, value in tensors_in(self.arguments) if value.ndim >= 2}

    def output(self, **changes: Any) -> Tensor:
        """Return the output with these arguments changed, float32 [batch, …].

        Raises:
            CannotCheck: the forward pass fails, or returns no tensor with one entry per sequence.
        """
        return self._output(changes)

    def output_with_embeddings_changed(self, ids: Tensor, where: Tensor) -> Tensor:
        """Return the output with some tokens embedded as others. Ids are kept, because the model may read them.

        Args:
            ids: token ids that the model receives, int [batch, tokens].
            where: tokens to embed as others, bool [batch, tokens].

        Raises:
            CannotCheck: see `output`; or the ids are not embedded by a torch.nn.Embedding.
        """
        with changed_embeddings(self._forward.module, ids, where) as changed:
            output = self.output()
        if not changed:
            raise CannotCheck("the tokens are not embedded by a torch.nn.Embedding")
        return output

    def output_of_reversed_batch(self, **changes: Any) -> Tensor:
        """Return the output with these arguments changed and the sequences in reverse order, put back in their order.

        Raises:
            CannotCheck: see `output`; or an argument may refer to the sequences of the batch in another way than by its
                first axis.
        """
        if self._forward.has_tokens_first or self.num_sequences in (1, self._length):
            raise CannotCheck("the sequences of the batch can't be told from its tokens")
        odd = [name for name, value in self.arguments.items() if not self._is_reversible(value)]
        if odd:
            raise CannotCheck(f"`{odd[0]}` may refer to the sequences of the batch by other means than its first axis")
        return self.output(**self._changed(lambda tensor: tensor.flip(0), **changes)).flip(0)

    def output_of_copies(self) -> Tensor:
        """Return the output for the first sequence in all places of the batch.

        Raises:
            CannotCheck: see `output`; or the model keeps a tensor with an entry for each sequence.
        """
        for name, part in self._forward.module.named_modules():
            held = {key: value for key, value in vars(part).items() if not key.startswith("_")}
            for attribute, value in {**held, **dict(part.named_buffers(recurse=False))}.items():
                if any(self.num_sequences in tensor.shape[:2] for _, tensor in tensors_in(value)):
                    raise CannotCheck(f"{f'{name}.{attribute}'.lstrip('.')} may be memory of each sequence")
        return self.output(**self._changed(lambda tensor: tensor[:1].expand_as(tensor)))

    def _changed(self, change: Callable[[Tensor], Tensor], **changes: Any) -> dict[str, Any]:
        """Return the arguments with these changes, and with a function applied to each tensor [sequences, …]."""
        arguments: dict[str, Any] = changed_sequences({**self.arguments, **changes}, self.num_sequences, change)
        return arguments

    def _is_reversible(self, value: Any) -> bool:
        """Return whether an argument has an entry for each sequence on its first axis, or none at all."""
        if isinstance(value, list | tuple) and len(value) == self.num_sequences:
            return False
        sizes = [tensor.shape for _, tensor in tensors_in(value) if tensor.ndim]
        return all(size[0] in (1, self.num_sequences) or {*size} <= {1, self._length} for size in sizes)

    @property
    def is_random(self) -> bool:
        """True if the output changes with the state of the random numbers.

        Raises:
            CannotCheck: see `output`.
        """
        return not torch.equal(self._output({}, seed=1), self.unchanged)

    def depends_on(self, modules: Iterable[nn.Module]) -> bool:
        """Return whether the output changes if each of these modules returns its features in reverse order.

        Raises:
            CannotCheck: see `output`.
        """
        with contextlib.ExitStack() as stack:
            for module in modules:
                stack.callback(module.register_forward_hook(_reversed_features).remove)
            output = self.output()
        return not torch.equal(output, self.unchanged)

    @property
    def unchanged(self) -> Tensor:
        """Output of the forward pass without changes, computed once."""
        return self._unchanged[0]

    @property
    def scales(self) -> Mapping[str, AttentionScale]:
        """Scales of the attention calls in the unchanged forward pass, by site name in the model."""
        return self._unchanged[1]

    @property
    def read(self) -> Sequence[nn.Parameter]:
        """Parameters that the unchanged forward pass reads as numbers, as by `item()`."""
        return self._unchanged[2]

    @cached_property
    def _unchanged(self) -> tuple[Tensor, Mapping[str, AttentionScale], Sequence[nn.Parameter]]:
        scales: dict[str, AttentionScale] = {}
        calls = FunctionCalls()
        output = self._output({}, calls, watching=attention_scales(self._forward.module, scales))
        prefix = f"{self._forward.name}." if self._forward.name else ""
        return output, {f"{prefix}{site}": scale for site, scale in scales.items()}, calls.read

    def _output(
        self,
        changes: Mapping[str, Any],
        calls: FunctionCalls | None = None,
        *,
        watching: contextlib.AbstractContextManager[None] | None = None,
        seed: int = 0,
    ) -> Tensor:
        calls = FunctionCalls() if calls is None else calls
        try:
            with (
                undisturbed(self._forward.module, seed=seed),
                watching or contextlib.nullcontext(),
                calls,
                without_communication(),
            ):
                output = self._forward.repeat({**self.arguments, **changes})
        except Exception as error:
            raise CannotRepeat(f"the forward pass can't be repeated: {type(error).__name__}: {error}") from error
        output = _main_output(self._arranged(output, calls.logits), self.num_sequences, _similarities(self._forward))
        return output.float()

    def _arranged(self, output: Any, logits: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the outputs with a gradient as [batch, …] or [batch, tokens, …]; if none fits, the logits of the loss.

        Args:
            output: output of the model.
            logits: logits that the model passed to cross-entropy.
        """
        named = dict(tensors_in(output))
        if self._forward.with_gradient & named.keys():
            named = {name: each for name, each in named.items() if name in self._forward.with_gradient}
        arranged = {name: self._by_sequence(each) for name, each in named.items()}
        fitting = [each for each in arranged.values() if each.ndim and len(each) == self.num_sequences]
        if any(each.ndim > 1 for each in fitting) or (fitting and not logits):
            return arranged
        return {str(number): self._by_sequence(each) for number, each in enumerate(logits)}

    def _by_sequence(self, tensor: Tensor) -> Tensor:
        """Return a tensor that is sequence-first, flattened, or lacks the last token as [batch, tokens, …]."""
        length, number = self._length, self.num_sequences
        axes = (-1, number) if self._forward.has_tokens_first else (number, -1)
        is_flat = tensor.ndim == 2 and length > 1 and len(tensor) in (number * length, number * (length - 1))
        tensor = tensor.unflatten(0, axes) if is_flat else tensor
        if self._forward.has_tokens_first and tensor.ndim > 1 and tensor.shape[1] == number:
            tensor = tensor.transpose(0, 1)
        is_short = tensor.ndim == 3 and tensor.shape[:2] == (number, length - 1) and length - 1 not in self._lengths
        return torch.nn.functional.pad(tensor, (0, 0, 0, 1)) if is_short else tensor


def _reversed_features(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """Return the first tensor of a module's output with its features in reverse order, and the rest as it is."""
    if type(output) is tuple and output:
        return _reversed_features(module, args, output[0]), *output[1:]
    return output.flip(-1) if isinstance(output, Tensor) and output.ndim else output


def _similarities(forward: RecordedForward) -> frozenset[str]:
    """Return the names of outputs [batch, batch] that compare sequences with one another; none for small batches."""
    size = forward.num_sequences
    if size <= MOST_SEQUENCES:
        return frozenset()
    return frozenset(name for name, shape in forward.shapes.items() if shape == (size, size))


def _main_output(outputs: Mapping[str, Tensor], num_sequences: int, similarities: Collection[str]) -> Tensor:
    """Return the output with one entry per sequence or token, by name or as the first with the most dimensions."""
    numbers = {name: each[:, None] if each.ndim == 1 else each for name, each in outputs.items()}
    fitting = {
        name: tensor
        for name, tensor in numbers.items()
        if tensor.ndim >= 2 and len(tensor) == num_sequences and tensor.is_floating_point()
        if name not in similarities or tensor.shape != (num_sequences, num_sequences)
    }
    if not fitting:
        raise CannotRepeat("the model returns no floating-point tensor [batch, …], such as logits")
    by_name = [fitting[name] for name in _OUTPUTS if name in fitting]
    return (by_name or sorted(fitting.values(), key=lambda tensor: -min(tensor.ndim, 3)))[0]
