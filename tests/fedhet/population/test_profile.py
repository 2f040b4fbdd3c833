"""Profiles: exact nanoseconds, units in every error, and durations that only availability extends."""

import dataclasses
import json
import math

import numpy as np
import pytest
from flwr.app import ConfigRecord
from hypothesis import example, given
from hypothesis import strategies as st

from fedhet.numerics.rng import stream
from fedhet.population.availability import calendar, seconds
from fedhet.population.profile import NS, POLICIES, Drift, Jitter, Profile, ProfileError, warp
from fedhet.population.roster import Clients


def trip(profile, at=0, steps=10, batch=32, down=0, up=0, seed=0, **kw):
    return profile.simulate_timing(
        at_ns=at, steps=steps, batch=batch, bytes_down=down, bytes_up=up,
        flops_per_sample=kw.get("flops"), rng=stream(seed, "t", kw.get("job", 0)),
        memory_bytes=kw.get("memory", 0.0),
    )  # fmt: skip


@given(st.floats(1e-3, 100), st.integers(1, 1000), st.integers(0, 10**15))
def test_without_network_a_job_takes_exactly_its_steps(sec, steps, at):
    got = trip(Profile(sec_per_step=sec), at, steps)
    assert got.arrived_ns == at + round(sec * steps * NS) and got.downloaded_ns == at and got.lost is None


@given(st.floats(1e-3, 100), st.integers(1, 1000), st.sampled_from(["sec_per_step", "sec_per_sample"]))
def test_twice_the_steps_take_twice_as_long(sec, steps, field):
    p = Profile(**{field: sec}, latency_s=0.25)
    one, two = trip(p, steps=steps), trip(p, steps=2 * steps)
    # a duration is rounded to a nanosecond once: twice a rounded one may be a nanosecond off
    assert abs((two.trained_ns - two.downloaded_ns) - 2 * (one.trained_ns - one.downloaded_ns)) <= 1
    assert two.arrived_ns - two.trained_ns == one.arrived_ns - one.trained_ns == NS // 4


def test_equal_seeds_give_equal_logs_and_others_do_not():
    p = Profile(
        sec_per_step=0.1, latency_s=0.1, compute_jitter=Jitter("gamma", 0.3), network_jitter=Jitter("lognormal", 0.3),
        drift=Drift("sine", amplitude=0.5, period_s=7.0), availability=WINDOWS, availability_period_s=10.0,
        dropout_prob=0.3,
    )  # fmt: skip

    def log(seed):
        return [trip(p, at=n * NS, seed=seed, job=n) for n in range(200)]

    assert log(1) == log(1) and log(1) != log(2) and {t.lost for t in log(1)} == {None, "dropout"}


def test_a_silent_client_takes_the_same_trips():
    """Silence is about who hears of a loss, not about when it happens."""
    loud, silent = (Profile(sec_per_step=0.1, dropout_prob=0.5, silent=flag) for flag in (False, True))
    assert [trip(loud, job=n) for n in range(50)] == [trip(silent, job=n) for n in range(50)]


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


@pytest.mark.parametrize("dist", ["normal", "lognormal", "gamma"])
@pytest.mark.parametrize("other", [{"dropout_prob": 1e-12}, {"network_jitter": Jitter("gamma", 0.3)}])
def test_a_changed_setting_does_not_move_other_draws(dist, other):
    rngs = stream(0, "t"), stream(0, "t")
    times = []
    for rng, extra in zip(rngs, ({}, other), strict=True):
        p = Profile(sec_per_step=0.1, latency_s=1.0, compute_jitter=Jitter(dist, 0.1), **extra)
        got = p.simulate_timing(at_ns=0, steps=9, batch=1, bytes_down=0, bytes_up=0, flops_per_sample=None, rng=rng)
        times.append(got.trained_ns - got.downloaded_ns)
    assert times[0] == times[1] != round(0.9 * NS) and rngs[0].random() == rngs[1].random()


WINDOWS = ((1.0, 3.0), (4.0, 8.0))


def walked(at, work, windows, period):
    """Reachable whole seconds counted one by one: an independent, slow warp."""
    while work:
        inside = any(a <= (at % period if period else at) < b for a, b in windows)
        if not inside and not period and at >= windows[-1][1]:
            return None
        at, work = at + 1, work - inside
    return at


@st.composite
def calendars(draw):
    """Windows on whole seconds, some of which touch each other or the period's ends."""
    cuts = sorted(draw(st.lists(st.integers(0, 20), min_size=2, max_size=8)))
    windows = tuple((float(a), float(b)) for a, b in zip(cuts[::2], cuts[1::2], strict=False) if a < b)
    return windows or ((3.0, 9.0),), draw(st.sampled_from([None, 20.0, 23.0]))


@given(calendars(), st.integers(0, 70), st.integers(0, 60))
def test_a_warp_is_the_reachable_seconds_counted_one_by_one(when, at, work):
    windows, period = when
    want = walked(at, work, windows, period)
    assert warp(at * NS, work * NS, windows, period) == (None if want is None else want * NS)


@given(calendars(), st.integers(0, 50 * NS), st.sampled_from([0, 1, 2 * NS, 7 * NS + 3]), st.integers(0, 30 * NS))
def test_pausing_is_monotone_and_additive(when, at, a, b):
    windows, period = when
    once, part = warp(at, a + b, windows, period), warp(at, a, windows, period)
    if once is None:
        assert part is None or warp(part, b, windows, period) is None
    else:
        assert once >= at + a + b and part <= once
        assert warp(part, b, windows, period) == once
        later = warp(at, a + b + 1, windows, period)
        assert later is None or later > once


@given(calendars(), st.integers(0, 70))
def test_a_calendar_knows_who_is_reachable_when(when, at):
    windows, period = when
    known = calendar(windows, period)
    inside = [any(a <= (s % period if period else s) < b for a, b in windows) for s in range(140)]
    first = next((s for s in range(at, 140) if inside[s]), None)
    assert known.online(at * NS) == inside[at]
    assert known.next_online(at * NS) == (None if first is None else first * NS)
    if first is not None:
        end = next((s for s in range(first, 140) if not inside[s]), None)
        assert known.until(first * NS) == (None if end is None else end * NS)


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


def test_a_night_that_crosses_the_periods_end_is_one():
    night = ((0.0, 6.0), (18.0, 24.0))
    p = Profile(sec_per_step=1.0, availability=night, availability_period_s=24.0, offline_policy="abort")
    assert trip(p, at=20 * NS, steps=8).arrived_ns == 28 * NS and trip(p, at=20 * NS, steps=8).lost is None
    assert (trip(p, at=20 * NS, steps=11).arrived_ns, trip(p, at=20 * NS, steps=11).lost) == (30 * NS, "offline")


def test_work_that_outlasts_the_last_window_is_lost_when_it_closes():
    p = Profile(sec_per_step=1.0, availability=((0.0, 10.0), (20.0, 30.0)), downlink_bytes_per_s=1.0)
    got = trip(p, down=15, steps=100)
    assert (got.downloaded_ns, got.trained_ns, got.arrived_ns, got.lost) == (25 * NS, 30 * NS, 30 * NS, "offline")


def test_a_dropout_keeps_to_the_policy_too():
    def lost(policy):
        windows = ((0.0, 5.0), (20.0, 30.0))
        sure = {"dropout_prob": 1.0, "dropout_point": "end"}
        got = trip(Profile(sec_per_step=1.0, availability=windows, offline_policy=policy, **sure), steps=8)
        return got.arrived_ns / NS, got.lost

    assert [lost(p) for p in POLICIES] == [(23.0, "dropout"), (5.0, "offline"), (8.0, "dropout")]


@given(
    calendars(),
    st.sampled_from(POLICIES),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from(["uniform", "start", "end"]),
    st.integers(0, 60 * NS),
    st.integers(0, 10),
    st.integers(0, 30),
    st.integers(0, 10),
    st.integers(0, 99),
)
def test_phases_never_run_backward(when, policy, prob, point, at, down, steps, up, job):
    p = Profile(
        sec_per_step=1.0,
        downlink_bytes_per_s=1.0,
        uplink_bytes_per_s=1.0,
        availability=when[0],
        availability_period_s=when[1],
        offline_policy=policy,
        dropout_prob=prob,
        dropout_point=point,
        network_jitter=Jitter("lognormal", 0.5),
        compute_jitter=Jitter("gamma", 0.5),
        drift=Drift("sine", amplitude=0.5),
    )
    got = trip(p, at, steps, down=down, up=up, job=job)
    assert at == got.sent_ns <= got.downloaded_ns <= got.trained_ns <= got.arrived_ns
    assert got.lost != "dropout" if prob == 0 else got.lost is not None if prob == 1 else True
    assert got == trip(p, at, steps, down=down, up=up, job=job)
    if when[1] is not None and policy != "abort":
        assert got.lost != "offline", "there is always a next window"


def test_online_and_the_next_time_it_is():
    p = Profile(sec_per_step=1.0, availability=WINDOWS, availability_period_s=10.0)
    assert [p.online(t) for t in (0.0, 1.0, 2.9, 3.0, 4.0, 8.0, 11.5)] == [False, True, True, False, True, False, True]
    assert p.next_online(0.0) == 1.0 and p.next_online(3.5) == 4.0 and p.next_online(9.0) == 11.0
    assert Profile(sec_per_step=1.0, availability=((0.0, 1.0),)).next_online(2.0) is None


@given(st.floats(0, 1e9), st.floats(0.001, 0.9))
@example(98765432.1, 0.123456789)
def test_who_is_waited_for_is_online_when_the_time_comes(now, opens):
    """After months a float of seconds is coarser than a nanosecond; nobody may be woken a moment too early."""
    p = Profile(sec_per_step=1.0, availability=((opens, 1.0),), availability_period_s=1.1)
    then = p.next_online(now)
    assert then >= now and p.online(then)
    clients = Clients.from_profiles([p])
    then = clients.next_online(now)
    assert (then is None) == p.online(now) and (then is None or (then > now and clients.online(0, then)))


@given(st.integers(0, 1 << 62))
def test_seconds_are_not_before_their_nanosecond_and_hardly_after(at):
    assert round(seconds(at) * NS) >= at and 0 <= seconds(at) - at / NS <= math.ulp(at / NS)


def test_drift_changes_compute_time_alone():
    p = Profile(sec_per_step=0.1, drift=Drift("step", factor=2.0, at_s=5.0), latency_s=1.0)
    assert trip(p).arrived_ns == 3 * NS and trip(p, at=5 * NS).arrived_ns == 9 * NS
    assert trip(p, at=4 * NS).arrived_ns == 8 * NS, "what counts is when training starts, a second after the dispatch"


def test_a_random_walk_is_one_path_in_bounds():
    drift = Drift("random_walk", sigma=0.3, period_s=10.0, seed=7)
    path = [drift.at(t) for t in range(0, 4000, 5)]
    assert path[0] == path[1] == 1.0 and path == [drift.at(t) for t in range(0, 4000, 5)]
    assert path[::2] == path[1::2] and len(set(path)) > 100 and 0.25 <= min(path) < max(path) <= 4.0 + 1e-12
    assert path != [Drift("random_walk", sigma=0.3, period_s=10.0, seed=8).at(t) for t in range(0, 4000, 5)]
    moves = np.diff(np.log([Drift("random_walk", sigma=1e-3, seed=3).at(t) for t in range(2000)]))
    assert abs(moves.std() / 1e-3 - 1) < 3 / math.sqrt(2 * 2000)
    assert Drift("random_walk", sigma=1e300, period_s=1.0).at(50.0) in (pytest.approx(0.25), pytest.approx(4.0))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "exactly one of"),
        ({"sec_per_step": 1.0, "flops_per_s": 1.0}, "exactly one of"),
        ({"sec_per_step": 1.0, "flops_per_s": 1.0, "sec_per_sample": 1.0}, "exactly one of"),
        ({"sec_per_step": 0.0}, "sec_per_step=0.0.*seconds"),
        ({"sec_per_step": math.nan}, "sec_per_step=nan.*seconds"),
        ({"sec_per_sample": -1.0}, "sec_per_sample=-1.0.*seconds"),
        ({"sec_per_step": 1.0, "downlink_bytes_per_s": math.nan}, "downlink_bytes_per_s=nan.*bytes/s"),
        ({"sec_per_step": 1.0, "latency_s": math.inf}, "latency_s=inf.*seconds"),
        ({"sec_per_step": 1.0, "dropout_point": "middle"}, "dropout_point='middle'.*uniform"),
        ({"sec_per_step": 1.0, "max_rank": -1}, "max_rank=-1.*ranks"),
        ({"sec_per_step": 1.0, "availability": ((-1, 2),)}, r"availability \[-1, 2\) s"),
        ({"sec_per_step": 1.0, "availability": ((0, 2),), "availability_period_s": 0.0}, "period_s=0.0.*seconds"),
        ({"sec_per_step": 1.0, "availability_period_s": 5.0}, "availability_period_s needs.*seconds"),
        ({"flops_per_s": math.inf}, "flops_per_s=inf.*FLOP/s"),
        ({"sec_per_step": 1.0, "uplink_bytes_per_s": 0}, "uplink_bytes_per_s=0.*bytes/s"),
        ({"sec_per_step": 1.0, "memory_bytes": -1}, "memory_bytes=-1.*bytes"),
        ({"sec_per_step": 1.0, "latency_s": -1}, "latency_s=-1.*seconds"),
        ({"sec_per_step": 1.0, "dropout_prob": 1.5}, "dropout_prob=1.5"),
        ({"sec_per_step": 1.0, "offline_policy": "wait"}, "offline_policy='wait'.*pause"),
        ({"sec_per_step": 1.0, "availability": ((3, 1),)}, r"\[3, 1\) s"),
        ({"sec_per_step": 1.0, "availability": ((0, 2), (1, 3))}, "disjoint"),
        ({"sec_per_step": 1.0, "availability": ((0, 20),), "availability_period_s": 10.0}, "period of 10.0 s"),
        ({"sec_per_step": 1.0, "availability": ((0, math.inf),)}, "finite"),
        ({"sec_per_step": 1.0, "availability": ((1e-10, 2e-10),)}, "nanosecond"),
        ({"sec_per_step": 1.0, "num_examples": -1}, "num_examples=-1.*samples"),
        ({"sec_per_step": 1.0, "num_examples": math.nan}, "num_examples=nan"),
        ({"sec_per_step": 1.0, "energy_joule_per_step": 0.0}, "energy_joule_per_step=0.0.*joules"),
        ({"sec_per_step": 1.0, "battery_joule": math.inf}, "battery_joule=inf.*joules"),
    ],
)
def test_what_makes_no_sense_is_named_with_its_unit(fields, told):
    with pytest.raises(ProfileError, match=told):
        Profile(**fields)


positive = st.floats(1e-6, 1e12)
labels = st.text(st.characters(codec="utf-8"), max_size=10)
jitters = st.one_of(
    st.builds(Jitter, st.just("normal"), st.floats(0, 0.33)),
    st.builds(Jitter, st.sampled_from(["none", "lognormal", "gamma"]), st.floats(0, 3)),
)
drifts = st.builds(
    Drift, st.sampled_from(["none", "step", "sine", "random_walk"]), positive, st.floats(0, 1e6), st.floats(0, 0.99),
    positive, st.floats(0, 3), st.integers(0, 2**31),
)  # fmt: skip
others = st.fixed_dictionaries(
    {},
    optional={
        "name": labels, "device_class": labels, "num_examples": st.integers(0, 10**9), "max_rank": st.integers(0, 64),
        "compute_jitter": jitters, "network_jitter": jitters, "drift": drifts, "latency_s": st.floats(0, 1e3),
        "memory_bytes": positive, "uplink_bytes_per_s": positive, "downlink_bytes_per_s": positive,
        "offline_policy": st.sampled_from(POLICIES), "dropout_prob": st.floats(0, 1),
        "dropout_point": st.sampled_from(["uniform", "start", "end"]), "silent": st.booleans(),
        "energy_joule_per_step": positive, "battery_joule": positive,
    },
)  # fmt: skip


@given(st.sampled_from(["sec_per_step", "sec_per_sample", "flops_per_s"]), positive, calendars(), others)
def test_a_profile_is_unchanged_by_flowers_records(field, speed, when, given):
    profile = Profile(**{field: speed}, availability=when[0], availability_period_s=when[1], **given)
    assert Profile.from_dict(dict(ConfigRecord(profile.to_dict()))) == profile
    assert Profile.from_dict(json.loads(json.dumps(profile.to_dict()))) == profile


def test_no_field_is_left_behind():
    p = Profile(
        "n", "c", 1, 2, None, 0.5, None, Jitter("gamma", 0.1), Drift("step", 2.0, 3.0), 4.0, 5.0, 6.0, 0.1,
        Jitter("lognormal", 0.2), WINDOWS, 10.0, "abort", 0.3, "end", True,
        0.2, 9.0,
    )  # fmt: skip
    told = p.to_dict()
    assert set(told) == {f.name for f in dataclasses.fields(Profile)} - {"flops_per_s", "sec_per_sample"}
    assert all(type(v) in (str, int, float, bool) for v in told.values()) and Profile.from_dict(told) == p


def test_what_a_table_leaves_empty_in_a_jitter_or_drift_is_the_default():
    drift = {"kind": "step", "factor": 2.0, "at_s": None}
    p = Profile.from_dict({"sec_per_step": 1.0, "drift": drift, "compute_jitter": {"dist": None}})
    assert p.drift == Drift("step", 2.0) and p.compute_jitter == Jitter()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"sec_per_step": "1"}, "sec_per_step='1' must be a number of seconds"),
        ({"sec_per_step": True}, "sec_per_step=True must be a number of seconds"),
        ({"num_examples": 2.5}, "num_examples=2.5 must be a whole number of samples"),
        ({"silent": "no"}, "silent='no' must be true or false"),
        ({"name": 3}, "name=3 must be text"),
        ({"compute_jitter": {"dst": "normal"}}, "compute_jitter.*fields dist, cv"),
        ({"compute_jitter": {"dist": "normal", "cv": "big"}}, "compute_jitter.cv='big' must be a number"),
        ({"compute_jitter": {"dist": "normal", "cv": 0.5}}, "cv=0.5 of a normal.*lognormal"),
        ({"drift": "{bad"}, "drift='{bad' is no JSON"),
        ({"availability": [[0, 1, 2]]}, r"availability=.*\[start, end\) in seconds"),
    ],
)
def test_a_record_of_the_wrong_kind_is_named(fields, told):
    with pytest.raises(ProfileError, match=told):
        Profile.from_dict({"sec_per_step": 1.0, **fields})


def test_a_record_may_hold_nested_values_and_whole_floats():
    got = Profile.from_dict({"sec_per_step": 1, "num_examples": 3.0, "drift": {"kind": "step", "at_s": 2}})
    assert got == Profile(sec_per_step=1.0, num_examples=3, drift=Drift("step", at_s=2.0))
    assert isinstance(got.num_examples, int) and isinstance(got.sec_per_step, float)


def test_an_unknown_field_names_the_nearest():
    with pytest.raises(ProfileError, match="sec_per_step"):
        Profile.from_dict({"sec_per_stp": 1.0})


@given(st.floats(1e-3, 10), st.integers(1, 100), st.floats(0.01, 1.0))
def test_a_step_that_trains_a_share_of_the_model_costs_that_share_and_transfer_is_as_it_was(sec, steps, width):
    p = Profile(sec_per_step=sec, latency_s=0.25)
    got = p.simulate_timing(
        at_ns=0, steps=steps, batch=1, bytes_down=0, bytes_up=0, flops_per_sample=None, rng=stream(0, "t"), width=width
    )
    assert got.trained_ns - got.downloaded_ns == round(sec * steps * width * NS)
    assert got.arrived_ns - got.trained_ns == NS // 4


def test_a_job_too_large_for_a_clients_memory_is_lost_when_it_was_downloaded():
    p = Profile(sec_per_step=0.5, latency_s=0.25, memory_bytes=1000)
    assert trip(p, memory=1000) == trip(p)
    refused = trip(p, memory=1001)
    assert refused.lost == "memory"
    assert refused.downloaded_ns == refused.trained_ns == refused.arrived_ns == NS // 4


@given(st.floats(0, 1), st.integers(0, 300), st.booleans())
def test_memory_and_dropouts_agree_on_the_earlier_end(prob, job, paused):
    """A job that is lost on its way down never gets to ask for memory; one that is refused there drops out no more."""
    windows = {"availability": WINDOWS, "availability_period_s": 10.0} if paused else {}
    p = Profile(sec_per_step=0.1, latency_s=0.3, memory_bytes=10, dropout_prob=prob, **windows)
    plain, refused = trip(p, job=job), trip(p, job=job, memory=11)
    assert refused.lost is not None and refused.arrived_ns <= plain.arrived_ns
    assert refused.arrived_ns == min(plain.arrived_ns, refused.downloaded_ns)
    assert (refused.lost == "dropout") == (plain.lost == "dropout" and plain.arrived_ns <= plain.downloaded_ns)
