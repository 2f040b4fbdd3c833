"""The identity layer: override the hooks an idea needs and leave the rest."""

from __future__ import annotations

from typing import ClassVar

from fedhet.numerics.tree import Schema
from fedhet.protocols import View
from fedhet.types import Memory, Tree, Update


class AbstractTransform:
    """A layer that changes nothing."""

    needs: ClassVar[frozenset[str]] = frozenset()
    hides: ClassVar[frozenset[str]] = frozenset()
    notice: ClassVar[str] = ""

    def send(self, update: Update, memory: Memory) -> Update:
        return update

    def wire(self, schema: Schema) -> Schema:
        return schema

    def arrive(self, update: Update, view: View, memory: Memory) -> Update:
        return update

    def finish(self, delta: Tree, view: View, memory: Memory) -> Tree:
        return delta
