"""HetLoRA's rank pruning: ranks only decrease, only where rows shrank, with zeros in the mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedhet.engine.answer import Answer
from fedhet.numerics.wire_format import encode
from fedhet.types import KEPT_RANK, Budget, Job
from strategies.spaces.full import Full
from strategies.spaces.lora.factors import Pair
from strategies.spaces.lora.pruning import Pruner
from strategies.spaces.lora.warm import factors_of
from strategies.spaces.padded_lora import PaddedLora

KEPT = "kept.lora/ranks"


def history(run: Any, client: int, versions: int) -> list[list[int]]:
    """A client's ranks after each version."""
    found = []
    for version in range(1, versions + 1):
        run.run(version)
        found.append([int(r) for r in run.memories[client]["space"][KEPT].tolist()])
    return found


@pytest.mark.parametrize("norm", [False, True])
def test_where_nothing_is_given_up_it_is_the_plain_method_to_the_last_bit(federation: Any, norm: bool) -> None:
    plain = federation(PaddedLora(rank=3, by_norm=norm), [3, 2, 1]).run(3)
    for given in ({"decay": 1.0}, {"decay": 0.5, "min_rank": 3}):
        other = federation(PaddedLora(rank=3, by_norm=norm, **given), [3, 2, 1]).run(3)
        assert np.array_equal(other.dense(other.states[3]), plain.dense(plain.states[3]))


def test_ranks_only_fall_and_stop_at_the_least(federation: Any) -> None:
    run = federation(PaddedLora(rank=6, decay=0.5, penalty=1.0, min_rank=2), [6, 5], lr=0.1)
    for client, first in ((0, [6, 3]), (1, [5, 3])):
        ranks = np.array([first, *history(run, client, 8)])
        assert (np.diff(ranks, axis=0) <= 0).all() and ranks.min() >= 2
        assert ranks[-1].sum() < sum(first), "something is meant to be given up"
        assert (np.diff(ranks, axis=0) == 0).all(axis=1).any(), "and not in every round"


def test_what_was_given_up_is_zero_on_the_device_and_in_the_mean(federation: Any) -> None:
    run = federation(PaddedLora(rank=6, decay=0.5, penalty=1.0, min_rank=2), [6, 5], lr=0.1).run(8)
    ranks = [dict(zip(("0", "2"), map(int, m["space"][KEPT].tolist()), strict=True)) for m in run.memories]
    run.run(9)
    last = {u.job.client: u for u in run.updates if u.job.version == 8}
    before, after = (factors_of(dict(run.states[v].items())) for v in (8, 9))
    weights = np.array([last[c].weight for c in range(2)]) / sum(u.weight for u in last.values())
    for name, pair in before.items():
        ends = []
        for client in range(2):
            a, b = np.zeros(pair.right.shape), np.zeros(pair.left.shape)
            moved = [last[client].delta[f"{name}.lora_{letter}"] for letter in "AB"]
            own = len(moved[0])
            a[:own], b[:, :own] = pair.right[:own] + moved[0], pair.left[:, :own] + moved[1]
            cut = ranks[client][name]
            assert not a[cut:].any() and not b[:, cut:].any() and a[:cut].any() and b[:, :cut].any()
            ends.append((a, b))
        for at, got in ((0, after[name].right), (1, after[name].left)):
            mean = sum(w * end[at] for w, end in zip(weights, ends, strict=True))
            np.testing.assert_allclose(got.numpy(), mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("first", [[6, 5], [0, 0]], ids=["ranks of the budget", "the space's own"])
def test_a_client_is_asked_for_no_more_than_the_rank_it_said_it_goes_on_with(federation: Any, first: list[int]) -> None:
    run = federation(PaddedLora(rank=6, decay=0.5, penalty=1.0, min_rank=2), first, lr=0.1).run(10)
    layers = [(10, 6), (3, 10)]
    for client in range(2):
        mine = [u for u in run.updates if u.job.client == client]
        ranks = [u.job.budget.rank for u in mine]
        told = [int(u.metrics["kept_rank"]) for u in mine]
        assert (ranks == [first[client], *told[:-1]] and ranks[-1] < ranks[0]) or 6 > ranks[-1] > 0 == ranks[0]
        assert sorted(told, reverse=True) == told and told[-1] == max(run.memories[client]["space"][KEPT])
        for update in mine:
            r = update.job.budget.rank or 6
            assert run.numbers(update.delta) == sum(min(r, *side) * sum(side) for side in layers)
    down = [run.numbers(p) for job, p in run.sent if job.client == 0 and job.version]
    assert down[-1] < down[0] and sorted(down, reverse=True) == down


@pytest.mark.parametrize("kept", [4.0, 0.0, -1.0, 2.5, 1e300])
def test_a_rank_that_the_job_did_not_have_is_gated(federation: Any, kept: float) -> None:
    """No client can have itself given more, or bring the run down with a rank that the space does not have."""
    run = federation(PaddedLora(rank=6, decay=0.5), [3, 3])
    run.server.start()
    (send, *_) = run.server.settle(0.0)
    update = run.device.answer(send.job, send.payload, {})
    for rank, code in ((3.0, ""), (kept, "rank")):
        metrics = {**update.metrics, KEPT_RANK: rank}
        answer = Answer(send.job.id, send.job.client, 0, update.weight, metrics, encode(update.delta), "", "")
        server = run.server
        verdict = run.gate.check(
            answer,
            send.job.client,
            server.inflight,
            server.expects(send.job),
            server.roster,
            {},
            server.rank_of(send.job),
        )
        assert getattr(verdict, "code", "") == code


def test_a_space_without_adapters_has_no_rank_to_go_on_with(federation: Any) -> None:
    run = federation(Full(), [0, 5])
    run.server.start()
    assert [run.server.rank_of(send.job) for send in run.server.settle(0.0)] == [0, 0]


def test_the_penalty_s_gradient_is_that_of_the_product_of_norms(small_world: Any) -> None:
    world, space = small_world(2, torch.float64), PaddedLora(rank=4, decay=0.5, penalty=0.7, alpha=1.0)
    state = dict(space.begin(world.model()).items())
    torch.manual_seed(0)
    state.update({n: torch.randn_like(leaf) for n, leaf in state.items() if n.startswith("factor/")})
    x = torch.randn(5, 6, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 0, 1])
    grads = {}
    for penalty in (0.0, 0.7):
        space = PaddedLora(rank=4, decay=0.5, penalty=penalty, alpha=1.0)
        device, job = world.model(), Job(0, 0, 0, 0, Budget(1, 4), 0.0)
        space.install(device, space.offer(state, job), job)
        device.gradient(x, y)
        panel = device.module.panel
        grads[penalty] = {(n, k): f.grad.clone() for n, pair in panel.factors.items() for k, f in pair.items()}
    for name, pair in panel.factors.items():
        a, b = (pair[k].detach().clone().requires_grad_(True) for k in ("lora_A", "lora_B"))
        cut = len(a) // 2
        (0.7 * b[:, cut:].norm() * a[cut:].norm()).backward()
        for key, leaf in (("lora_A", a), ("lora_B", b)):
            extra = grads[0.7][name, key] - grads[0.0][name, key]
            assert leaf.grad.abs().max() > 0.1
            torch.testing.assert_close(extra, leaf.grad, rtol=1e-9, atol=1e-12)


def test_rows_go_only_if_their_product_of_norms_is_smaller_than_before(small_world: Any) -> None:
    world, space = small_world(2), PaddedLora(rank=2, decay=0.5)
    device, job = world.model(), Job(0, 0, 0, 0, Budget(1, 2), 0.0)
    space.install(device, space.offer(space.begin(world.model()), job), job)
    panel = device.module.panel
    name = next(iter(panel.factors))
    pair = Pair(panel.factors[name]["lora_B"].data, panel.factors[name]["lora_A"].data)
    pair.left.fill_(1.0)
    pruner = Pruner(panel, {name: 2}, 0.5, 0.0, 1)
    pair.left[:, 1] *= 3.0
    pair.right[1] *= 0.5
    assert pruner.pruned() == {name: 2}, "one factor grew by more than the other shrank"
    pair.right[1] *= 0.5
    assert pruner.pruned() == {name: 1}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"decay": 0.0}, "decay=0"),
        ({"penalty": -1.0}, "penalty=-1"),
        ({"penalty": 0.1}, "needs a decay below 1"),
        ({"min_rank": 0}, "min_rank=0"),
        ({"decay": 0.9, "target": "increment"}, "set target=absolute"),
    ],
)
def test_values_out_of_range_are_named(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        PaddedLora(**given)
