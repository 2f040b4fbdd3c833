"""Adapters on a device: peft around a module that serves clients of any rank, one after the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch import nn

from clients.models.text import char_transformer
from clients.models.vision import cnn_mnist, mlp
from fedhet.model.flat_model import Model
from fedhet.types import Budget, Job
from strategies.spaces.exact_warm import ExactWarm
from strategies.spaces.lora.host import LoraHost
from strategies.spaces.lora.names import pairs
from strategies.spaces.stacked_lora import StackedLora


def job(rank: int = 0, client: int = 0, version: int = 0, held: int = -1) -> Job:
    return Job(client, client, version, 0, Budget(1, rank), 0.0, held=held)


def model(seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return Model(mlp(input_shape=(1, 4, 4), classes=3, hidden=[8]))


X = torch.randn(9, 1, 4, 4, generator=torch.Generator().manual_seed(1))
Y = torch.arange(9) % 3


def trained(m: Model, steps: int = 3, lr: float = 0.5) -> None:
    for _ in range(steps):
        m.gradient(X, Y)
        m.params.add_(m.grad, alpha=-lr)


def test_a_fresh_adapter_changes_no_bit_of_the_outputs() -> None:
    plain, device, space = model(), model(5), StackedLora(rank=4)
    space.install(device, space.offer(space.begin(plain), job()), job())
    assert torch.equal(device.predict(X), plain.predict(X))
    assert device.params.numel() == 4 * (16 + 8) + 3 * (8 + 3), "no rank above the smaller side"


def test_what_is_trained_is_the_adapters_and_the_base_stays_to_the_last_bit() -> None:
    plain, device, space = model(), model(5), StackedLora(rank=2)
    payload = space.offer(space.begin(plain), job())
    space.install(device, payload, job())
    trained(device)
    host = device.module
    assert isinstance(host, LoraHost)
    for name, leaf in plain.tree().items():
        assert torch.equal(host.bases[name].detach(), leaf)
    assert not torch.equal(device.predict(X), plain.predict(X))
    merged = model(7)
    space.restore(merged, space.merge(space.begin(plain), space.extract(device, payload)))
    torch.testing.assert_close(merged.predict(X), device.predict(X), rtol=1e-5, atol=1e-6)


def test_gradients_and_steps_are_those_of_peft_s_own_model() -> None:
    plain, device, space = model(), model(5), StackedLora(rank=4, alpha=3.0, alpha_by_rank=False)
    space.install(device, space.offer(space.begin(plain), job(2)), job(2))
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["1", "3"])
    theirs = get_peft_model(model().module, config)
    ours = {n.removeprefix("inner."): p for n, p in device.module.named_parameters() if "lora_" in n}
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if "lora_" in name:
                key = name.removeprefix("base_model.model.").replace(".default.", f".{device.module.panel.kind.name}.")
                p.copy_(ours[key])
    optimizer = torch.optim.SGD([p for p in theirs.parameters() if p.requires_grad], lr=0.5)
    for _ in range(4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(theirs(X), Y).backward()
        optimizer.step()
    trained(device, 4)
    torch.testing.assert_close(device.predict(X), theirs(X).detach(), rtol=1e-5, atol=1e-6)
    names = {n.removeprefix("base_model.model.") for n in get_peft_model_state_dict(theirs)}
    extracted = space.extract(device, space.offer(space.begin(plain), job(2)))
    assert {f"{n}.weight" for n in extracted} == names


def test_one_object_serves_ranks_in_any_order_as_new_ones_would() -> None:
    space, plain, shared = StackedLora(rank=6), model(), model(5)
    state = space.begin(plain)
    for client, rank in enumerate((2, 6, 1, 2, 6, 6, 3)):
        asked, alone = job(rank, client), model(6)
        updates = []
        for device in (shared, alone):
            payload = space.offer(state, asked)
            space.install(device, payload, asked)
            trained(device)
            updates.append(space.extract(device, payload))
        assert all(torch.equal(a, b) for a, b in zip(updates[0].values(), updates[1].values(), strict=True))
        assert updates[0]["1.lora_A"].shape == (rank, 16)
    assert len(shared.module._panels) == 4


def test_parameters_sent_in_full_are_trained_in_addition_to_the_adapters() -> None:
    space, plain, device = StackedLora(rank=2, whole=("bias",)), model(), model(5)
    state = space.begin(plain)
    payload = space.offer(state, job())
    for rank in (2, 1, 2):
        space.install(device, payload, job(rank))
        assert torch.equal(device.predict(X), plain.predict(X)), "training of the last job is gone"
        trained(device)
    delta = space.extract(device, payload)
    assert [n for n in delta if n.startswith("whole/")] == ["whole/1.bias", "whole/3.bias"]
    assert delta["whole/3.bias"].abs().max() > 1e-3
    merged = model(7)
    space.restore(merged, space.merge(state, space.combine([delta, delta], [0.5, 0.5])))
    torch.testing.assert_close(merged.predict(X), device.predict(X), rtol=1e-5, atol=1e-6)


def test_convolutions_are_adapted_like_matrices() -> None:
    torch.manual_seed(0)
    plain = Model(cnn_mnist(input_shape=(1, 16, 16), classes=3))
    device = Model(cnn_mnist(input_shape=(1, 16, 16), classes=3))
    space, x = StackedLora(rank=2, targets=("0", "3", "all-linear")), torch.randn(6, 1, 16, 16)
    state = space.begin(plain)
    payload = space.offer(state, job())
    space.install(device, payload, job())
    assert torch.equal(device.predict(x), plain.predict(x))
    for _ in range(3):
        device.gradient(x, torch.arange(6) % 3)
        device.params.add_(device.grad, alpha=-0.05)
    delta = space.extract(device, payload)
    assert delta["3.lora_A"].shape == (2, 32 * 25) and delta["3.lora_B"].shape == (64, 2)
    expected = device.predict(x)
    space.restore(plain, space.merge(state, delta))
    torch.testing.assert_close(plain.predict(x), expected, rtol=1e-4, atol=1e-5)


def test_a_transformer_evaluates_with_its_adapters_and_not_past_them() -> None:
    """torch's fused layers read weights without calling the parts that hold the adapters."""
    torch.manual_seed(0)
    given: dict[str, Any] = {"input_shape": (6,), "classes": 5, "width": 8, "heads": 2, "depth": 1}
    plain, device = Model(char_transformer(**given)), Model(char_transformer(**given))
    space, x = StackedLora(rank=2, targets=("linear1", "linear2")), torch.randint(0, 5, (4, 6))
    state = space.begin(plain)
    payload = space.offer(state, job())
    space.install(device, payload, job())
    for _ in range(3):
        device.gradient(x, x)
        device.params.add_(device.grad, alpha=-0.5)
    before = plain.predict(x)
    space.restore(plain, space.merge(state, space.extract(device, payload)))
    torch.testing.assert_close(device.predict(x), plain.predict(x), rtol=1e-4, atol=1e-5)
    assert (device.predict(x) - before).abs().max() > 1e-3


def test_a_weight_that_is_stored_transposed_is_merged_transposed() -> None:
    transformers = pytest.importorskip("transformers.pytorch_utils")
    torch.manual_seed(0)
    plain, device = (Model(nn.Sequential(transformers.Conv1D(7, 4), nn.Tanh(), nn.Linear(7, 3))) for _ in range(2))
    space, x = StackedLora(rank=2), torch.randn(9, 4)
    state = space.begin(plain)
    assert state["adapted/0.weight"].shape == (7, 4)
    payload = space.offer(state, job())
    space.install(device, payload, job())
    assert torch.equal(device.predict(x), plain.predict(x))
    for _ in range(3):
        device.gradient(x, Y)
        device.params.add_(device.grad, alpha=-0.5)
    delta = space.extract(device, payload)
    assert delta["0.lora_A"].shape == (2, 4) and delta["0.lora_B"].shape == (7, 2)
    space.restore(plain, space.merge(state, delta))
    torch.testing.assert_close(plain.predict(x), device.predict(x), rtol=1e-5, atol=1e-6)


def test_a_weight_is_identified_by_name_if_shapes_are_equal() -> None:
    """Square layers of the rank's size: A, B and W have one shape."""
    torch.manual_seed(0)
    plain, device = (Model(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))) for _ in range(2))
    space, x = StackedLora(rank=4), torch.randn(8, 4)
    state = space.begin(plain)
    payload = space.offer(state, job())
    space.install(device, payload, job())
    for _ in range(3):
        device.gradient(x, torch.arange(8) % 4)
        device.params.add_(device.grad, alpha=-0.5)
    space.restore(plain, space.merge(state, space.extract(device, payload)))
    torch.testing.assert_close(plain.predict(x), device.predict(x), rtol=1e-5, atol=1e-6)


def test_scalings_follow_alpha_rank_and_its_root() -> None:
    assert StackedLora(alpha=2.0).scaling(16) == 2.0
    assert StackedLora(alpha=32.0, alpha_by_rank=False).scaling(16) == 2.0
    assert StackedLora(alpha=32.0, alpha_by_rank=False, rslora=True).scaling(16) == 8.0
    device, space = model(), StackedLora(rank=8, alpha=6.0, alpha_by_rank=False, rslora=True, rank_pattern={"1": 5})
    space.install(device, space.offer(space.begin(model()), job(4)), job(4))
    found = {n: part.scaling[device.module.panel.kind.name] for n, part in device.module.inner_layers()}
    assert found == {"1": 3.0, "3": pytest.approx(6 / 3**0.5)}


def test_ranks_of_single_layers_are_held_to_their_pattern() -> None:
    space = StackedLora(rank=6, rank_pattern={"1": 2})
    expected = space.expects(space.begin(model()), job(4))
    assert expected["1.lora_A"].shape == (2, 16) and expected["3.lora_A"].shape == (3, 8)


def test_clients_draw_their_own_start_unless_same_start_is_set() -> None:
    own, same = StackedLora(rank=3), StackedLora(rank=3, same_start=True)
    state, device = own.begin(model()), model()

    def first(space: StackedLora, **given: int) -> torch.Tensor:
        asked = job(**given)
        space.install(device, space.offer(state, asked), asked)
        return device.module.panel.factors["1"]["lora_A"].detach().clone()

    assert not torch.equal(first(own, client=0), first(own, client=1))
    assert torch.equal(first(own, client=0), first(own, client=0))
    assert torch.equal(first(same, client=0, rank=3)[:2], first(same, client=1, rank=2))
    assert first(own).abs().max() <= 0.25, "uniform within the root of the inputs"


def test_local_work_leaves_torch_s_random_stream_alone_when_adapters_are_made() -> None:
    space, device = StackedLora(rank=3), model()
    payload = space.offer(space.begin(model()), job())
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    space.install(device, payload, job())
    assert torch.equal(torch.rand(3), expected)


def test_a_model_can_be_evaluated_on_the_object_that_trains() -> None:
    for space in (StackedLora(rank=2), ExactWarm(rank=2)):
        device = model(5)
        state = space.begin(model())
        payload = space.offer(state, job())
        space.install(device, payload, job())
        trained(device)
        after = space.merge(state, space.decode_delta(state, job(), space.extract(device, payload)))
        space.restore(device, after)
        alone = model(7)
        space.restore(alone, after)
        assert torch.equal(device.predict(X), alone.predict(X))
        space.install(device, space.offer(after, job(version=1)), job(version=1))
        torch.testing.assert_close(device.predict(X), alone.predict(X), rtol=1e-5, atol=1e-6)


def test_what_was_brought_is_no_view_of_the_device() -> None:
    space, device = StackedLora(rank=2, whole=("3.bias",)), model()
    payload = space.offer(space.begin(model()), job())
    space.install(device, payload, job())
    trained(device)
    delta = space.extract(device, payload)
    before = {n: leaf.clone() for n, leaf in delta.items()}
    device.flat.fill_(7.0)
    assert all(torch.equal(delta[n], leaf) for n, leaf in before.items())
    assert set(pairs(delta)) == {"1", "3"}


def test_a_model_without_a_layer_to_adapt_or_with_a_frozen_one_is_refused() -> None:
    with pytest.raises(ValueError, match="matches no layer"):
        StackedLora().begin(Model(nn.Sequential(nn.LayerNorm(3))))
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[0].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"0\.weight is frozen"):
        StackedLora().begin(Model(net))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"rank": 0}, "rank=0"),
        ({"alpha": 0.0}, "alpha=0.0"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"targets": ()}, "targets="),
        ({"rslora": True}, "alpha_by_rank=False"),
        ({"rank_pattern": {"a": 0}}, "a: 0"),
        ({"send": "dense"}, "auto or stack"),
    ],
)
def test_hyper_parameters_out_of_range_are_named(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        StackedLora(**given)
