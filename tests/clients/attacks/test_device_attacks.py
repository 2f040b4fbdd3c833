"""Attacks on a device: the update that an attacking client sends; honest clients are not affected."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from clients.attacks.alie import Alie
from clients.attacks.backdoor import Backdoor
from clients.attacks.base import AbstractAttack, Attacked
from clients.attacks.constant import Constant
from clients.attacks.free_rider import FreeRider
from clients.attacks.ipm import Ipm
from clients.attacks.label_flip import LabelFlip
from clients.attacks.mimic import Mimic
from clients.attacks.min_max import MinMax
from clients.attacks.noise import Noise
from clients.attacks.replay import Replay
from clients.attacks.scaling import Scaling
from clients.attacks.sign_flip import SignFlip
from clients.data.shard import ClientShard
from clients.work.scaffold import Scaffold
from clients.work.sgd import Sgd
from fedhet.model.flat_model import Model
from fedhet.types import Budget, Job, Memory

WORK = Sgd(lr=0.1, batch=4)
EVIL: dict[str, Any] = {"clients": [7]}


def model_of() -> Model:
    torch.manual_seed(0)
    return Model(nn.Sequential(nn.Flatten(), nn.Linear(16, 5)))


def shard_of(client: int = 7, turn: int = 0) -> ClientShard:
    g = torch.Generator().manual_seed(1)
    x, y = torch.rand(40, 1, 4, 4, generator=g), torch.randint(0, 5, (40,), generator=g)
    return ClientShard(x, y, np.arange(client % 8, 40, 2), 3, client, turn)


def sent(work: Any, client: int = 7, turn: int = 0, memory: Memory | None = None) -> tuple[torch.Tensor, Any]:
    """The update a client would send for one job of three steps, and its metrics."""
    model = model_of()
    start = model.params.clone()
    job = Job(0, client, 0, turn, Budget(3), 0.0)
    metrics = work.run(model, shard_of(client, turn), job, {} if memory is None else memory)
    return model.params - start, metrics


ALL: list[AbstractAttack] = [
    SignFlip(**EVIL),
    Scaling(**EVIL),
    Noise(**EVIL),
    Constant(**EVIL),
    Replay(**EVIL, factor=2.0),
    FreeRider(**EVIL),
    LabelFlip(**EVIL),
    Backdoor(**EVIL),
    Alie(**EVIL),
    Ipm(**EVIL),
    Mimic(**EVIL),
    MinMax(**EVIL),
]
IDS = [type(a).__name__ for a in ALL]


@pytest.mark.parametrize("attack", ALL, ids=IDS)
def test_honest_clients_are_untouched(attack: AbstractAttack) -> None:
    update, metrics = sent(WORK, client=3)
    got, reported = sent(attack(WORK), client=3)
    assert torch.equal(got, update) and reported == metrics


@pytest.mark.parametrize("attack", ALL, ids=IDS)
def test_an_attacker_sends_something_else_and_reports_plausible_numbers(attack: AbstractAttack) -> None:
    update, metrics = sent(WORK)
    got, reported = sent(attack(WORK))
    assert not torch.equal(got, update)
    assert set(reported) == set(metrics) and all(np.isfinite(v) for v in reported.values())


@pytest.mark.parametrize("attack", ALL, ids=IDS)
def test_an_attack_repeats_itself_bit_for_bit(attack: AbstractAttack) -> None:
    assert torch.equal(torch.nan_to_num(sent(attack(WORK))[0]), torch.nan_to_num(sent(attack(WORK))[0]))


@pytest.mark.parametrize("attack", ALL, ids=IDS)
def test_an_attacked_work_is_a_work_like_the_one_inside(attack: AbstractAttack) -> None:
    around = attack(Scaffold(batch=9))
    assert isinstance(around, Attacked)
    assert around.batch == 9 and around.needs == Scaffold.needs


def test_forgeries_are_what_their_equations_say() -> None:
    update, _ = sent(WORK)
    close: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-7}
    assert torch.allclose(sent(SignFlip(**EVIL, strength=10.0)(WORK))[0], -10 * update, **close)
    assert torch.allclose(sent(Scaling(**EVIL, factor=25.0)(WORK))[0], 25 * update, **close)
    assert sent(Constant(**EVIL)(WORK))[0].isnan().all()
    assert (sent(Constant(**EVIL, value=1e30)(WORK))[0] == 1e30).all()
    some = sent(Constant(**EVIL, value="inf", share=0.1)(WORK))[0]  # type: ignore[arg-type]  # text from a file
    assert some.isinf().sum() == round(0.1 * len(update))
    assert torch.allclose(some[some.isfinite()], update[some.isfinite()], **close)
    lost = sent(Constant(**EVIL, value=0.0, share=0.001)(WORK))[0]
    assert (lost != update).sum() <= 1 <= (lost == 0).sum()


def test_noise_has_the_law_it_says() -> None:
    update, _ = sent(WORK)
    gaussian = sent(Noise(**EVIL, scale=3.0)(WORK))[0]
    assert 2.0 < float(gaussian.std()) < 4.0 and abs(float(gaussian.mean())) < 1.5
    uniform = sent(Noise(**EVIL, law="uniform", scale=2.0)(WORK))[0]
    assert float(uniform.min()) > -1e-6 and float(uniform.max()) < 2.0 and 0.7 < float(uniform.mean()) < 1.3
    quiet = sent(Noise(**EVIL, relative=True)(WORK))[0]
    assert 0.5 < float(quiet.norm() / update.norm()) < 2.0
    assert not torch.equal(gaussian, sent(Noise(**EVIL, scale=3.0)(WORK), turn=1)[0])


def test_a_replay_sends_the_first_update_forever() -> None:
    memory: Memory = {}
    work = Replay(**EVIL)(WORK)
    first, _ = sent(work, turn=0, memory=memory)
    assert torch.equal(first, sent(WORK, turn=0)[0])
    assert torch.allclose(sent(work, turn=1, memory=memory)[0], first, atol=1e-7)
    assert not torch.allclose(sent(WORK, turn=1)[0], first, atol=1e-4)
    assert set(memory) == {"attack.first"}


def test_the_inner_work_keeps_its_own_memory_and_sees_no_other() -> None:
    plain: Memory = {}
    mixed: Memory = {}
    for turn in range(2):
        model, job = model_of(), Job(0, 7, 0, turn, Budget(3), 0.0)
        model.extras["control"] = torch.zeros_like(model.params)
        Scaffold(batch=4).run(model, shard_of(7, turn), job, plain)
        model = model_of()
        model.extras["control"] = torch.zeros_like(model.params)
        Replay(**EVIL)(Scaffold(batch=4)).run(model, shard_of(7, turn), job, mixed)
    assert set(mixed) == {*plain, "attack.first"}
    assert all(torch.equal(mixed[k], plain[k]) for k in plain)


def test_a_free_rider_sends_nothing_or_the_step_of_the_others() -> None:
    assert not sent(FreeRider(**EVIL)(WORK))[0].any()
    work, memory = FreeRider(**EVIL, kind="delta")(WORK), {}  # type: tuple[Any, Memory]
    assert not sent(work, memory=memory)[0].any()
    model, job = model_of(), Job(1, 7, 1, 1, Budget(3), 0.0)
    with torch.no_grad():
        model.params.add_(0.25)
    given = model.params.clone()
    metrics = work.run(model, shard_of(7, 1), job, memory)
    assert model.params - given == pytest.approx(torch.full_like(given, 0.25), abs=1e-6)
    assert metrics["loss"] > 0 and metrics["steps"] == 3
    noisy = sent(FreeRider(**EVIL, noise=0.5)(WORK))[0]
    assert 0.3 < float(noisy.std()) < 0.7


def test_flipped_labels_are_mirrored_in_the_models_classes() -> None:
    update, _ = sent(LabelFlip(**EVIL)(WORK))
    model, job, data = model_of(), Job(0, 7, 0, 0, Budget(3), 0.0), shard_of()
    start = model.params.clone()

    class Mirrored:
        def __len__(self) -> int:
            return len(data)

        def batches(self, size: int) -> Any:
            return ((x, 4 - y) for x, y in data.batches(size))

    WORK.run(model, Mirrored(), job, {})  # type: ignore[arg-type]
    assert torch.equal(update, model.params - start)


def test_a_backdoor_marks_a_share_of_every_batch_and_nothing_outside() -> None:
    attack = Backdoor(**EVIL, target=2, share=0.3, size=2, value=9.0)
    x, y = shard_of().all_samples()
    before = x.clone(), y.clone()
    marked, labels = attack.change(x, y, 5)
    count = int(np.ceil(0.3 * len(x)))
    assert (marked[:count, :, 2:, 2:] == 9.0).all() and (labels[:count] == 2).all()
    assert torch.equal(marked[:count, :, :2], x[:count, :, :2]) and torch.equal(
        marked[:count, ..., :2], x[:count, ..., :2]
    )
    assert torch.equal(marked[count:], x[count:]) and torch.equal(labels[count:], y[count:])
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])
    flat = attack.mark(torch.zeros(3, 10))
    assert (flat[:, 6:] == 9.0).all() and not flat[:, :6].any()
    with pytest.raises(ValueError, match="5 classes"):
        sent(Backdoor(**EVIL, target=5)(WORK))


def test_a_backdoor_can_be_boosted() -> None:
    once, _ = sent(Backdoor(**EVIL)(WORK))
    assert torch.allclose(sent(Backdoor(**EVIL, boost=8.0)(WORK))[0], 8 * once, rtol=1e-4, atol=1e-6)


def test_a_lone_colluder_guesses_from_parts_of_its_data() -> None:
    job, rows = Job(0, 7, 0, 0, Budget(3), 0.0), []
    for part in range(4):
        model, data = model_of(), shard_of()
        x, y = (t[part::4] for t in data.all_samples())
        rng = data.rng(f"batches, part {part}")

        class Quarter:
            def batches(self, size: int, x: Any = x, y: Any = y, rng: Any = rng) -> Any:
                while True:
                    order = torch.from_numpy(rng.permutation(len(x)))
                    yield from ((x[p], y[p]) for p in order.split(size))

        start = model.params.clone()
        WORK.run(model, Quarter(), job, {})  # type: ignore[arg-type]
        rows.append(model.params - start)
    guess = torch.stack(rows)
    close: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-7}
    assert torch.allclose(sent(Alie(**EVIL, z=1.5)(WORK))[0], guess.mean(0) - 1.5 * guess.std(0), **close)
    assert torch.allclose(sent(Ipm(**EVIL, tau=0.5)(WORK))[0], -0.5 * guess.mean(0), **close)
    assert torch.allclose(sent(Mimic(**EVIL, row=1)(WORK))[0], guess[1], **close)


def test_attackers_are_a_fraction_drawn_once_from_the_seed() -> None:
    attack = SignFlip(fraction=0.3, population=20, seed=4)
    assert len(attack.attackers) == 6 and attack.attackers < set(range(20))
    assert attack.attackers == LabelFlip(fraction=0.3, population=20, seed=4).attackers
    assert attack.attackers != SignFlip(fraction=0.3, population=20, seed=5).attackers
    assert SignFlip(fraction=0.1, population=20, seed=4).attackers < attack.attackers
    assert [c in attack for c in range(20)] == [c in attack.attackers for c in range(20)]
    assert SignFlip(clients=[3, 1], fraction=0.9, population=20).attackers == {1, 3}
    assert SignFlip(fraction=0.0, population=20).attackers == frozenset()


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (SignFlip, {"fraction": 1.5}),
        (SignFlip, {"clients": None}),
        (SignFlip, {"strength": 0.0}),
        (Scaling, {"factor": float("inf")}),
        (Noise, {"law": "cauchy"}),
        (Noise, {"scale": 0.0}),
        (Constant, {"share": 0.0}),
        (Replay, {"factor": float("nan")}),
        (FreeRider, {"kind": "lazy"}),
        (FreeRider, {"noise": -1.0}),
        (Backdoor, {"target": -1}),
        (Backdoor, {"share": 2.0}),
        (Backdoor, {"size": 0}),
        (Backdoor, {"boost": float("nan")}),
        (Alie, {"z": float("inf")}),
        (Alie, {"z": 1.0, "optimise": True}),
        (Ipm, {"tau": 0.0}),
        (Mimic, {"row": -1}),
        (MinMax, {"bound": "median"}),
        (MinMax, {"direction": "up"}),
    ],
)
def test_values_out_of_range_are_named(kind: Any, bad: dict[str, Any]) -> None:
    name = "population" if bad == {"clients": None} else next(iter(bad))
    with pytest.raises(ValueError, match=name):
        kind(**{**EVIL, **bad})
