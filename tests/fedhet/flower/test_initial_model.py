"""A model's tensors in the format of a Flower app."""

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from torch import nn

from fedhet.flower.initial_model import install
from fedhet.model.flat_model import Model


def normed(value=None):
    """Weights, running statistics and an int64 count between them; all of one value if one is given."""
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    if value is not None:
        module.load_state_dict({k: torch.full_like(v, value) for k, v in module.state_dict().items()})
    return module


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("mask", torch.full((2, 2), -torch.inf))
        self.register_buffer("rate", torch.ones(()), persistent=False)


class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.fixed, self.free = nn.Linear(2, 2), nn.Linear(2, 1)
        self.fixed.requires_grad_(False)


def taken(record, module):
    """The state dict of a model that has taken this, and what its layout makes of it."""
    model = Model(module)
    layout = install(record, model)
    return model.module.state_dict(), layout.record(model.module)


@pytest.mark.parametrize("make", [normed, Tied])
def test_a_state_dict_is_taken_by_name_and_the_result_loads_strictly(make):
    given = make()
    state, result = taken(ArrayRecord(given.state_dict()), make())
    back = make()
    back.load_state_dict(result.to_torch_state_dict())
    for name, value in given.state_dict().items():
        assert torch.equal(back.state_dict()[name], value)
        if value.is_floating_point():
            assert torch.equal(state[name], value)


def test_buffers_that_do_not_travel_are_in_the_result_as_they_were_given():
    state, result = taken(ArrayRecord(normed(7).state_dict()), normed())
    assert int(state["1.num_batches_tracked"]) == 0, "a job begins as the model was built"
    assert int(result["1.num_batches_tracked"].numpy()) == 7
    assert result["1.num_batches_tracked"].dtype == "int64"


def test_order_and_what_is_left_out_do_not_matter():
    given = normed(3).state_dict()
    del given["1.num_batches_tracked"]
    _, result = taken(ArrayRecord(dict(reversed(given.items()))), normed())
    assert list(result) == list(normed().state_dict())
    tied = Tied().state_dict()
    one = {name: tied[name] for name in ("out.weight", "mask")}
    state, _ = taken(ArrayRecord(one), Tied())
    assert torch.equal(state["embed.weight"], tied["out.weight"])


def test_lists_of_arrays_are_taken_by_position():
    values = [np.asarray(v.numpy()) for v in normed(2).state_dict().values()]
    state, result = taken(ArrayRecord(values), normed())
    assert all(np.array_equal(a, b) for a, b in zip(result.to_numpy_ndarrays(), values, strict=True))
    assert float(state["1.running_mean"][0]) == 2
    floats = [v for v in values if v.dtype == np.float32]
    state, result = taken(ArrayRecord(floats), normed())
    assert float(state["1.running_var"][0]) == 2 and len(result) == len(floats)
    plain = nn.Linear(2, 1)
    state, _ = taken(ArrayRecord([p.detach().numpy() for p in plain.parameters()]), nn.Linear(2, 1))
    assert torch.equal(state["weight"], plain.weight)


def without(name):
    return {k: v for k, v in normed().state_dict().items() if k != name}


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (without("2.weight"), r"lack 2\.weight, float32 of shape \(4, 4\)$"),
        ({**without("2.weight"), "2.wieght": torch.ones(4, 4)}, r"lack 2\.weight, .*; nearest: 2\.wieght"),
        ({**normed().state_dict(), "2.wieght": torch.ones(1)}, r"no 2\.wieght; nearest: 2\.weight"),
        ({**normed().state_dict(), "0.weight": torch.ones(3, 4)}, r"0\.weight has shape \(3, 4\), .* \(4, 3\)"),
        ({**normed().state_dict(), "0.weight": torch.ones(4, 3).double()}, r"0\.weight is float64, .* float32.*astype"),
        ({**normed().state_dict(), "1.num_batches_tracked": torch.ones(2)}, r"num_batches_tracked has shape \(2,\)"),
    ],
)
def test_the_first_tensor_that_differs_is_named_and_nothing_is_changed(given, why):
    model = Model(normed(1))
    with pytest.raises(ValueError, match=why):
        install(ArrayRecord(given), model)
    assert bool((model.flat == 1).all())


def test_lists_tied_and_frozen_tensors_that_do_not_fit_are_named():
    values = [np.asarray(v.numpy()) for v in normed().state_dict().values()]
    with pytest.raises(ValueError, match=r"list of 7 arrays, .* has 9 tensors: 0\.weight, 0\.bias"):
        install(ArrayRecord(values[:-2]), Model(normed()))
    with pytest.raises(ValueError, match=r"array 0 \(0\.weight\) has shape \(3, 4\)"):
        install(ArrayRecord([values[0].T, *values[1:]]), Model(normed()))
    tied = {**Tied().state_dict(), "out.weight": torch.zeros(5, 3)}
    with pytest.raises(ValueError, match=r"embed\.weight and out\.weight are one tensor"):
        install(ArrayRecord(tied), Model(Tied()))
    module = Frozen()
    install(ArrayRecord(module.state_dict()), Model(module))
    with pytest.raises(ValueError, match=r"fixed\.weight is frozen"):
        install(ArrayRecord({**module.state_dict(), "fixed.weight": torch.zeros(2, 2)}), Model(module))
    with pytest.raises(ValueError, match="weight is not a readable array"):
        install(
            ArrayRecord({"weight": Array("float32", (1, 2), "other", b""), "bias": Array(np.zeros(1, np.float32))}),
            Model(nn.Linear(2, 1)),
        )
