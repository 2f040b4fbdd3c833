"""The number of values sent, and the base weights of server and clients, bit by bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedhet.engine.answer import Answer
from fedhet.engine.method import Method, Misfit
from fedhet.numerics.wire_format import decode, encode
from fedhet.types import Budget, Job
from strategies.budgets.fixed import Fixed
from strategies.rules.krum import Krum
from strategies.rules.median import Median
from strategies.schedules.sync import Sync
from strategies.spaces.exact_warm import ExactWarm
from strategies.spaces.fedex import FedEx
from strategies.spaces.ffa import Ffa
from strategies.spaces.flex import Flex
from strategies.spaces.florist import Florist
from strategies.spaces.lora import ledger
from strategies.spaces.lora.factors import Pair, stack
from strategies.spaces.padded_lora import PaddedLora
from strategies.spaces.rolora import RoLora
from strategies.spaces.stacked_lora import StackedLora

RANKS = (3, 2, 1, 2, 1)
SHAPES = {"0": (10, 6), "2": (3, 10)}
D, K = 13, 16
"""Outputs and inputs of both adapted layers together."""

HEAD = 20
"""Numbers of a payload's stamp."""

MOVING = {
    "stack": StackedLora(rank=3, send="stack"),
    "auto": StackedLora(rank=3),
    "florist": Florist(rank=3, energy=0.9),
    "exact_warm": ExactWarm(rank=3),
    "with parameters sent whole": StackedLora(rank=3, whole=("2.bias",)),
}


def kept_base(memory: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {n.removeprefix("kept."): leaf for n, leaf in memory["space"].items() if "factor/" not in n}


def whole(payload: Any) -> bool:
    return any(n.startswith("frozen/") for n in payload)


@pytest.mark.parametrize("name", MOVING)
def test_server_and_clients_hold_the_same_bits_over_twenty_rounds_missed_and_failed_ones_included(
    federation: Any, name: str
) -> None:
    run = federation(MOVING[name], RANKS, per_round=3, fate=lambda job: "dropout" if job.id % 9 == 4 else "").run(20)
    last = {job.client: job for job, _ in run.sent}
    assert set(last) == set(range(5))
    for client, job in last.items():
        base, server = kept_base(run.memories[client]), ledger.base_of(run.states[job.version])
        assert list(base) == [n for n in server if not n.startswith("frozen/")]
        assert all(torch.equal(base[n], server[n]) for n in base)
        assert ledger.fingerprint({**server, **base}) == ledger.hash_of(run.states[job.version])
    caught_up = [job for job, payload in run.sent if 0 <= job.held < job.version - 1 and not whole(payload)]
    assert len(caught_up) > 5, "nobody missed a version"
    assert {reason for _, reason in run.failed} == {"dropout"}
    assert len({ledger.hash_of(state) for state in run.states}) == 21, "a base that never moved proves nothing"


def test_everything_goes_to_a_client_whose_version_is_not_known_and_only_then(federation: Any) -> None:
    run = federation(StackedLora(rank=3), RANKS, fate=lambda job: "timeout" if job.id == 7 else "").run(4)
    assert [whole(p) for j, p in run.sent] == [j.held < 0 for j, _ in run.sent]
    assert sum(whole(p) for _, p in run.sent) == len(RANKS) + 1
    assert next(j for j, p in run.sent if whole(p) and j.version).client == 2


def test_weights_that_changed_on_a_device_are_found_out_and_sent_anew(federation: Any) -> None:
    run = federation(StackedLora(rank=3, send="stack"), RANKS).run(3)
    kept = run.memories[0]["space"]
    kept["kept.adapted/0.weight"] = kept["kept.adapted/0.weight"] + 1e-3
    run.device.model.module.overwrite({})  # a process that has not seen the right weights
    run.run(6)
    assert len(run.failed) == 1
    job, reason = run.failed[0]
    assert job.client == 0 and "base: the weights here are not those of version 3" in reason
    again = [(j, p) for j, p in run.sent if j.client == 0 and j.version > 3]
    assert again[0][0].held == -1 and whole(again[0][1]) and not whole(again[1][1])


def test_frozen_weights_are_part_of_the_hash_though_the_server_hashes_them_once(federation: Any) -> None:
    run = federation(StackedLora(rank=3), RANKS).run(2)
    base = ledger.base_of(run.states[2])
    assert ledger.fingerprint(base) == ledger.hash_of(run.states[2])
    other = {**base, "frozen/0.bias": base["frozen/0.bias"] + 1.0}
    assert ledger.fingerprint(other) != ledger.hash_of(run.states[2])
    assert ledger.fingerprint(other, ledger.still_of(base)) == ledger.hash_of(run.states[2])
    with pytest.raises(ledger.WrongBase):
        ledger.receive(other, ledger.deliver(run.states[2], 2))


def test_frozen_weights_are_kept_only_by_devices_that_were_made_with_others(federation: Any) -> None:
    run = federation(StackedLora(rank=3), RANKS)
    run.run(2)
    assert [n for n in run.memories[0]["space"] if "frozen" in n] == []
    other = federation(StackedLora(rank=3), RANKS)
    torch.manual_seed(77)
    with torch.no_grad():
        other.device.model.flat.normal_()
    other.run(2)
    assert [n for n in other.memories[0]["space"] if "frozen" in n] == ["kept.frozen/0.bias", "kept.frozen/2.bias"]
    other.device.model = other.world.model()  # the same device in a new process
    with torch.no_grad():
        other.device.model.flat.normal_()
    other.run(4)
    run.run(4)
    assert not other.failed and not run.failed
    assert np.array_equal(run.dense(run.states[4]), other.dense(other.states[4]))


def test_a_payload_that_comes_twice_is_taken_in_once(federation: Any) -> None:
    run = federation(StackedLora(rank=3, send="stack"), RANKS).run(2)
    job, payload = next((j, p) for j, p in run.sent if j.client == 0 and j.version == 1)
    assert any(n.startswith("past/1/") for n in payload)
    first = kept_base(run.memories[0])
    again = ledger.receive({**ledger.base_of(run.states[1]), **first}, dict(payload))
    assert all(torch.equal(again[n], first[n]) for n in first)
    assert job.held == 0


def test_a_device_that_lost_everything_says_so(federation: Any) -> None:
    run = federation(StackedLora(rank=3), RANKS).run(2)
    run.memories[0].clear()
    run.device.model.module.overwrite({})
    run.run(4)
    assert [(j.client, r.partition(":")[2][:6]) for j, r in run.failed] == [(0, " base:")]


UP = {
    "stacked_lora": (StackedLora(rank=3), lambda r, v: r * (D + K)),
    "padded_lora": (PaddedLora(rank=3), lambda r, v: r * (D + K)),
    "flex": (Flex(rank=3), lambda r, v: r * (D + K)),
    "florist": (Florist(rank=3), lambda r, v: r * (D + K)),
    "exact_warm": (ExactWarm(rank=3), lambda r, v: r * (D + K)),
    "ffa": (Ffa(rank=3), lambda r, v: r * D),
    "rolora": (RoLora(rank=3), lambda r, v: r * (K if v % 2 else D)),
}


@pytest.mark.parametrize("name", UP)
def test_an_update_is_as_many_numbers_as_the_formula_says(federation: Any, name: str) -> None:
    space, numbers = UP[name]
    run = federation(space, RANKS).run(4)
    assert len(run.updates) == 20
    for update in run.updates:
        assert run.numbers(update.delta) == numbers(RANKS[update.job.client], update.job.version)
        body = encode(update.delta)
        assert len(body) == 4 * run.numbers(update.delta) + 8 + int.from_bytes(body[:8], "little")


def down(run: Any, least: int = 2) -> list[tuple[int, int, int]]:
    """(client, version, numbers) of the payloads to clients that hold the version before."""
    found = [(j.client, j.version, run.numbers(p)) for j, p in run.sent if j.version >= least]
    assert len(found) >= 10 and all(j.held == j.version - 1 for j, _ in run.sent if j.version)
    return found


def test_a_stack_down_is_the_sum_of_ranks_and_auto_never_more_than_the_matrix(federation: Any) -> None:
    total = sum(RANKS)
    for *_, numbers in down(federation(StackedLora(rank=3, send="stack"), RANKS).run(5)):
        assert numbers == total * (D + K)
    for *_, numbers in down(federation(StackedLora(rank=3), RANKS).run(5)):
        assert numbers == sum(min(total * (d + k), d * k) for d, k in SHAPES.values()) == 60 + 30
    few = (1, 1)
    for *_, numbers in down(federation(StackedLora(rank=1), few).run(7)):
        assert numbers == 2 * 16 + 2 * 13


def test_warm_factors_down_are_those_of_the_client_s_rank(federation: Any) -> None:
    for client, _, numbers in down(federation(PaddedLora(rank=3), RANKS).run(4)):
        assert numbers == RANKS[client] * (D + K)
    for client, _, numbers in down(federation(Flex(rank=3, exclude=("2",)), RANKS).run(4)):
        assert numbers == RANKS[client] * 16
    for client, _, numbers in down(federation(Ffa(rank=3), RANKS).run(4)):
        assert numbers == RANKS[client] * D
    for client, version, numbers in down(federation(RoLora(rank=3), RANKS).run(6)):
        assert numbers == RANKS[client] * (D if version % 2 else K)


def test_a_residual_down_has_the_rank_of_a_covariance(federation: Any) -> None:
    """Two clients of rank 2: the residual has rank 2, so averages and residual cost the stack's four ranks."""
    run = federation(FedEx(rank=2, exclude=("2",)), (2, 2)).run(7)
    for *_, numbers in down(run):
        assert numbers == 2 * 2 * 16
    for update in run.updates:
        assert run.numbers(update.delta) == 2 * 16


def test_a_client_that_missed_versions_gets_their_stacks_until_the_matrix_is_smaller(federation: Any) -> None:
    run = federation(StackedLora(rank=1, exclude=("2",)), (1, 1, 1), per_round=1).run(25)
    seen = set()
    for job, payload in run.sent:
        if job.held >= 0:
            missed = job.version - job.held
            assert run.numbers(payload) == (missed * 16 if missed * 16 < 60 else 60)
            seen.add(missed)
    assert {1, 2} <= seen and max(seen) > 3


def test_a_stack_that_holds_less_than_its_rank_is_sent_compressed(federation: Any) -> None:
    space = StackedLora(rank=3)
    state = dict(federation(space, RANKS).states[0].items())
    g = torch.Generator().manual_seed(0)
    one = {n: Pair(torch.randn(d, 1, generator=g), torch.randn(1, k, generator=g)) for n, (d, k) in SHAPES.items()}
    thrice = {n: stack([p, p, p], [0.2, 0.3, 0.5]) for n, p in one.items()}
    for smallest, rank in ((True, 1), (False, 3)):
        after = ledger.advance(state, thrice, {}, smallest=smallest)
        assert after["past/1/left/0"].shape == (10, rank)
        expected = state["adapted/0.weight"].double() + one["0"].dense
        torch.testing.assert_close(after["adapted/0.weight"].double(), expected, rtol=1e-6, atol=1e-6)
        client = ledger.receive(ledger.base_of(state), ledger.deliver(after, 0))
        assert all(torch.equal(client[n], after[n]) for n in client)


def test_a_base_of_half_precision_keeps_a_single_precision_master(federation: Any, small_world: Any) -> None:
    model = small_world(2, torch.bfloat16).model()
    space = StackedLora(rank=2)
    state = space.begin(model)
    assert {leaf.dtype for leaf in state.values()} == {torch.float32}
    job = Job(0, 0, 0, 0, Budget(1, 2), 0.0)
    space.install(model, space.offer(state, job), job)
    assert model.params.dtype == torch.float32 and model.module.bases["0.weight"].dtype == torch.bfloat16
    g = torch.Generator().manual_seed(0)
    start = state["adapted/0.weight"].clone()
    for _ in range(40):
        step = {f"{n}.lora_B": torch.randn(d, 1, generator=g) * 1e-4 for n, (d, _) in SHAPES.items()}
        step |= {f"{n}.lora_A": torch.randn(1, k, generator=g) for n, (_, k) in SHAPES.items()}
        expected = state["adapted/0.weight"].double() + (step["0.lora_B"].double() @ step["0.lora_A"].double())
        state = space.merge(state, step)
        assert torch.equal(state["adapted/0.weight"], expected.float())
    moved = state["adapted/0.weight"] - start
    assert 0 < moved.abs().max() < 4e-3 < start.abs().max()


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda job, d: {**d, "0.lora_A": d["0.lora_A"] * float("nan")}, "non_finite"),
        (lambda job, d: {n.replace("0.", "1."): leaf for n, leaf in d.items()}, "names"),
        (lambda job, d: {n: leaf for n, leaf in d.items() if not n.startswith("2.")}, "names"),
        (lambda job, d: {**d, "0.lora_A": d["0.lora_A"].repeat(2, 1), "0.lora_B": d["0.lora_B"].repeat(1, 2)}, "shape"),
        (lambda job, d: {n: leaf.double() for n, leaf in d.items()}, "dtype"),
    ],
    ids=["not a number", "renamed", "missing", "rank above the budget's", "dtype"],
)
def test_bad_updates_are_gated_with_their_reason_and_the_rest_goes_on(federation: Any, spoil: Any, code: str) -> None:
    run = federation(StackedLora(rank=3), RANKS, spoil=lambda job, d: spoil(job, d) if job.client == 2 else d).run(3)
    assert {(job.client, reason) for job, reason in run.failed} == {(2, code)}
    honest = federation(StackedLora(rank=3), RANKS, fate=lambda job: "gone" if job.client == 2 else "").run(3)
    assert np.array_equal(run.dense(run.states[3]), honest.dense(honest.states[3])), "weights are renormalised"


def test_a_claim_of_another_base_version_is_gated(federation: Any) -> None:
    run = federation(StackedLora(rank=3), RANKS).run(2)
    (send, *_) = run.server.settle(run.server.now)
    update = run.device.answer(send.job, send.payload, run.memories[send.job.client])
    answer = Answer(send.job.id, send.job.client, 1, update.weight, {}, encode(update.delta), "", "")
    expects = run.server.expects(send.job)
    verdict = run.gate.check(answer, send.job.client, run.server.inflight, expects, run.server.roster)
    assert verdict.code == "version"
    assert decode(encode(update.delta), expects)


def test_a_device_with_another_alpha_refuses_to_train(small_world: Any) -> None:
    job = Job(0, 0, 0, 0, Budget(1), 0.0)
    server = StackedLora(rank=2, alpha=2.0)
    payload = server.offer(server.begin(small_world(1).model()), job)
    for other in (StackedLora(rank=2, alpha=4.0), StackedLora(rank=2, alpha_by_rank=False)):
        with pytest.raises(ValueError, match="alpha: the server scales by"):
            other.install(small_world(1).model(), payload, job)


def test_a_budget_above_the_largest_rank_is_refused_on_the_server(small_world: Any) -> None:
    space, job = StackedLora(rank=2), Job(0, 7, 0, 0, Budget(1, 3), 0.0)
    state = space.begin(small_world(1).model())
    for ask in (space.offer, space.expects):
        with pytest.raises(ValueError, match=r"budget gives client 7 rank 3, above space\.rank=2"):
            ask(state, job)
    with pytest.raises(ValueError, match="exact_warm is exact"):
        FedEx(rank=2).offer(state, Job(0, 7, 0, 0, Budget(1, 1), 0.0))


def test_rules_of_coordinates_fit_averaged_factors_and_no_products(federation: Any) -> None:
    class Plain:
        needs: frozenset[str] = frozenset()

    for space in (StackedLora(), Florist(), Flex(), FedEx(), ExactWarm()):
        with pytest.raises(Misfit, match="coordinates"):
            Method(Sync(), space, Median(), Plain(), Fixed(steps=1))  # type: ignore[arg-type]
    run = federation(PaddedLora(rank=3, target="increment"), RANKS, rule=Median()).run(2)
    assert not np.array_equal(run.dense(run.states[2]), run.dense(run.states[0]))
    for space in (StackedLora(rank=3), ExactWarm(rank=3), Flex(rank=3, target="increment")):
        run = federation(space, RANKS, rule=Krum(f=1)).run(2)
        assert not np.array_equal(run.dense(run.states[2]), run.dense(run.states[0]))


def test_the_same_run_ends_in_the_same_bits(federation: Any) -> None:
    a, b = (federation(StackedLora(rank=3, dropout=0.1), RANKS).run(3) for _ in range(2))
    assert encode(a.states[3]) == encode(b.states[3])
    other = federation(StackedLora(rank=3, dropout=0.1, seed=1), RANKS).run(3)
    assert encode(other.states[3]) != encode(a.states[3])
