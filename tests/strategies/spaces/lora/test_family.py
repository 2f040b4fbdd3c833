"""The result of each LoRA method against dense float64 sums of its clients' updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from fedhet.types import Budget, Job, Tree
from strategies.spaces.exact_warm import ExactWarm
from strategies.spaces.fedex import FedEx
from strategies.spaces.ffa import Ffa
from strategies.spaces.flex import Flex
from strategies.spaces.florist import Florist
from strategies.spaces.lora.factors import Pair, norm
from strategies.spaces.lora.names import pairs
from strategies.spaces.lora.warm import factors_of
from strategies.spaces.padded_lora import NORM, PaddedLora
from strategies.spaces.rolora import RoLora
from strategies.spaces.stacked_lora import StackedLora

UNEQUAL, EQUAL = (3, 1, 2, 3), (3, 3, 3, 3)
P = [0.4, 0.3, 0.2, 0.1]
LAYERS = ("0", "2")

EXACT = {
    "stacked": (StackedLora(rank=3), UNEQUAL),
    "stacked, alpha over rank": (StackedLora(rank=3, alpha=4.0, alpha_by_rank=False), UNEQUAL),
    "stacked, over its root": (StackedLora(rank=3, alpha=4.0, alpha_by_rank=False, rslora=True), UNEQUAL),
    "florist that keeps all": (Florist(rank=3, energy=1.0), UNEQUAL),
    "flex": (Flex(rank=3), UNEQUAL),
    "flex, increments": (Flex(rank=3, target="increment"), UNEQUAL),
    "exact_warm": (ExactWarm(rank=3), UNEQUAL),
    "exact_warm, tracked": (ExactWarm(rank=3, tracked_rank=3), UNEQUAL),
    "fedex": (FedEx(rank=3), EQUAL),
    "ffa": (Ffa(rank=3), UNEQUAL),
    "rolora": (RoLora(rank=3), EQUAL),
}
INEXACT = {
    "fedit": (PaddedLora(rank=3), EQUAL),
    "zero-padding": (PaddedLora(rank=3), UNEQUAL),
    "hetlora": (PaddedLora(rank=3, by_norm=True), UNEQUAL),
    "increments": (PaddedLora(rank=3, target="increment"), UNEQUAL),
    "florist that cuts": (Florist(rank=3, energy=0.5), UNEQUAL),
}
BOTH = {**EXACT, **INEXACT}


class Round:
    """The third version of a run, taken apart: `raw` uploads and what combining does to the dense model."""

    def __init__(self, federation: Any, space: Any, ranks: Sequence[int], versions: int = 3) -> None:
        self.run = federation(space, ranks).run(versions)
        self.space, self.state = space, self.run.states[versions]
        sends = self.run.server.settle(self.run.server.now)
        device, memories = self.run.device, self.run.memories
        self.jobs = [s.job for s in sends]
        self.raw = [dict(device.answer(s.job, s.payload, memories[s.job.client]).delta.items()) for s in sends]
        self.before = self.run.dense(self.state).astype(np.float64)

    def accepted(self, raw: Sequence[Tree]) -> list[Tree]:
        return [self.space.decode_delta(self.state, job, d) for job, d in zip(self.jobs, raw, strict=True)]

    def moved(self, raw: Sequence[Tree], c: Sequence[float], order: Sequence[int] | None = None) -> np.ndarray:
        """What merging the combination adds to the dense model."""
        taken = self.accepted(raw)
        at = list(range(len(taken))) if order is None else list(order)
        delta = self.space.combine([taken[i] for i in at], [c[i] for i in at])
        return self.run.dense(self.space.merge(self.state, delta)) - self.before

    def alone(self, i: int) -> np.ndarray:
        """What client i did to the model it started from."""
        delta = self.space.combine([self.accepted(self.raw)[i]], [1.0])
        return self.run.dense(self.space.merge(self.state, delta)) - self.before


@pytest.fixture(scope="module")
def rounds(federation: Any) -> Any:
    made: dict[str, Round] = {}

    def get(name: str) -> Round:
        if name not in made:
            made[name] = Round(federation, *BOTH[name])
        return made[name]

    return get


def gap(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("name", EXACT)
def test_exact_methods_move_the_model_by_the_weighted_sum_of_what_clients_did(rounds: Any, name: str) -> None:
    r = rounds(name)
    expected = sum(p * r.alone(i) for i, p in enumerate(P))
    assert np.linalg.norm(expected) > 1e-2
    assert gap(r.moved(r.raw, P), expected) < 2e-5


@pytest.mark.parametrize("name", INEXACT)
def test_the_others_do_not(rounds: Any, name: str) -> None:
    r = rounds(name)
    expected = sum(p * r.alone(i) for i, p in enumerate(P))
    assert gap(r.moved(r.raw, P), expected) > 0.02


@pytest.mark.parametrize("name", BOTH)
def test_the_order_of_clients_does_not_matter(rounds: Any, name: str) -> None:
    r = rounds(name)
    assert gap(r.moved(r.raw, P, [2, 0, 3, 1]), r.moved(r.raw, P)) < 2e-5


def turned(r: Round, raw: Tree, job: Job, m: torch.Generator) -> dict[str, torch.Tensor]:
    """The same model of one client in other factors: A to M A, B to B M^-1."""
    out = dict(raw.items())
    averaged = isinstance(r.space, PaddedLora)
    starts = r.space.cut_for(dict(r.state.items()), job) if averaged else {}
    for name, pair in pairs(raw).items():
        start = starts.get(name, Pair(torch.zeros_like(pair.left), torch.zeros_like(pair.right)))
        mix = torch.randn(pair.rank, pair.rank, generator=m, dtype=torch.float64) + 2 * torch.eye(pair.rank)
        left = (start.left + pair.left).double() @ torch.linalg.inv(mix)
        right = mix @ (start.right + pair.right).double()
        out[f"{name}.lora_B"] = left.float() - start.left
        out[f"{name}.lora_A"] = right.float() - start.right
    return out


GAUGED = [n for n in BOTH if n not in ("ffa", "rolora")]  # those two leave no such freedom: one factor is common


@pytest.mark.parametrize("name", GAUGED)
def test_only_products_count_for_methods_that_sum_products(rounds: Any, name: str) -> None:
    r = rounds(name)
    m = torch.Generator().manual_seed(4)
    other = [turned(r, raw, job, m) for raw, job in zip(r.raw, r.jobs, strict=True)]
    change = gap(r.moved(other, P), r.moved(r.raw, P))
    assert change < 2e-4 if name in EXACT or name.startswith("florist") else change > 0.1


def ends_of(r: Round) -> list[dict[str, Pair]]:
    """Averaged factors: each client's pair after training."""
    found = []
    for raw, job in zip(r.raw, r.jobs, strict=True):
        starts = r.space.cut_for(dict(r.state.items()), job)
        found.append({n: Pair(starts[n].left + q.left, starts[n].right + q.right) for n, q in pairs(raw).items()})
    return found


def test_what_averaged_factors_miss_is_their_covariance(rounds: Any) -> None:
    r = rounds("fedit")
    ends = ends_of(r)
    after = factors_of(dict(r.space.merge(r.state, r.space.combine(r.accepted(r.raw), P)).items()))
    for layer in LAYERS:
        own = [e[layer] for e in ends]
        mean_b = sum(p * q.left.double() for p, q in zip(P, own, strict=True))
        mean_a = sum(p * q.right.double() for p, q in zip(P, own, strict=True))
        torch.testing.assert_close(after[layer].left.double(), mean_b, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(after[layer].right.double(), mean_a, rtol=1e-5, atol=1e-6)
        exact = sum(p * q.dense for p, q in zip(P, own, strict=True))
        covariance = sum(
            p * (q.left.double() - mean_b) @ (q.right.double() - mean_a) for p, q in zip(P, own, strict=True)
        )
        torch.testing.assert_close(exact - mean_b @ mean_a, covariance, rtol=1e-9, atol=1e-12)
        assert covariance.norm() > 1e-3 * exact.norm()


def test_averages_are_exact_when_all_clients_have_one_a(rounds: Any) -> None:
    r = rounds("fedit")
    same = [{**raw, **{f"{n}.lora_A": r.raw[0][f"{n}.lora_A"] for n in LAYERS}} for raw in r.raw]
    delta = r.space.combine([r.space.decode_delta(r.state, j, d) for j, d in zip(r.jobs, same, strict=True)], P)
    after = factors_of(dict(r.space.merge(r.state, delta).items()))
    kept, r.raw = r.raw, same
    ends = ends_of(r)
    r.raw = kept
    for layer in LAYERS:
        exact = sum(p * e[layer].dense for p, e in zip(P, ends, strict=True))
        assert float((after[layer].dense - exact).norm() / exact.norm()) < 1e-6


def test_rows_that_few_clients_hold_shrink_by_their_weight_unless_increments_are_averaged(federation: Any) -> None:
    """Nobody trains: what is left after four versions of zeros is what the rule does by itself."""
    for target, left in (("absolute", 0.25**4), ("increment", 1.0)):
        space = PaddedLora(rank=3, target=target)
        state = federation(space, (3, 1)).run(2).states[2]
        before = factors_of(dict(state.items()))["0"]
        for _ in range(4):
            deltas = []
            for client, rank in enumerate((3, 1)):
                job = Job(client, client, 0, 0, Budget(1, rank), 0.0)
                zeros = {n: torch.zeros(leaf.shape) for n, leaf in space.expects(state, job).items()}
                deltas.append(space.decode_delta(state, job, zeros))
            state = space.merge(state, space.combine(deltas, [0.25, 0.75]))
        after = factors_of(dict(state.items()))["0"]
        torch.testing.assert_close(after.right[:1], before.right[:1])
        torch.testing.assert_close(after.right[1:], before.right[1:] * left)
        torch.testing.assert_close(after.left[:, 1:], before.left[:, 1:] * left)


def test_hetlora_s_shares_are_the_norms_of_products_and_keep_their_sum(rounds: Any) -> None:
    r = rounds("hetlora")
    taken, ends = r.accepted(r.raw), ends_of(r)
    dense = np.array([np.sqrt(sum(float(q.dense.norm()) ** 2 for q in e.values())) for e in ends])
    np.testing.assert_allclose([float(d[NORM]) for d in taken], dense, rtol=1e-5)
    shares = dense / dense.sum() * 0.7
    plain = PaddedLora(rank=3)
    expected = plain.combine(
        [plain.decode_delta(r.state, j, d) for j, d in zip(r.jobs, r.raw, strict=True)], shares.tolist()
    )
    found = r.space.combine(taken, [0.7 * p for p in P])
    assert set(found) == set(expected)
    for name, leaf in expected.items():
        torch.testing.assert_close(found[name], leaf, rtol=1e-5, atol=1e-7)
    weights = [0.5, 0.0, 0.0, 0.2]
    alone = r.space.combine(taken, weights)
    only = dense * np.array([1, 0, 0, 1])
    again = plain.combine(
        [plain.decode_delta(r.state, j, d) for j, d in zip(r.jobs, r.raw, strict=True)],
        (only / only.sum() * 0.7).tolist(),
    )
    torch.testing.assert_close(dict(alone)["0.lora_A"], again["0.lora_A"], rtol=1e-5, atol=1e-7)


def test_the_frozen_a_of_ffa_is_the_seed_s_on_both_sides_and_never_sent(federation: Any) -> None:
    run = federation(Ffa(rank=3), UNEQUAL).run(3)
    first, last = (factors_of(dict(run.states[v].items())) for v in (0, 3))
    for layer in LAYERS:
        assert torch.equal(first[layer].right, last[layer].right) and last[layer].left.any()
        held = run.device.model.module.panel.factors[layer]["lora_A"].detach()
        assert torch.equal(held, first[layer].right[: len(held)])
    assert not any("lora_A" in n for _, payload in run.sent for n in payload)
    assert not any("lora_A" in n for u in run.updates for n in u.delta)


def test_rolora_trains_b_then_a_and_leaves_the_other_alone(federation: Any) -> None:
    run = federation(RoLora(rank=3), EQUAL).run(4)
    for version in range(4):
        before, after = (factors_of(dict(run.states[v].items())) for v in (version, version + 1))
        letters = {n.rpartition(".")[2] for u in run.updates if u.job.version == version for n in u.delta}
        assert letters == {"lora_A" if version % 2 else "lora_B"}
        for layer in LAYERS:
            assert torch.equal(before[layer].right, after[layer].right) == (version % 2 == 0)
            assert torch.equal(before[layer].left, after[layer].left) == (version % 2 == 1)


def test_a_newcomer_to_rolora_gets_both_factors_and_trains_the_same_model(federation: Any) -> None:
    run = federation(RoLora(rank=3), EQUAL, per_round=2).run(8)
    assert not run.failed
    both = [
        j for j, p in run.sent if {n.rpartition(".")[2] for n in p if n.startswith("factor/")} >= {"lora_A", "lora_B"}
    ]
    assert {j.held == -1 or j.held < j.version - 1 for j in both} == {True}
    one = [j for j, p in run.sent if j.held == j.version - 1 and j.version]
    assert one and not set(map(id, one)) & set(map(id, both))


def test_fedex_s_residual_has_the_rank_of_a_covariance_and_keeps_the_sum(rounds: Any) -> None:
    r = rounds("fedex")
    taken = r.accepted(r.raw)
    before = dict(r.state.items())
    after = dict(r.space.merge(r.state, r.space.combine(taken, P)).items())
    old, new = factors_of(before), factors_of(after)
    for layer in LAYERS:
        residual = after[f"adapted/{layer}.weight"].double() - before[f"adapted/{layer}.weight"].double()
        steps = sum(p * pairs(d)[layer].dense for p, d in zip(P, taken, strict=True))
        torch.testing.assert_close(residual + new[layer].dense - old[layer].dense, steps, rtol=1e-4, atol=1e-6)
        s = torch.linalg.svdvals(residual)
        assert int((s > 1e-4 * s[0]).sum()) <= 3 * 3
        assert residual.norm() > 1e-3 * steps.norm()


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_exact_warm_starts_every_rank_from_one_model_with_its_best_part_trainable(federation: Any, rank: int) -> None:
    space = ExactWarm(rank=3)
    run = federation(space, UNEQUAL).run(4)
    state = run.states[4]
    device, server = run.world.model(), run.world.model()
    space.restore(server, state)
    job = Job(0, 0, 4, 0, Budget(1, rank), 0.0)
    space.install(device, space.offer(state, job), job)
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(device.predict(x), server.predict(x), rtol=1e-5, atol=2e-6)
    start = run.states[0]
    for layer in LAYERS:
        total = dict(state.items())[f"adapted/{layer}.weight"].double() - start[f"adapted/{layer}.weight"].double()
        torch.testing.assert_close(factors_of(dict(state.items()))[layer].dense, total, rtol=1e-4, atol=2e-6)
        factors = device.module.panel.factors[layer]
        found = 2.0 * factors["lora_B"].detach().double() @ factors["lora_A"].detach().double()
        u, s, vt = torch.linalg.svd(total)
        torch.testing.assert_close(found, u[:, :rank] * s[:rank] @ vt[:rank], rtol=1e-3, atol=1e-5)
        sizes = factors["lora_B"].norm(dim=0), factors["lora_A"].norm(dim=1)
        torch.testing.assert_close(*(v.detach()[: int((s > 1e-6).sum())] for v in sizes), rtol=1e-3, atol=1e-5)


def test_flex_hands_every_client_the_best_approximation_of_its_rank(federation: Any) -> None:
    space = Flex(rank=3)
    state = dict(federation(space, UNEQUAL).run(3).states[3].items())
    for rank in (1, 2, 3):
        handed = factors_of(space.adapter_payload(state, Job(0, 0, 3, 0, Budget(1, rank), 0.0)))
        for layer in LAYERS:
            whole = factors_of(state)[layer]
            u, s, vt = torch.linalg.svd(whole.dense)
            torch.testing.assert_close(handed[layer].dense, u[:, :rank] * s[:rank] @ vt[:rank], rtol=1e-4, atol=1e-6)


def test_absolute_targets_lose_what_few_clients_hold_and_increments_keep_it(federation: Any) -> None:
    """Nobody trains. Flex: what rank 1 could not hold counts for nothing in its upload."""
    for target, shrinks in (("absolute", True), ("increment", False)):
        space = Flex(rank=3, target=target)
        state = federation(space, (3, 1)).run(3).states[3]
        before = factors_of(dict(state.items()))["0"]
        for _ in range(3):
            deltas = []
            for client, rank in enumerate((3, 1)):
                job = Job(client, client, 3, 0, Budget(1, rank), 0.0)
                sent = {
                    n.removeprefix("factor/"): leaf
                    for n, leaf in space.adapter_payload(dict(state.items()), job).items()
                }
                deltas.append(space.decode_delta(state, job, sent))
            state = space.merge(state, space.combine(deltas, [0.5, 0.5]))
        after = factors_of(dict(state.items()))["0"]
        s, t = (torch.linalg.svdvals(q.dense) for q in (before, after))
        assert s[1] > 1e-3
        torch.testing.assert_close(t[0], s[0], rtol=1e-5, atol=0.0)
        torch.testing.assert_close(t[1], s[1] * (0.125 if shrinks else 1.0), rtol=1e-4, atol=1e-6)


def test_florist_adds_the_least_rank_that_holds_the_energy(rounds: Any) -> None:
    r = rounds("florist that cuts")
    delta = r.space.combine(r.raw, P)
    after = dict(r.space.merge(r.state, delta).items())
    for layer in LAYERS:
        step = pairs(delta)[layer].dense
        u, s, vt = torch.linalg.svd(step, full_matrices=False)
        share = s.square().cumsum(0) / s.square().sum()
        q = int((share < 0.5).sum()) + 1
        moved = after[f"adapted/{layer}.weight"].double() - dict(r.state.items())[f"adapted/{layer}.weight"].double()
        torch.testing.assert_close(moved, u[:, :q] * s[:q] @ vt[:q], rtol=1e-4, atol=1e-6)
        assert q < pairs(delta)[layer].rank
        assert norm(pairs(delta)[layer]) == pytest.approx(float(step.norm()), rel=1e-6)


@pytest.mark.parametrize("name", BOTH)
def test_every_method_of_the_family_learns(federation: Any, name: str) -> None:
    space, ranks = BOTH[name]
    run = federation(space, ranks, lr=0.3, steps=5).run(16)
    losses = [[u.metrics["loss"] for u in run.updates if u.job.version == v] for v in (0, 15)]
    assert not run.failed
    assert np.mean(losses[1]) < 0.95 * np.mean(losses[0])
