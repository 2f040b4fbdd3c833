"""Plain data are saved and loaded exactly, and other objects are refused."""

import json
import sys
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhet import types
from fedhet.numerics import plain_data
from fedhet.types import Budget, Job

HERE = [sys.modules[__name__], types]
leaf = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
key = st.integers() | st.text() | st.tuples(st.integers(), st.integers())
values = st.recursive(
    leaf,
    lambda inner: (
        st.lists(inner) | st.dictionaries(key, inner) | st.tuples(inner, inner) | st.sets(st.integers())
        | st.lists(inner).map(deque)
    ),
    max_leaves=20,
)  # fmt: skip


@given(values)
def test_round_trip(value):
    back = plain_data.load(json.loads(json.dumps(plain_data.dump(value))), HERE)
    assert back == value and type(back) is type(value)


@dataclass
class Group:
    members: set[int] = field(default_factory=set)
    until: float = 0.0


@dataclass
class Machine:
    groups: dict[int, Group] = field(default_factory=dict)
    last: Job | None = None


def test_nested_records_come_back_as_their_classes():
    machine = Machine({3: Group({1, 2}, float("inf"))}, Job(1, 2, 3, 4, Budget(5), 6.0))
    fresh = Machine()
    plain_data.fill(fresh, json.loads(json.dumps(plain_data.dump(machine))), HERE)
    assert fresh == machine and isinstance(fresh.groups[3], Group)


@pytest.mark.parametrize("value", [object(), lambda: 1, {"a": object()}, [open]])
def test_what_is_not_plain_is_refused(value):
    with pytest.raises(TypeError, match="plain data"):
        plain_data.dump(value)


def test_a_class_from_elsewhere_is_not_built():
    with pytest.raises(ValueError, match="Popen"):
        plain_data.load({"$": "Popen", "of": {"args": "true"}}, HERE)
    with pytest.raises(ValueError, match="Machine"):
        plain_data.fill(Group(), plain_data.dump(Machine()), HERE)
