"""One module object serves many clients: state that is not sent does not leak from one job to the next."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from clients.data.shard import ClientShard
from clients.models.build import build
from clients.work.scaffold import Scaffold
from clients.work.sgd import Sgd
from fedhet.engine.client_runner import Device
from fedhet.engine.method import Method
from fedhet.model.batch_joining import Joined
from fedhet.model.flat_model import Model
from fedhet.types import Budget, Job
from strategies.budgets.fixed import Fixed
from strategies.rules.mean import Mean
from strategies.schedules.sync import Sync
from strategies.spaces.control import ControlVariates
from strategies.spaces.full import Full
from strategies.spaces.last_layers import LastLayers

X = torch.randn(90, 6, generator=torch.Generator().manual_seed(3))
Y = torch.arange(90) % 3


class World:
    """Three clients with 30 samples each, or as many as they are given."""

    def __init__(self, *counts):
        self.ends = np.cumsum([0, *(counts or (30, 30, 30))])

    def shard(self, client, turn):
        return ClientShard(X, Y, np.arange(self.ends[client], self.ends[client + 1]), 0, client, turn)


class Restless(nn.Module):
    """A module that changes something of itself in every forward pass, and whose output tells."""

    def __init__(self, kind):
        super().__init__()
        self.layer, self.kind = nn.Linear(6, 3), kind
        self.register_buffer("count", torch.zeros((), dtype=torch.long), persistent=kind != "not persistent")
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("late", None)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
        self.calls, self.history, self.noted = 0, [], {"n": [0]}
        self.plain, self.array = torch.zeros(3), np.zeros(3)
        self.torch_lots, self.numpy_lots = torch.Generator().manual_seed(1), np.random.default_rng(1)
        self.python_lots = random.Random(1)

    def forward(self, x):
        return self.layer(x) * (1.0 + 1.0 / (1.0 + self.moved(x)))

    def moved(self, x):
        match self.kind:
            case "integer buffer" | "not persistent":
                self.count += 1
                return self.count.float()
            case "integer buffer through data":
                self.count.data += 1
                return self.count.float()
            case "replaced integer buffer":
                self.count = self.count + 1
                return self.count.float()
            case "replaced float buffer":
                self.mean = 0.5 * self.mean + 0.5 * x.detach().mean(0)
                return self.mean.abs().sum()
            case "buffer that was None":
                self.late = torch.ones(()) if self.late is None else self.late + 1
                return self.late
            case "number":
                self.calls += 1
                return float(self.calls)
            case "list":
                self.history.append(1)
                return float(len(self.history))
            case "nested":
                self.noted["n"].append(1)
                return float(len(self.noted["n"]))
            case "tensor":
                self.plain.add_(1)
                return self.plain[0].clone()
            case "array":
                self.array += 1
                return float(self.array[0])
            case "new attribute":
                self.cache = getattr(self, "cache", 0) + 1
                return float(self.cache)
            case "torch generator":
                return float(torch.rand((), generator=self.torch_lots))
            case "numpy generator":
                return float(self.numpy_lots.random())
            case "python generator":
                return self.python_lots.random()
            case "global torch":
                return torch.rand(())
            case "global numpy":
                return float(np.random.random())
            case "global python":
                return random.random()
            case "gradients":
                for p in self.parameters():
                    if self.calls > 2 and p.grad is not None:
                        p.grad = None
                self.calls += 1
                return 1.0
            case "mode":
                self.layer.weight.requires_grad_(self.calls < 2)
                self.calls += 1
                return 1.0
        raise AssertionError(self.kind)


KINDS = [
    "integer buffer", "not persistent", "integer buffer through data", "replaced integer buffer",
    "replaced float buffer", "buffer that was None", "number", "list", "nested", "tensor", "array", "new attribute",
    "torch generator", "numpy generator", "python generator", "global torch", "global numpy", "global python",
    "gradients", "mode",
]  # fmt: skip


def device(module, space=None, work=None, world=None):
    method = Method(Sync(), space or Full(), Mean(), work or Sgd(lr=0.1, batch=8), Fixed(4))
    return Device(method, Model(module), world or World(), seed=5)


def restless(kind, **given):
    torch.manual_seed(7)
    return device(Restless(kind), **given)


def answer(one, client, start):
    return one.answer(Job(0, client, 0, 0, Budget(4), 0.0), start, {})


@pytest.mark.parametrize("space", [Full, lambda: LastLayers()], ids=["full", "last layers"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_job_does_not_depend_on_those_that_the_process_did_before(kind, space):
    fresh = restless(kind, space=space())
    start = fresh.method.space.begin(fresh.model)
    expected = answer(fresh, 1, start)
    used = restless(kind, space=space())
    answer(used, 0, start)
    answer(used, 2, start)
    used.model.predict(X)
    got = answer(used, 1, start)
    assert torch.equal(got.delta.flat, expected.delta.flat) and got.metrics == expected.metrics
    assert not torch.equal(answer(used, 0, start).delta.flat, expected.delta.flat)


def test_a_buffer_that_is_replaced_travels_all_the_same():
    one = restless("replaced float buffer")
    delta = answer(one, 0, one.method.space.begin(one.model)).delta
    assert float(delta["mean"].abs().sum()) > 0


def test_a_buffer_that_is_not_finite_stays_what_it_was():
    one = restless("number")
    assert "mask" not in one.model.schema and "mean" in one.model.schema
    assert torch.isfinite(answer(one, 0, one.method.space.begin(one.model)).delta.flat).all()
    assert one.model.module.mask.tolist() == [0.0, -float("inf")]


class Teaching(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.layer, self.teacher, self.change = nn.Linear(6, 3), nn.Linear(6, 3).requires_grad_(False), change
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x):
        if self.change == "frozen":
            with torch.no_grad():
                self.teacher.weight.lerp_(self.layer.weight, 0.1)
        else:
            self.mean = torch.zeros(7)
        return self.layer(x) + self.teacher(x)


@pytest.mark.parametrize(
    ("change", "says"), [("frozen", "teacher.weight in forward"), ("shape", r"shape \(7,\).*mean")]
)
def test_what_cannot_be_put_back_is_named(change, says):
    one = device(Teaching(change))
    with pytest.raises(ValueError, match=says):
        answer(one, 0, one.method.space.begin(one.model))


def with_statistics(momentum=0.1):
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, momentum=momentum), nn.Linear(4, 3))


def test_a_last_batch_of_one_joins_the_one_before_where_there_are_batch_statistics():
    shard = World(33, 30).shard(0, 0)
    plain = shard.batches(8)
    first = [next(plain) for _ in range(5)]
    joined = Joined(shard).batches(8)
    got = [next(joined) for _ in range(8)]
    assert [len(y) for _, y in got] == [8, 8, 8, 9, 8, 8, 8, 9]
    assert torch.equal(torch.cat([x for x, _ in got[:4]]), torch.cat([x for x, _ in first]))
    for count, size in ((32, 8), (33, 33), (1, 1), (33, 1)):
        shard = World(count).shard(0, 0)
        joined, plain = Joined(shard).batches(size), shard.batches(size)
        assert all(torch.equal(next(joined)[0], next(plain)[0]) for _ in range(9))


@pytest.mark.parametrize("option", [1, 2])
def test_a_client_whose_epoch_ends_with_one_sample_trains(option, monkeypatch):
    monkeypatch.setattr("clients.work.scaffold.CHUNK", 16)
    for space, work in ((Full(), None), (ControlVariates(2), Scaffold(lr=0.1, batch=8, option=option))):
        one = device(with_statistics(), space, work, World(33, 30))
        job = Job(0, 0, 0, 0, Budget(9), 0.0)
        update = one.answer(job, space.begin(one.model), {})
        assert update.metrics["steps"] == 9


def test_a_full_gradient_leaves_no_trace_in_the_buffers(monkeypatch):
    """A cumulative average weighs by its counter: a pass that is not training must not move it."""
    monkeypatch.setattr("clients.work.scaffold.CHUNK", 16)
    got = []
    for option in (1, 2):
        one = device(with_statistics(None), ControlVariates(2), Scaffold(lr=0.1, batch=8, option=option))
        delta = one.answer(Job(0, 0, 0, 0, Budget(3), 0.0), one.method.space.begin(one.model), {}).delta
        got.append(delta["1.running_mean"])
    assert torch.equal(*got)


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (lambda: nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 3).double()), "parameter 1.weight is float64"),
        (lambda: nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3).double()), "parameter 1.weight is float64"),
        (lambda: nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3, affine=False).half()), "1.running_mean is float16"),
        (lambda: nn.Linear(6, 3, dtype=torch.complex64), "weight is complex64"),
        (lambda: nn.Sequential(nn.Linear(6, 3), nn.LazyLinear(3)), "1.weight has no shape yet"),
        (lambda: nn.Linear(6, 3, device="meta"), "weight is on the meta device"),
        (lambda: nn.Flatten(), "no trainable parameter"),
    ],
)  # fmt: skip
def test_a_tensor_that_does_not_fit_is_named(module, says):
    with pytest.raises(ValueError, match=says):
        Model(module())


def test_lazy_layers_get_their_shapes_from_a_sample_and_their_values_from_the_seed():
    def lazy(*, input_shape, classes):
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(5), nn.LazyBatchNorm1d(), nn.LazyLinear(classes))

    torch.manual_seed(3)
    one = build(lazy, (6,), 3, 1, X[:1])
    random.seed(9)
    two, other = build(lazy, (6,), 3, 1, X[1:2]), build(lazy, (6,), 3, 2, X[:1])
    assert one.schema["1.weight"].shape == (5, 6) and one.module.training and one.batch_statistics
    assert torch.equal(one.flat, two.flat) and not torch.equal(one.flat, other.flat)
