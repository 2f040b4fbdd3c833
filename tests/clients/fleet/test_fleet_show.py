"""A fleet's statistics, table and picture agree with its profiles."""

from __future__ import annotations

import io
import xml.etree.ElementTree as xml

import numpy as np
import pytest
from rich.console import Console

from clients.fleet.laws import Exponential
from clients.fleet.mixed_devices import MixedDevices
from clients.fleet.show import describe, online_share, picture, table
from clients.fleet.speed import slowness, slownesses, speed_unit
from fedhet.population.profile import Profile
from fedhet.population.roster import Clients

SVG = "{http://www.w3.org/2000/svg}"


def text(clients, width=160):
    console = Console(file=io.StringIO(), width=width)
    console.print(table(clients))
    return console.file.getvalue()


def test_the_figures_are_of_all_clients():
    clients = Clients.from_columns(1001, {"sec_per_step": np.linspace(1.0, 5.0, 1001)})
    facts = describe(clients)
    assert facts == {
        "clients": 1001,
        "fastest": 1.0,
        "median": 3.0,
        "slowest": 5.0,
        "ratio": 5.0,
        "away": 0,
        "unreliable": 0,
    }


def test_who_may_be_away_or_drop_out_is_counted():
    facts = describe(MixedDevices().build(0))
    assert (facts["away"], facts["unreliable"], facts["ratio"]) == (2, 1, pytest.approx(12.0))
    silent = Clients.from_profiles([Profile(sec_per_step=1.0, silent=True), Profile(sec_per_step=1.0)])
    assert describe(silent)["unreliable"] == 1


@pytest.mark.parametrize(
    ("profile", "unit", "figure"),
    [
        (Profile(sec_per_step=0.25), "s/step", "0.25"),
        (Profile(sec_per_sample=0.5), "s/sample", "0.5"),
        (Profile(flops_per_s=2e9), "s/GFLOP", "0.5"),
    ],
)
def test_slowness_is_shown_in_the_declared_unit(profile, unit, figure):
    told = text(Clients.from_profiles([profile]))
    assert unit in told and figure in told


def test_the_share_of_time_online():
    windows = Profile(sec_per_step=1.0, availability=((0.0, 10.0), (30.0, 35.0)), availability_period_s=60.0)
    assert online_share(windows) == 0.25
    assert online_share(Profile(sec_per_step=1.0)) == 1.0
    assert online_share(Profile(sec_per_step=1.0, availability=((0.0, 10.0),))) is None


def test_small_fleets_are_shown_fully_and_large_ones_in_part():
    told = text(MixedDevices().build(0))
    assert all(name in told for name in ("rack-1", "phone-old", "500 kB", "75%", "10%"))
    many = text(Clients.from_columns(5000, {"sec_per_step": 1.0}))
    assert len(many.splitlines()) < 40 and "client-0 " in many and "client-4999" in many


def test_a_column_that_says_nothing_is_left_out():
    said = text(Clients.from_columns(3, {"sec_per_step": 1.0, "uplink_bytes_per_s": 1e6}), width=80)
    assert "client-2" in said and "1 MB" in said
    assert not any(word in said for word in ("class", "unlimited", "down/s", "latency", "100%", "0%"))
    assert all(len(line) <= 80 and "…" not in line for line in text(MixedDevices().build(0), width=80).splitlines())


def test_slowness_of_all_is_the_slowness_of_each():
    declared = [{"sec_per_step": 0.1}, {"flops_per_s": 4e9}, {"sec_per_sample": 0.01}, {"flops_per_s": 2e9}]
    clients = Clients.from_profiles([Profile(**given) for given in declared])
    found = {unit: values.tolist() for unit, values in slownesses(clients).items()}
    assert found == {"s/step": [0.1], "s/sample": [0.01], "s/GFLOP": [0.25, 0.5]}
    by_unit = {unit: [slowness(p) for p in clients.values() if speed_unit(p) == unit] for unit in found}
    assert by_unit == found
    alike = slownesses(Clients.from_columns(3, {"flops_per_s": np.array([1e9, 2e9, 4e9])}))
    assert {unit: values.tolist() for unit, values in alike.items()} == {"s/GFLOP": [1.0, 0.5, 0.25]}


def test_what_is_special_about_a_fleet_is_told():
    assert "3 draws were odd" in text(Clients.from_columns(4, {"sec_per_step": 1.0}, "3 draws were odd"))
    assert "note" not in text(MixedDevices().build(0))


def drawn(clients):
    return xml.fromstring(picture(clients))


def told(clients):
    return [t.text for t in drawn(clients).iter(f"{SVG}title")]


def words(clients):
    return [t.text for t in drawn(clients).iter(f"{SVG}text")]


def test_the_picture_is_one_svg_that_needs_nothing_else():
    text = picture(MixedDevices().build(0))
    assert "href" not in text and "url(" not in text and "<script" not in text
    assert xml.fromstring(text).tag == f"{SVG}svg"


def test_the_picture_sorts_by_speed_sets_it_against_upload_and_shows_who_is_online_when():
    said = told(MixedDevices().build(0))
    assert len(said) == 12 + 12 + 2
    assert said[0] == "client 0 (rack-1): 0.01" and said[11] == "client 11 (phone-old): 0.12"
    assert said[12] == "client 0 (rack-1): 0.01 s/step, upload 50 MB/s"
    assert said[24:] == [
        "client 4 (laptop-2): online from 0 s to 45 s of every 60 s",
        "client 9 (phone-2): online from 10 s to 60 s of every 60 s",
    ]


def test_bars_grow_with_slowness():
    root = drawn(Clients.from_columns(5, {"sec_per_step": np.array([4.0, 1.0, 2.0, 8.0, 16.0])}))
    bars = [r for r in root.iter(f"{SVG}rect") if len(r)]
    heights = [float(bar.get("height")) for bar in bars]
    assert len(bars) == 5 and not list(root.iter(f"{SVG}circle"))  # an unlimited upload has no panel
    assert heights == sorted(heights) and len(set(heights)) == 5
    steps = np.diff(heights)  # each client is twice as slow as the one before: equal steps on a logarithmic axis
    assert np.allclose(steps, steps[0], atol=0.01)


def test_dots_lie_where_speed_and_upload_say():
    up = [1e5, 1e6, 1e7]
    root = drawn(Clients.from_profiles([Profile(sec_per_step=4.0**k, uplink_bytes_per_s=u) for k, u in enumerate(up)]))
    x, y = ([float(dot.get(c)) for dot in root.iter(f"{SVG}circle")] for c in ("cx", "cy"))
    assert x == sorted(x) and y == sorted(y, reverse=True)
    assert np.allclose(np.diff(x, 2), 0, atol=0.01) and np.allclose(np.diff(y, 2), 0, atol=0.01)


def test_windows_take_their_share_of_the_period():
    windows = ((10.0, 20.0), (30.0, 55.0))
    p = Profile(sec_per_step=1.0, availability=windows, availability_period_s=100.0)
    root = drawn(Clients.from_profiles([p]))
    whole = next(float(r.get("width")) for r in root.iter(f"{SVG}rect") if r.get("class") == "off")
    inside = [float(r.get("width")) for r in root.iter(f"{SVG}rect") if len(r)][1:]
    assert np.allclose(inside, [0.10 * whole, 0.25 * whole], atol=0.01)
    once = Clients.from_profiles([Profile(sec_per_step=1.0, availability=windows)])
    assert "client 0 (client-0): online from 30 s to 55 s, once" in told(once)


def test_an_unlimited_upload_among_limited_ones_is_drawn_on_the_edge_with_a_label():
    clients = Clients.from_profiles([Profile(sec_per_step=1.0), Profile(sec_per_step=2.0, uplink_bytes_per_s=1e6)])
    assert "client 0 (client-0): 1 s/step, upload unlimited" in told(clients)
    assert "client 1 (client-1): 2 s/step, upload 1 MB/s" in told(clients)


def test_what_was_cut_is_told_in_table_and_picture():
    fleet = Exponential(clients=1000).build(0)
    assert "draws were faster than 0.2 mu" in fleet.note
    assert any(fleet.note in word for word in words(fleet)) and fleet.note in text(fleet)


def test_of_a_large_fleet_some_are_drawn_and_all_are_counted():
    n = 10_000
    steps = np.linspace(1.0, 2.0, n)
    steps[5] = 8.0  # not among those drawn
    windows = [((0.0, 5.0),) if c % 2 else () for c in range(n)]
    clients = Clients.from_columns(n, {"sec_per_step": steps, "availability": windows})
    assert "240 of 10,000 clients, the slowest 8 times as slow as the fastest" in words(clients)
    assert any("16 of the 5,000 that are not always" in word for word in words(clients))


def test_the_figures_of_a_million_clients_build_no_profiles(monkeypatch):
    clients = Clients.from_columns(1_000_000, {"sec_per_step": np.linspace(1.0, 5.0, 1_000_000), "dropout_prob": 0.1})
    monkeypatch.setattr(Clients, "__getitem__", lambda self, client: pytest.fail("built a profile"))
    facts = describe(clients)
    assert (facts["clients"], facts["ratio"], facts["unreliable"]) == (1_000_000, 5.0, 1_000_000)


def test_speeds_in_different_units_are_not_compared():
    mixed = Clients.from_profiles(
        [Profile(sec_per_step=0.1), Profile(flops_per_s=1e12), Profile(sec_per_sample=0.01), Profile(sec_per_step=0.4)]
    )
    assert set(describe(mixed)) == {"clients", "away", "unreliable"}
    said = text(mixed)
    assert "slowest / fastest" not in said
    assert all(figure in said for figure in ("0.1 s/step", "0.4 s/step", "0.001 s/GFLOP", "0.01 s/sample"))
    assert [w for w in words(mixed) if w and "from the fastest" in w] == [
        "s/GFLOP, from the fastest",
        "s/sample, from the fastest",
        "s/step, from the fastest",
    ]


def test_equal_clients_and_hostile_names_are_drawn():
    drawn(Clients.from_columns(3, {"sec_per_step": 0.1, "uplink_bytes_per_s": 1e6}))
    evil = Profile(
        sec_per_step=1.0,
        name="</title><script>",
        device_class="<b>&",
        availability=((0.0, 1.0),),
        uplink_bytes_per_s=9.0,
    )
    clients = Clients.from_profiles([evil] * 2)
    assert "<script>" not in picture(clients) and "<b>" not in picture(clients)
    drawn(clients)


def test_ranks_and_the_memory_they_go_by_are_shown_if_a_budget_chooses_them():
    told = text(MixedDevices().build(0))
    assert "rank " not in told.partition("slowness")[0] and "memory" not in told
    console = Console(file=io.StringIO(), width=160)
    console.print(table(MixedDevices().build(0), lambda client: 1 << client))
    rows = {
        line.split()[1]: line.split() for line in console.file.getvalue().splitlines() if line.strip()[:1].isdigit()
    }
    assert "2048" in rows["phone-old"] and "1" in rows["rack-1"]
    assert "rank" in console.file.getvalue() and "memory" in console.file.getvalue()
