"""Federated learning for clients that are not alike: one choice per axis, composed, on Flower.

Importing this package is light (neither torch nor Flower) and makes `strategies` and `clients`, which lie beside it,
importable too. `fedhet.Method`, `fedhet.Experiment` and `fedhet.Limits` are loaded when they are asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fedhet import former_names
from fedhet.provenance import source_tree

if TYPE_CHECKING:
    from fedhet.engine.method import Method, Misfit
    from fedhet.engine.stopping import Limits
    from fedhet.runs.experiment import Experiment
    from fedhet.runs.result import Result

__version__ = "0.1.0"
__all__ = ["Experiment", "Limits", "Method", "Misfit", "Result", "__version__"]

_HOMES = {
    "Experiment": "runs.experiment",
    "Limits": "engine.stopping",
    "Method": "engine.method",
    "Misfit": "engine.method",
    "Result": "runs.result",
}

source_tree.on_path()
former_names.install()


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"fedhet.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'fedhet' has no attribute {name!r}")
