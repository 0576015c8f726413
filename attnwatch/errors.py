"""The exceptions and the warning that attnwatch raises, in one tree."""


class AttnwatchError(Exception):
    """Base class: `except AttnwatchError` catches everything that attnwatch raises on purpose."""


class ConfigurationError(AttnwatchError, ValueError):
    """An argument is wrong. The message names it, what was expected, what came and the remedy."""


class NoAttentionError(AttnwatchError, RuntimeError):
    """The model has no attention call that can be observed. The message lists what was found."""


class AttnwatchWarning(UserWarning):
    """Something could not be observed or written; training continues."""
