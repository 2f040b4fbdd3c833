"""Golden traces: the cohorts of every version, for a fleet small enough to compute by hand."""

import pytest

from clients.work.sgd import Sgd
from fedhet.engine.method import Method
from fedhet.engine.stopping import Limits
from fedhet.population.profile import Profile
from fedhet.population.roster import Clients
from fedhet.runs.event_log import read_rows
from fedhet.runs.experiment import Experiment
from fedhet.testing.quadratic import QuadraticWorld
from strategies.budgets.fixed import Fixed
from strategies.rules.mean import Mean
from strategies.schedules.fedbuff import FedBuff
from strategies.schedules.fedcompass import FedCompass
from strategies.schedules.fedfix import FedFix
from strategies.schedules.sync import Sync
from strategies.spaces.full import Full

WORLD = QuadraticWorld([1.0] * 3, [0.0, 1.0, 2.0])


def trace(schedule, tmp_path, limits, speeds=(1.0, 2.0, 3.0), steps=2):
    """(second, version, clients, staleness) of every combination; client i takes `speeds[i]` seconds a step."""
    clients = Clients.from_profiles([Profile(sec_per_step=s) for s in speeds]).with_examples(WORLD.examples())
    method = Method(schedule, Full(), Mean(), Sgd(lr=0.1), Fixed(steps=steps), name="t")
    Experiment(method, clients, WORLD, limits).run(tmp_path / "run")
    rows = read_rows(tmp_path / "run" / "events.jsonl")
    return [(r["t"], r["version"], r["clients"], r["staleness"]) for r in rows if r["event"] == "combined"]


def test_rounds_wait_for_the_slowest(tmp_path):
    got = trace(Sync(), tmp_path, Limits(versions=2))
    assert got == [(6.0, 1, [0, 1, 2], [0, 0, 0]), (12.0, 2, [0, 1, 2], [0, 0, 0])]


def test_a_deadline_closes_a_round_and_the_late_answer_is_dropped(tmp_path):
    """The round closes at 5 with clients 0 and 1; client 2 answers at 6, too late for it, and sits the next one out."""
    got = trace(Sync(deadline_seconds=5.0), tmp_path, Limits(versions=3))
    assert got == [(5.0, 1, [0, 1], [0, 0]), (9.0, 2, [0, 1], [0, 0]), (14.0, 3, [0, 1], [0, 0])]


def test_a_buffer_of_two_combines_every_second_answer(tmp_path):
    """Answers: 0 at 2, 4, 6, 8; 1 at 4, 8; 2 at 6; at one instant in order of dispatch. So at 4 the first answer of 0
    meets that of 1, and the second of 0 (still of version 0) waits for that of 2 at 6."""
    got = trace(FedBuff(size=2), tmp_path, Limits(seconds=9.0))
    assert got == [(4.0, 1, [0, 1], [0, 0]), (6.0, 2, [0, 2], [1, 1]), (8.0, 3, [0, 1], [1, 1])]


def test_windows_combine_at_fixed_times(tmp_path):
    """Window 4 s: client 0 is back at 2, 6, 10; client 1 at 4, 8, 12; client 2 at 6, then from 8 on at 14."""
    got = trace(FedFix(window_seconds=4.0), tmp_path, Limits(seconds=13.0))
    assert got == [(4.0, 1, [0, 1], [0, 0]), (8.0, 2, [0, 1, 2], [0, 0, 1]), (12.0, 3, [0, 1], [0, 0])]


def test_compass_lets_unequal_clients_arrive_together(tmp_path):
    """Client 0 is back at 2 and founds a group of 12 steps, due at 14; client 1 joins at 4 with floor(10/2) = 5 steps,
    client 2 at 6 with floor(8/3) = 2, and waits from 12 to 14."""
    schedule = FedCompass(q_min=2, q_max=12, q_init=2, latency_factor=1.0, join_slack=1.0)
    got = trace(schedule, tmp_path, Limits(seconds=15.0))
    assert got[:3] == [(2.0, 1, [0], [0]), (4.0, 2, [1], [1]), (6.0, 3, [2], [2])]
    assert got[3] == (14.0, 4, [0, 1, 2], [2, 1, 0])


@pytest.mark.parametrize("schedule", [Sync(), FedBuff(size=3), FedFix(window_seconds=2.0)])
def test_equal_clients_are_combined_together_under_every_schedule(tmp_path, schedule):
    got = trace(schedule, tmp_path, Limits(versions=3), speeds=(1.0, 1.0, 1.0))
    assert got == [(2.0 * v, v, [0, 1, 2], [0, 0, 0]) for v in (1, 2, 3)]
