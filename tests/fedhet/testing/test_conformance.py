"""Wrong plug-ins fail the checks, each by the check that is about its fault and with the value that is wrong."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from clients.data.digits import Digits
from clients.work.sgd import Sgd
from fedhet.bases import AbstractLinearRule, AbstractTransform
from fedhet.engine.stopping import Limits
from fedhet.numerics import tree
from fedhet.numerics.tree import FlatTree, Leaf, Schema
from fedhet.simulation.virtual_time import VirtualTime
from fedhet.testing import conformance
from fedhet.testing.conformance import CHECKS, check_rule
from fedhet.types import Arrived, Assign, Drop, Failed, Joined
from strategies.rules.mean import Mean
from strategies.schedules.fedbuff import FedBuff
from strategies.spaces.full import Full


def failures(kind: str, plugin: Any, *names: str) -> dict[str, str]:
    """Check to what it says of a plug-in, of these checks (all if none is named) that it fails."""
    found = {}
    for name, check in CHECKS[kind].items():
        if names and name not in names:
            continue
        try:
            check(plugin)
        except AssertionError as error:
            found[name] = " ".join(str(error).split())
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


class ByPlace(AbstractLinearRule):
    def coefficients(self, gram, weights, updates, view):
        return np.arange(1.0, len(weights) + 1) / np.arange(1.0, len(weights) + 1).sum()


class Half(AbstractLinearRule):
    def coefficients(self, gram, weights, updates, view):
        return 0.5 * weights / weights.sum()


class Unit(AbstractLinearRule):
    def coefficients(self, gram, weights, updates, view):
        return weights / weights.sum() / np.sqrt(np.trace(gram))


class Sum(AbstractLinearRule):
    def coefficients(self, gram, weights, updates, view):
        return weights / 40


class Scaleless(Mean):
    def __call__(self, updates, space, view):
        return super().__call__([replace(u, scale=1.0) for u in updates], space, view)


class Writes(Mean):
    def __call__(self, updates, space, view):
        answer = super().__call__(updates, space, view)
        for update in updates:
            tree.flatten(update.delta).flat.mul_(0.9)
        return answer


class Short(AbstractLinearRule):
    def coefficients(self, gram, weights, updates, view):
        return np.ones(3)


class Names(Mean):
    def __call__(self, updates, space, view):
        return {f"x.{name}": leaf for name, leaf in super().__call__(updates, space, view).items()}


@pytest.mark.parametrize(
    ("rule", "check", "told", "others"),
    [
        (ByPlace(), "order", "the same updates in another order", {"scale"}),
        (Half(), "agreement", "12 equal updates", set()),
        (Unit(), "length", "updates 0.001 times as long", {"agreement", "scale", "common scale", "extremes"}),
        (Sum(), "weights", "every weight 7 times as large", {"agreement", "extremes"}),
        (Scaleless(), "scale", "updates with a scale", {"common scale"}),
        (Writes(), "repeat", "give another answer at a second time", set(CHECKS["rule"])),
        (Unit(), "extremes", "updates of zeros", set(CHECKS["rule"])),
        (Short(), "order", r"Short: coefficients has shape \(3,\), needs \(12,\)", set(CHECKS["rule"])),
        (Names(), "repeat", "the answer is .*x.weight.* the updates are", set(CHECKS["rule"])),
    ],
)
def test_a_wrong_rule_is_told_what_it_breaks(rule: Any, check: str, told: str, others: set[str]) -> None:
    found = failures("rule", rule)
    assert re.search(told, found[check]), found
    assert set(found) <= {check, *others}, found


def test_all_failures_are_reported_together_and_exceptions_have_a_name() -> None:
    with pytest.raises(AssertionError) as caught:
        check_rule(Unit())
    first, *rest = str(caught.value).splitlines()
    assert "Unit" in first and "checks of a rule" in first and len(rest) > 2
    assert rest[0].strip().startswith("agreement: 12 equal updates: [")
    check_rule(Mean())
    check_rule(Half(), without={"agreement": "halves on purpose"})
    with pytest.raises(ValueError, match=r"no check 'agrement' of a rule \(nearest: agreement\)"):
        check_rule(Half(), without={"agrement": "..."})


@dataclass
class Loses(FedBuff):
    """Forgets every fifth update."""

    seen: int = field(init=False, default=0)

    def react(self, event: Any, view: Any) -> Iterator[Any]:
        self.seen += isinstance(event, Arrived)
        if isinstance(event, Arrived) and self.seen % 5 == 0:
            yield Assign(event.job.client)
        else:
            yield from super().react(event, view)


@dataclass
class Unforgiving(FedBuff):
    """Does not ask the first client again that fails."""

    bad: set[int] = field(init=False, default_factory=set)

    def react(self, event: Any, view: Any) -> Iterator[Any]:
        if isinstance(event, Failed) and not self.bad:
            self.bad.add(event.job.client)
        for command in super().react(event, view):
            if not (isinstance(command, Assign) and command.client in self.bad):
                yield command


@dataclass
class Outside(FedBuff):
    """Counts in a place that nobody saves."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.count = [0]

    def react(self, event: Any, view: Any) -> Iterator[Any]:
        self.count[0] += isinstance(event, Arrived)
        if isinstance(event, Arrived) and self.count[0] % 3 == 0:
            yield Drop((event.job.id,), "third")
            yield from super().react(Joined(event.job.client), view)
        else:
            yield from super().react(event, view)


@pytest.mark.parametrize(
    ("schedule", "check", "told"),
    [
        (Loses(size=3), "accounts", "was neither combined nor dropped"),
        (Unforgiving(size=3), "failures", "failed once and are not asked again"),
        (Outside(size=3), "saved", "if it is saved and loaded after every event"),
    ],
)
def test_a_wrong_schedule_is_told_what_it_breaks(schedule: Any, check: str, told: str) -> None:
    assert told in failures("schedule", schedule, check)[check]


class Normalised(Full):
    """Divides what a device sends by its own length."""

    def decode_delta(self, before, job, delta):
        return tree.scale(delta, 1.0 / float(np.sqrt(tree.squared_norm(delta) or np.nan)))


class Lax(Full):
    """Expects whatever the model has, and one number more."""

    def expects(self, state, job):
        return Schema((*Schema.of(state).leaves, ("more", Leaf((1,), torch.float64))))


class InPlace(Full):
    def merge(self, state, delta):
        tree.flatten(state).flat.add_(tree.flatten(delta).flat)
        return state


class Crooked(Full):
    def gram(self, deltas):
        found = super().gram(deltas)
        found[0, 1] += 0.01
        return found

    def combine(self, deltas, coefficients, scales=None):
        return super().combine(deltas, [abs(c) for c in coefficients], scales)


@pytest.mark.parametrize(
    ("space", "check", "told"),
    [
        (Normalised(), "hostile", "a payload of zeros, which fits `expects`, gives a model with"),
        (Lax(), "merge", "`extract` gives"),
        (InPlace(), "merge", "the state is written to"),
        (Crooked(), "gram", "inner products"),
        (Crooked(), "linear", "the sum with [0.7, -0.4, 0.2, 1.1]"),
    ],
)
def test_a_wrong_space_is_told_what_it_breaks(space: Any, check: str, told: str) -> None:
    assert told in failures("space", space, check).get(check, "nothing")


class Adds(AbstractTransform):
    def finish(self, delta, view, memory):
        return {name: leaf + 1e-3 for name, leaf in delta.items()}


class Loose(AbstractTransform):
    def finish(self, delta, view, memory):
        return {name: 2 * leaf for name, leaf in delta.items()}


class Cast(AbstractTransform):
    def send(self, update, memory):
        return replace(update, delta={name: leaf.half() for name, leaf in update.delta.items()})


class Indexed(AbstractTransform):
    """Sends the largest number and its place."""

    def wire(self, schema):
        return Schema((("value", Leaf((1,))), ("place", Leaf((1,), torch.int64))))

    def send(self, update, memory):
        flat = tree.flatten(update.delta).flat
        place = flat.abs().argmax()[None]
        return replace(update, delta={"value": flat[place], "place": place})

    def arrive(self, update, view, memory):
        flat = torch.zeros(view.space.expects(view.state, update.job).size)
        flat[update.delta["place"]] = update.delta["value"]
        return replace(update, delta=FlatTree(Schema.of(view.state), flat))


class Forgets(AbstractTransform):
    """Remembers in the object."""

    seen: ClassVar[dict[int, torch.Tensor]] = {}

    def send(self, update, memory):
        key = id(memory)
        before = self.seen.get(key)
        self.seen[key] = torch.ones(1)
        return update if before is None else replace(update, delta=tree.scale(update.delta, 0.5))


class Infinite(AbstractTransform):
    def arrive(self, update, view, memory):
        return replace(update, scale=float("inf"))


class Inside(AbstractTransform):
    def finish(self, delta, view, memory):
        tree.flatten(view.state).flat.mul_(0.5)
        return delta


@pytest.mark.parametrize(
    ("transform", "check", "told"),
    [
        (Adds(), "nothing", "all updates are zero, and the step's 0.weight is [[0.001"),
        (Cast(), "wire", "sent: "),
        (Loose(), "wire", "the step is a dict of separate tensors: `tree.flatten` makes one buffer of it"),
        (Indexed(), "hostile", "a payload of large numbers, which fits what `wire` announces: IndexError"),
        (Forgets(), "memory", "has other bits if memories were written to disk"),
        (Infinite(), "finite", "has scale inf"),
        (Inside(), "repeat", "was written to"),
        (AbstractTransform(), "effect", "in 9 versions it changes no step"),
    ],
)
def test_a_wrong_transform_is_told_what_it_breaks(transform: Any, check: str, told: str) -> None:
    assert told in failures("transform", [transform], check).get(check, "nothing")


class Mute(Sgd):
    def run(self, model, data, job, memory):
        super().run(model, data, job, memory)
        return {"accuracy": 1.0}


class Random(Sgd):
    def run(self, model, data, job, memory):
        metrics = super().run(model, data, job, memory)
        model.flat.add_(1e-4 * torch.from_numpy(np.random.default_rng().normal(size=len(model.flat))).float())
        return metrics


class Ignores(Sgd):
    def run(self, model, data, job, memory):
        return super().run(model, data, replace(job, budget=replace(job.budget, steps=1)), memory)


class Keeps(Sgd):
    def run(self, model, data, job, memory):
        memory["last"] = model.flat
        return super().run(model, data, job, memory)


class Elsewhere(Sgd):
    def run(self, model, data, job, memory):
        before = model.flat.clone()
        metrics = super().run(model, data, job, memory)
        model.flat.copy_(before)
        return metrics


@pytest.mark.parametrize(
    ("work", "check", "told"),
    [
        (Mute(), "metrics", "it reports ['accuracy'] and no \"loss\""),
        (Random(), "repeat", "the same job gives another delta a second time"),
        (Ignores(), "steps", "one step and two steps give the same delta"),
        (Keeps(), "no view", "last in its memory changes with the model"),
        (Elsewhere(), "in place", "the model is as it was before"),
    ],
)
def test_a_wrong_work_is_told_what_it_breaks(work: Any, check: str, told: str) -> None:
    assert told in failures("work", work, check).get(check, "nothing")


class Unseeded(nn.Module):
    def __init__(self, input_shape, classes):
        super().__init__()
        self.linear = nn.Linear(64, classes)
        nn.init.constant_(self.linear.weight, float(np.random.default_rng().normal()))

    def forward(self, x):
        return self.linear(x.flatten(1))


def one_more(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes + 1))


def dropping(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, classes)

        def forward(self, x: Any) -> Any:
            return self.linear(nn.functional.dropout(x.flatten(1), 0.5, training=True))

    return Dropping()


@pytest.mark.parametrize(
    ("factory", "told"),
    [
        (Unseeded, "bits: two models of one seed begin with other parameters"),
        (one_more, "outputs: for inputs (5, 1, 8, 8) outputs are (5, 5), needs (5, 4)"),
        (dropping, "outputs: evaluating the same inputs twice gives other outputs"),
    ],
)
def test_a_wrong_model_is_told_what_it_breaks(factory: Any, told: str) -> None:
    with pytest.raises(AssertionError) as caught:
        conformance.check_model(factory)
    assert told in str(caught.value)


@dataclass(frozen=True)
class Data:
    """Digits with labels from 1, or other pixels each time."""

    shifted: bool = False

    def load(self) -> Any:
        found = Digits().load()
        if self.shifted:
            return dataclasses.replace(found, y_train=found.y_train + 1)
        return dataclasses.replace(found, x_train=found.x_train + float(np.random.default_rng().normal()))


def test_wrong_data_are_told_what_they_break() -> None:
    assert "y_train goes from 1 to 10, classes=10" in failures("data", Data(shifted=True), "contents")["contents"]
    assert "x_train is another one when it is loaded again" in failures("data", Data(), "repeats")["repeats"]


@dataclass(frozen=True)
class Hasty(VirtualTime):
    """Ends after one round."""

    name: ClassVar[str] = "hasty"

    def run(self, experiment, folder, *, resume, progress):
        return super().run(replace(experiment, limits=Limits(versions=1)), folder, resume=resume, progress=progress)


def test_a_wrong_transport_is_told_what_it_breaks() -> None:
    found = failures("transport", Hasty())
    assert "weights_sha256 is" in found["carries"] and set(found) == {"carries"}
