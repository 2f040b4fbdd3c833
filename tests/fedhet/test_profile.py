"""What a profile promises: exact nanoseconds, units in every error, and time that only availability can stretch."""

import json
import math

import numpy as np
import pytest
from flwr.app import ConfigRecord
from hypothesis import given
from hypothesis import strategies as st

from fedhet.profile import NS, Drift, Jitter, Profile, ProfileError, warp
from fedhet.streams import stream


def trip(profile, at=0, steps=10, batch=32, down=0, up=0, seed=0, **kw):
    return profile.trip(
        at_ns=at, steps=steps, batch=batch, bytes_down=down, bytes_up=up,
        flops_per_sample=kw.get("flops"), rng=stream(seed, "t", kw.get("job", 0)),
    )  # fmt: skip


@given(st.floats(1e-3, 100), st.integers(1, 1000), st.integers(0, 10**15))
def test_without_network_a_job_takes_exactly_its_steps(sec, steps, at):
    got = trip(Profile(sec_per_step=sec), at, steps)
    assert got.arrived_ns == at + round(sec * steps * NS) and got.downloaded_ns == at and got.lost is None


def test_the_three_ways_to_declare_a_speed():
    assert trip(Profile(sec_per_sample=0.01), steps=5, batch=20).arrived_ns == NS
    assert trip(Profile(flops_per_s=3e9), steps=10, batch=10, flops=1e7).arrived_ns == NS  # backward is twice forward
    # 100 samples in batches of 10, 5 epochs, 0.179 s a batch: the high-end class of a published FEMNIST measurement
    assert trip(Profile(sec_per_step=0.179), steps=50).arrived_ns == 8_950_000_000
    with pytest.raises(ProfileError, match="FLOPs per sample"):
        trip(Profile(flops_per_s=1e9))


def test_phases_follow_each_other():
    p = Profile(sec_per_step=0.1, downlink_bytes_per_s=1e6, uplink_bytes_per_s=5e5, latency_s=0.5)
    got = trip(p, down=2_000_000, up=1_000_000)
    assert (got.downloaded_ns, got.trained_ns, got.arrived_ns) == (2.5 * NS, 3.5 * NS, 6.0 * NS)


@pytest.mark.parametrize("dist", ["normal", "lognormal", "gamma"])
def test_jitter_has_mean_one_and_moves_nothing_else(dist):
    p = Profile(sec_per_step=0.1, compute_jitter=Jitter(dist, 0.2), latency_s=1.0)
    draws = np.array([trip(p, job=n).trained_ns - trip(p, job=n).downloaded_ns for n in range(10_000)]) / NS
    assert abs(draws.mean() - 1) < 3 * draws.std() / 100 and abs(draws.std() - 0.2) < 0.02
    assert {trip(p, job=n).downloaded_ns for n in range(50)} == {NS}


def test_a_dropout_happens_as_often_as_it_says_and_takes_its_time():
    p = Profile(sec_per_step=0.1, dropout_prob=0.3)
    trips = [trip(p, job=n) for n in range(5000)]
    lost = [t for t in trips if t.lost]
    assert abs(len(lost) / 5000 - 0.3) < 3 * math.sqrt(0.21 / 5000)
    assert {t.lost for t in lost} == {"dropout"} and all(0 <= t.arrived_ns <= NS for t in lost)
    assert 0.45 < np.mean([t.arrived_ns for t in lost]) / NS < 0.55
    assert trip(Profile(sec_per_step=0.1, dropout_prob=1.0, dropout_point="end")).arrived_ns == NS
    assert trip(Profile(sec_per_step=0.1, dropout_prob=1.0, dropout_point="start")).arrived_ns == 0


def test_switching_dropout_on_does_not_move_other_draws():
    jitter = Jitter("normal", 0.1)
    a = trip(Profile(sec_per_step=0.1, compute_jitter=jitter), job=5)
    b = trip(Profile(sec_per_step=0.1, compute_jitter=jitter, dropout_prob=1e-12), job=5)
    assert a == b


WINDOWS = ((1.0, 3.0), (4.0, 8.0))


@given(st.integers(0, 50 * NS), st.integers(0, 30 * NS), st.integers(0, 30 * NS))
def test_pausing_is_monotone_and_additive(at, a, b):
    once = warp(at, a + b, WINDOWS, 10.0)
    twice = warp(warp(at, a, WINDOWS, 10.0), b, WINDOWS, 10.0)
    assert once is not None and once >= at + a + b
    # where the first part ends exactly with a window, the second starts with the next one: the sum is the same
    assert once == twice
    assert warp(at, a + b + 1, WINDOWS, 10.0) > once or a + b == 0


@given(st.integers(0, 10**6 * NS))
def test_whole_periods_at_once_are_the_periods_one_by_one(work):
    laps, rest = divmod(work, 6 * NS)
    slow = warp(0, rest, WINDOWS, 10.0)
    assert warp(0, work, WINDOWS, 10.0) in (
        laps * 10 * NS + slow,
        (laps - 1) * 10 * NS + warp(0, rest + 6 * NS, WINDOWS, 10.0),
    )


def test_the_three_policies_of_a_client_that_goes_offline():
    def at(policy, **kw):
        p = Profile(sec_per_step=0.1, availability=WINDOWS, availability_period_s=10.0, offline_policy=policy, **kw)
        return trip(p, at=2 * NS, steps=20)

    assert at("pause").arrived_ns == 5 * NS
    assert (at("abort").arrived_ns, at("abort").lost) == (3 * NS, "offline")
    assert at("finish").arrived_ns == 4 * NS
    over = Profile(sec_per_step=0.1, availability=((0.0, 1.0),))
    assert trip(over, at=5 * NS).lost == "offline"
    assert trip(over, at=0, steps=50).lost == "offline"


def test_online_and_the_next_time_it_is():
    p = Profile(sec_per_step=1.0, availability=WINDOWS, availability_period_s=10.0)
    assert [p.online(t) for t in (0.0, 1.0, 2.9, 3.0, 4.0, 8.0, 11.5)] == [False, True, True, False, True, False, True]
    assert p.next_online(0.0) == 1.0 and p.next_online(3.5) == 4.0 and p.next_online(9.0) == 11.0
    assert Profile(sec_per_step=1.0, availability=((0.0, 1.0),)).next_online(2.0) is None


def test_drift_changes_compute_time_alone():
    p = Profile(sec_per_step=0.1, drift=Drift("step", factor=2.0, at_s=5.0), latency_s=1.0)
    assert trip(p).arrived_ns == 3 * NS and trip(p, at=5 * NS).arrived_ns == 9 * NS


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "exactly one of"),
        ({"sec_per_step": 1.0, "flops_per_s": 1.0}, "exactly one of"),
        ({"sec_per_step": 0.0}, "sec_per_step=0.0.*seconds"),
        ({"flops_per_s": math.inf}, "flops_per_s=inf.*FLOP/s"),
        ({"sec_per_step": 1.0, "uplink_bytes_per_s": 0}, "uplink_bytes_per_s=0.*bytes/s"),
        ({"sec_per_step": 1.0, "memory_bytes": -1}, "memory_bytes=-1.*bytes"),
        ({"sec_per_step": 1.0, "latency_s": -1}, "latency_s=-1.*seconds"),
        ({"sec_per_step": 1.0, "dropout_prob": 1.5}, "dropout_prob=1.5"),
        ({"sec_per_step": 1.0, "offline_policy": "wait"}, "offline_policy='wait'.*pause"),
        ({"sec_per_step": 1.0, "availability": ((3, 1),)}, r"\[3, 1\) s"),
        ({"sec_per_step": 1.0, "availability": ((0, 2), (1, 3))}, "disjoint"),
        ({"sec_per_step": 1.0, "availability": ((0, 20),), "availability_period_s": 10.0}, "period of 10.0 s"),
    ],
)
def test_what_makes_no_sense_is_named_with_its_unit(fields, told):
    with pytest.raises(ProfileError, match=told):
        Profile(**fields)


@given(
    st.builds(
        Profile,
        sec_per_step=st.floats(1e-6, 1e3),
        name=st.text(max_size=10),
        num_examples=st.integers(0, 10**6),
        uplink_bytes_per_s=st.floats(1, 1e12),
        compute_jitter=st.builds(Jitter, st.sampled_from(["none", "gamma"]), st.floats(0, 2)),
        dropout_prob=st.floats(0, 1),
        silent=st.booleans(),
        availability=st.sampled_from([(), WINDOWS]),
    )
)
def test_a_profile_crosses_flowers_records_whole(profile):
    record = ConfigRecord(profile.to_dict())
    assert Profile.from_dict(dict(record)) == profile
    assert Profile.from_dict(json.loads(json.dumps(profile.to_dict()))) == profile


def test_an_unknown_field_names_the_nearest():
    with pytest.raises(ProfileError, match="sec_per_step"):
        Profile.from_dict({"sec_per_stp": 1.0})
