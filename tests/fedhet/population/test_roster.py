"""A roster of a million clients: memory of its columns only, and uniform sampling of idle ones in constant time."""

import sys
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from fedhet.numerics.rng import stream
from fedhet.population.profile import Profile, ProfileError
from fedhet.population.roster import CACHE, Clients, IdleClients


def test_a_million_clients_are_columns_and_profiles_on_demand():
    tracemalloc.start()
    clients = Clients.from_columns(1_000_000, {"sec_per_step": np.linspace(0.1, 1, 1_000_000), "latency_s": 0.1})
    for client in range(0, 1_000_000, 100):
        assert clients[client].latency_s == 0.1
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 8 * 1_000_000 + CACHE * 2000, "one float64 column, and no more profiles than are kept"
    assert len(clients) == 1_000_000 and clients[999_999].sec_per_step == 1.0 and clients[5].name == "client-5"


def test_columns_and_profiles_are_the_same_clients():
    profiles = [Profile(sec_per_step=0.1 * (1 + n), name=f"c{n}", num_examples=n) for n in range(5)]
    clients = Clients.from_profiles(profiles)
    assert list(clients.values()) == profiles and clients.total_examples == 10 and clients.examples(3) == 3
    counted = clients.with_examples(np.array([7, 7, 7, 7, 7]))
    assert counted.total_examples == 35 and counted[2].num_examples == 7 and clients[2].num_examples == 2
    assert 5 not in clients and -1 not in clients and "x" not in clients
    with pytest.raises(KeyError):
        clients[5]


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"sec_per_step": np.array([1.0, 0.0, 1.0])}, "client 1: sec_per_step=0.0"),
        ({"sec_per_step": np.array([1.0, np.nan, 1.0])}, "client 1"),
        ({"sec_per_step": [1.0, 1.0, -1.0]}, "client 2: sec_per_step=-1.0"),
        (
            {
                "sec_per_step": 1.0,
                "device_class": ["a", "a", "b"],
                "silent": [False, True, True],
                "offline_policy": ["pause", "stop", "pause"],
            },
            "client 1: offline_policy='stop'",
        ),
        ({"sec_per_step": np.ones(2)}, "2 values for 3 clients"),
        ({"sec_per_stp": 1.0}, "no field 'sec_per_stp'"),
    ],
)
def test_bad_columns_are_found_before_anything_starts(columns, told):
    with pytest.raises((ValueError, ProfileError), match=told):
        Clients.from_columns(3, columns)


def idle(n=1000, busy=(), barred=(), now=0.0, **columns):
    clients = Clients.from_columns(n, {"sec_per_step": 1.0, **columns})
    return IdleClients(clients, set(busy), lambda: now, set(barred))


@given(st.sets(st.integers(0, 49)), st.sets(st.integers(0, 49)), st.integers(0, 60), st.integers(0, 99))
def test_a_sample_is_distinct_idle_ascending_and_repeatable(busy, barred, k, seed):
    those = idle(50, busy, barred)
    got = those.sample(k, stream(seed, "s"))
    assert got == sorted(set(got)) and not set(got) & (busy | barred)
    assert len(got) == min(k, 50 - len(busy | barred)) and len(those) == 50 - len(busy | barred)
    assert got == idle(50, busy, barred).sample(k, stream(seed, "s"))


HALF_GONE = [((0.0, 1.0),) if c % 4 == 0 else () for c in range(100)]


@pytest.mark.parametrize(
    ("k", "columns", "free"),
    [
        (10, {}, [c for c in range(100) if c % 10]),  # draws and refuses
        (80, {}, [c for c in range(100) if c % 10]),  # one pass
        (10, {"availability": HALF_GONE}, [c for c in range(100) if c % 10 and c % 4]),
    ],
)
def test_every_idle_client_is_drawn_equally_often(k, columns, free):
    """Chi-square of the counts. Without replacement they vary less than independent draws, by (1 - share)."""
    those, counts, draws = idle(100, busy=range(0, 100, 10), now=5.0, **columns), np.zeros(100), 2000
    for seed in range(draws):
        counts[those.sample(k, stream(seed, "fair"))] += 1
    share = k / len(free)
    assert counts.sum() == counts[free].sum() == draws * k, "nobody who is busy or offline"
    spread = ((counts[free] - draws * share) ** 2).sum() / (draws * share * (1 - share)) * (1 - 1 / len(free))
    low, high = chi2.ppf([1e-4, 1 - 1e-4], len(free) - 1)
    assert low < spread < high


@pytest.mark.parametrize("busy", [(), (6, 7, 8, 9)])
def test_pairs_are_drawn_equally_often(busy):
    """Equal shares of single clients would not show it: neighbours drawn together have them too."""
    those = idle(6 + len(busy), busy=busy)
    pairs = Counter(tuple(those.sample(2, stream(seed, "pair"))) for seed in range(3000))
    assert len(pairs) == 15
    assert sum((n - 200) ** 2 / 200 for n in pairs.values()) < chi2.ppf(1 - 1e-4, 14)


def test_sampling_a_large_fleet_does_not_walk_it(monkeypatch):
    those = idle(1_000_000)
    monkeypatch.setattr(Clients, "online_mask", lambda self, now: pytest.fail("walked the registry"))
    assert len(those.sample(100, stream(0, "s"))) == 100


def test_who_is_offline_is_not_idle():
    windows = [((0.0, 5.0),) if n % 2 else () for n in range(10)]
    assert list(idle(10, now=1.0, availability=windows)) == list(range(10))
    assert list(idle(10, now=6.0, availability=windows)) == [0, 2, 4, 6, 8]
    assert 1 not in idle(10, now=6.0, availability=windows)
    clients = Clients.from_columns(2, {"sec_per_step": 1.0, "availability": [((3.0, 5.0),), ()]})
    assert clients.next_online(0.0) == 3.0 and clients.next_online(4.0) is None and not clients.always_online


KINDS = st.lists(st.sampled_from([None, 0, 1, 2]), min_size=1, max_size=30)


@given(KINDS, st.integers(0, 40), st.sets(st.integers(0, 29)))
def test_calendars_of_a_column_are_those_of_the_profiles(kinds, now, busy):
    """Grouped or one by one: the same clients are online, idle, and next to come."""
    windows = [((2.0, 5.0), (9.0, 12.0)), ((0.0, 7.0),), ((30.0, 31.0),)]
    profiles = [
        Profile(
            sec_per_step=1.0,
            availability=() if k is None else windows[k],
            availability_period_s=20.0 if k == 0 else None,
        )
        for k in kinds
    ]
    clients, t = Clients.from_profiles(profiles), float(now)
    online = [p.online(t) for p in profiles]
    assert [clients.online(c, t) for c in clients] == online == clients.online_mask(t).tolist()
    coming = [at for p in profiles if not p.online(t) and (at := p.next_online(t)) is not None]
    assert clients.next_online(t) == min(coming, default=None)
    busy = {c for c in busy if c < len(kinds)}
    idle = IdleClients(clients, busy, lambda: t, {0})
    want = [c for c in clients if online[c] and c not in busy and c != 0]
    assert list(idle) == want == [c for c in clients if c in idle] and len(idle) == len(want)
    got = idle.sample(3, stream(now, "s"))
    assert len(got) == min(3, len(want)) and set(got) <= set(want)


def test_idle_clients_are_those_of_the_moment_they_were_asked_for():
    busy = set()
    those = IdleClients(Clients.from_columns(4, {"sec_per_step": 1.0}), busy, lambda: 0.0, set())
    seen = []
    for client in those:
        seen.append(client)
        busy.add(client)
    assert seen == [0, 1, 2, 3] and list(those) == [] and len(those) == 0


def test_counting_the_idle_of_a_large_fleet_does_not_walk_it(monkeypatch):
    those = idle(1_000_000, busy={1}, barred={1, 2, 5_000_000})
    monkeypatch.setattr(Clients, "online_mask", lambda self, now: pytest.fail("walked the registry"))
    assert len(those) == 999_998


def test_a_column_is_read_without_building_profiles(monkeypatch):
    clients = Clients.from_columns(3, {"sec_per_step": np.array([1.0, 2.0, 3.0]), "latency_s": 0.5})
    monkeypatch.setattr(Clients, "__getitem__", lambda self, client: pytest.fail("built a profile"))
    assert clients.column("sec_per_step").tolist() == [1.0, 2.0, 3.0] and clients.column("latency_s") == 0.5
    assert clients.column("uplink_bytes_per_s") == np.inf and clients.column("sec_per_sample") is None
    with pytest.raises(KeyError):
        clients.column("sec_per_stp")


def test_a_note_stays_with_the_fleet():
    assert Clients.from_columns(2, {"sec_per_step": 1.0}, "odd").with_examples(np.array([1, 2])).note == "odd"


def test_size_is_in_the_columns():
    clients = Clients.from_columns(10, {"sec_per_step": np.ones(10)})
    assert sys.getsizeof(clients.__dict__) < 1000 and clients.columns["sec_per_step"].nbytes == 80


def test_what_a_client_tells_replaces_what_was_assumed_and_nobody_elses():
    clients = Clients.from_columns(3, {"flops_per_s": 1e9, "latency_s": np.array([0.1, 0.2, 0.3])})
    clients.tell(1, {"sec_per_step": 0.5, "latency_s": 0.7, "num_examples": 40})
    assert (clients[1].seconds_per_step(32), clients[1].latency_s, clients.examples(1)) == (0.5, 0.7, 40)
    assert clients[1].flops_per_s is None and clients[0].flops_per_s == 1e9 and clients[2].latency_s == 0.3
    assert clients.column("latency_s") == [0.1, 0.7, 0.3] and clients.total_examples == 40
    clients.tell(1, {"sec_per_step": 0.5})
    assert clients[1].sec_per_step == 0.5
    for wrong in ({"sec_per_stp": 1.0}, {"availability": ((0, 1),)}, {"latency_s": -1.0}):
        with pytest.raises(ValueError):
            clients.tell(0, wrong)
    assert clients[0].latency_s == 0.1
    with pytest.raises(KeyError):
        clients.tell(3, {"latency_s": 0.1})
