"""Federated learning for clients that are not alike: one choice per axis, composed, on Flower.

Importing this package is light (neither torch nor Flower) and makes `strategies` and `clients`, which lie beside it,
importable too.
"""

from fedhet import origin

__version__ = "0.1.0"

origin.on_path()
