"""Faults of the user's input, one exception a kind. Each message says what was asked, what there is, what to do."""

from __future__ import annotations


class InputError(ValueError):
    """Something asked for cannot be done as asked; nothing was started and nothing written."""


class ConfigError(InputError):
    """A configuration that does not compose, or a value its part refuses. Names the key and the value."""


class OriginError(InputError):
    """The code of one run lies in more than one place."""


class RunFailed(RuntimeError):
    """A run that had started and did not come to its end; its folder holds what there is."""


class Interrupted(Exception):
    """Ctrl-C during a run; the message says how to continue."""
