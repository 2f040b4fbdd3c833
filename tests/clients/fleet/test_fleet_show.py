"""A fleet's figures, table and picture say what its profiles say."""

from __future__ import annotations

import io
import xml.etree.ElementTree as xml

import numpy as np
import pytest
from rich.console import Console

from clients.fleet.show import describe, online_share, picture, table
from clients.fleet.unlike import Unlike
from fedhet.profile import Profile
from fedhet.roster import Clients


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
    facts = describe(Unlike().build(0))
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
def test_slowness_is_told_in_the_unit_it_was_declared_in(profile, unit, figure):
    told = text(Clients.from_profiles([profile]))
    assert unit in told and figure in told


def test_the_share_of_time_online():
    windows = Profile(sec_per_step=1.0, availability=((0.0, 10.0), (30.0, 35.0)), availability_period_s=60.0)
    assert online_share(windows) == 0.25
    assert online_share(Profile(sec_per_step=1.0)) == 1.0
    assert online_share(Profile(sec_per_step=1.0, availability=((0.0, 10.0),))) is None


def test_small_fleets_are_shown_whole_and_large_ones_in_part():
    told = text(Unlike().build(0))
    assert all(name in told for name in ("rack-1", "phone-old", "500 kB", "75%", "10%"))
    many = text(Clients.from_columns(5000, {"sec_per_step": 1.0}))
    assert len(many.splitlines()) < 40 and "client-0 " in many and "client-4999" in many


def test_what_is_special_about_a_fleet_is_told():
    assert "3 draws were odd" in text(Clients.from_columns(4, {"sec_per_step": 1.0}, "3 draws were odd"))
    assert "note" not in text(Unlike().build(0))


def test_the_picture_is_one_svg_that_needs_nothing_else_and_sorts_by_speed():
    root = xml.fromstring(picture(Unlike().build(0)))
    titles = [t.text for t in root.iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == 24  # speed and upload of twelve clients
    assert titles[0] == "client 0 (rack-1): 0.01" and titles[11] == "client 11 (phone-old): 0.12"
    assert "href" not in picture(Unlike().build(0)) and "url(" not in picture(Unlike().build(0))


def test_bars_grow_with_slowness():
    root = xml.fromstring(picture(Clients.from_columns(5, {"sec_per_step": np.array([4.0, 1.0, 2.0, 8.0, 16.0])})))
    bars = [r for r in root.iter("{http://www.w3.org/2000/svg}rect") if len(r)]
    heights = [float(bar.get("height")) for bar in bars]
    assert len(bars) == 5  # an unlimited upload has no panel
    assert heights == sorted(heights) and len(set(heights)) == 5
    steps = np.diff(heights)  # each client is twice as slow as the one before: equal steps on a logarithmic axis
    assert np.allclose(steps, steps[0], atol=0.01)


def test_unlimited_bandwidth_beside_limited_has_full_height_and_says_so():
    clients = Clients.from_profiles([Profile(sec_per_step=1.0), Profile(sec_per_step=2.0, uplink_bytes_per_s=1e6)])
    titles = [t.text for t in xml.fromstring(picture(clients)).iter("{http://www.w3.org/2000/svg}title")]
    assert "client 0 (client-0): unlimited" in titles and "client 1 (client-1): 1 MB/s" in titles


def test_equal_clients_and_hostile_names_are_drawn():
    xml.fromstring(picture(Clients.from_columns(3, {"sec_per_step": 0.1})))
    evil = Clients.from_profiles([Profile(sec_per_step=1.0, name="</title><script>", device_class="<b>&")])
    assert "<script>" not in picture(evil)
    xml.fromstring(picture(evil))
