"""Row sampling: as many active rows as the rank, exact sums, and inactive rows that do not change."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from clients.work.adam import Adam
from clients.work.sgd import Sgd
from fedhet.types import Budget, Job
from strategies.spaces.florist import Florist
from strategies.spaces.lora.sampling import chosen
from strategies.spaces.stacked_lora import StackedLora

WORK = {"momentum": Sgd(lr=0.3, momentum=0.9), "adam": Adam(lr=0.05)}


def trained(
    space: Any, world: Any, work: Any, *, rank: int = 2, steps: int = 9, client: int = 1, model: Any = None
) -> Any:
    """A device after a job, and what it brings."""
    device = model or world.model()
    state = space.begin(world.model())
    job = Job(0, client, 0, 0, Budget(9, rank), 0.0)
    payload = space.offer(state, job)
    device.extras.clear()
    space.install(device, payload, job)
    work.run(device, world.shard(client, 0), job, {})
    return device, dict(space.extract(device, payload).items())


class Watch:
    """Looks at a sampler before every forward pass, after it chose."""

    def __init__(self, device: Any) -> None:
        self.panel, self.seen = device.module.panel, []
        device.module.inner_layers()[0][1].register_forward_pre_hook(self._note)

    def _note(self, part: Any, given: Any) -> None:
        if part.training and self.panel.follower is not None:
            for name, rows in self.panel.follower.layers.items():
                self.seen.append((name, rows.active.clone(), rows.a.clone(), rows.b.clone()))


def watched(space: Any, world: Any, work: Any, rank: int, steps: int) -> tuple[Any, Watch]:
    device, state = world.model(), space.begin(world.model())
    job = Job(0, 1, 0, 0, Budget(steps, rank), 0.0)
    payload = space.offer(state, job)
    space.install(device, payload, job)
    watch = Watch(device)
    work.run(device, world.shard(1, 0), job, {})
    space.extract(device, payload)
    return device, watch


@pytest.mark.parametrize("space", [StackedLora, Florist])
@pytest.mark.parametrize("work", WORK)
def test_with_every_row_kept_it_is_the_plain_method_to_the_last_bit(small_world: Any, space: Any, work: str) -> None:
    # the small sides are 6 and 3: at these ranks a pool has no row to spare
    plain = trained(space(rank=6), small_world(2), WORK[work], rank=6)[1]
    pooled = trained(space(rank=6, pool=1, every=2), small_world(2), WORK[work], rank=6)[1]
    full = trained(space(rank=6, pool=5, every=2), small_world(2), WORK[work], rank=6)[1]
    for name, leaf in plain.items():
        assert torch.equal(full[name], leaf) and torch.equal(pooled[name], leaf)


def test_before_the_first_choice_it_is_the_plain_method(small_world: Any) -> None:
    world = small_world(2)
    plain = trained(StackedLora(rank=2), world, WORK["adam"])[1]
    waiting = trained(StackedLora(rank=2, pool=3, every=9), world, WORK["adam"])[1]
    for name, leaf in plain.items():
        torch.testing.assert_close(waiting[name], leaf, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("work", WORK)
def test_as_many_rows_as_the_rank_take_part_and_the_others_neither_add_nor_move(small_world: Any, work: str) -> None:
    device, watch = watched(StackedLora(rank=2, pool=3, every=2, explore=0.5), small_world(2), WORK[work], 2, 12)
    changes = back = 0
    for name in dict.fromkeys(n for n, *_ in watch.seen):
        looks = [look[1:] for look in watch.seen if look[0] == name]
        for (was, a_then, b_then), (kept, a, b) in pairwise(looks):
            assert int(kept.sum()) == 2 and not b[:, ~kept].any()
            still = ~was & ~kept
            assert torch.equal(a[still], a_then[still])
            both = kept & was
            assert not (both.any() and torch.equal(b[:, both], b_then[:, both])), "what is kept is trained"
            changes, back = changes + int((kept != was).any()), back + int((kept & ~was).sum())
    assert changes > 2 and back > 2, "something is meant to be chosen"
    for name, factor in device.module.panel.factors.items():
        grad, kept = factor["lora_B"].grad, device.module.panel.follower.layers[name].active
        assert grad[:, kept].any() and not grad[:, ~kept].any()


def test_a_row_comes_back_as_it_was_set_aside(small_world: Any) -> None:
    device, _ = watched(StackedLora(rank=2, pool=2, every=100), small_world(2), WORK["momentum"], 2, 4)
    sampler = device.module.panel.follower
    rows = next(iter(sampler.layers.values()))
    a, b = rows.a.clone(), rows.b.clone()
    assert bool(b[:, :2].any())
    swap = torch.tensor([False, False, True, True])
    sampler._swap(rows, swap)
    sampler._hold()
    rows.a.add_(1.0), rows.b.add_(1.0)
    sampler._hold()
    assert not rows.b[:, :2].any() and torch.equal(rows.a[:2], a[:2])
    sampler._swap(rows, ~swap)
    assert torch.equal(rows.a[:2], a[:2]) and torch.equal(rows.b[:, :2], b[:, :2])


def test_the_server_s_sum_is_exact_whatever_rows_each_client_kept(federation: Any, small_world: Any) -> None:
    space = StackedLora(rank=4, pool=3, every=2, explore=0.5, alpha=3.0, alpha_by_rank=False, rank_pattern={"2": 2})
    run = federation(space, [4, 2, 1], steps=8).run(2)
    assert not run.failed
    world = small_world(3)
    for version in range(2):
        state, shares, exact = run.states[version], [], 0.0
        for update in [u for u in run.updates if u.job.version == version]:
            device = world.model()
            space.install(device, space.offer(state, replace(update.job, held=-1)), update.job)
            Sgd(lr=0.3).run(device, world.shard(update.job.client, version), update.job, {})
            space.extract(device, {})
            name = device.module.panel.kind.name
            moved = {n: part.get_delta_weight(name).double() for n, part in device.module.inner_layers()}
            shares.append(update.weight)
            exact = exact + update.weight * np.concatenate([m.detach().numpy().ravel() for m in moved.values()])
        weights = [n for n in run.states[0] if n.startswith("adapted/")]
        got = [(run.states[version + 1][n].double() - state[n].double()).numpy().ravel() for n in weights]
        exact = exact / sum(shares)
        assert np.linalg.norm(np.concatenate(got) - exact) <= 1e-6 * np.linalg.norm(exact)


def test_choices_are_the_seed_s_and_differ_between_clients(small_world: Any) -> None:
    space = StackedLora(rank=2, pool=3, every=2, explore=0.5)
    first, again, other = (
        trained(space, small_world(4), WORK["adam"], client=c)[0].module.panel.follower for c in (1, 1, 2)
    )
    kept = [[s.active(n).tolist() for n in s.layers] for s in (first, again, other)]
    assert kept[0] == kept[1] != kept[2]
    settled = trained(StackedLora(rank=2, pool=3, every=2, explore=0.0), small_world(4), WORK["adam"])[0]
    assert all(settled.module.panel.follower.active(n).tolist() == [0, 1] for n in settled.module.panel.follower.layers)


def test_the_best_stay_and_the_tried_are_drawn_from_the_rest() -> None:
    score = torch.tensor([0.1, 5.0, 0.0, 3.0, 4.0, 0.2])
    assert chosen(score, 3, 0, np.random.default_rng(0)).nonzero()[:, 0].tolist() == [1, 3, 4]
    drawn = [chosen(score, 3, 1, np.random.default_rng(seed)) for seed in range(200)]
    assert all(int(d.sum()) == 3 and d[1] and d[4] for d in drawn)
    counts = torch.stack(drawn).sum(0)
    assert counts[3] > max(counts[[0, 2, 5]]) and min(counts[[0, 2, 5]]) > 0
    assert chosen(torch.zeros(5), 2, 2, np.random.default_rng(0)).sum() == 2


def test_one_device_serves_pools_and_plain_ranks_with_their_own_scalings(small_world: Any) -> None:
    """A pool of two for rank 2 is as wide as rank 4, with another alpha / r."""
    world = small_world(2)
    pooled = StackedLora(rank=4, pool=2, every=2, alpha=8.0, alpha_by_rank=False)
    plain = StackedLora(rank=4, alpha=8.0, alpha_by_rank=False)
    expected = trained(plain, world, WORK["momentum"], rank=4)[1]
    device = trained(pooled, world, WORK["momentum"], rank=2)[0]
    _, found = trained(plain, world, WORK["momentum"], rank=4, model=device)
    assert all(torch.equal(found[n], leaf) for n, leaf in expected.items())


@pytest.mark.parametrize(
    ("given", "says"), [({"pool": 0}, "pool=0"), ({"every": 0}, "every=0"), ({"explore": 1.5}, "explore=1.5")]
)
def test_values_out_of_range_are_named(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        StackedLora(**given)
