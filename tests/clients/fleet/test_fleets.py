"""Fleets follow their distributions, are reproducible by seed, and report errors of a trace file."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import kstest, norm

from clients.fleet.laws import Exponential, HalfNormal, Homogeneous, LinearGrid, Lognormal, Normal, Pareto, Tiers
from clients.fleet.mixed_devices import TABLE, MixedDevices
from clients.fleet.trace import Trace
from fedhet.population.profile import Drift, Jitter, Profile, ProfileError

LAWS = [Exponential, HalfNormal, Homogeneous, LinearGrid, Lognormal, Normal, Pareto, Tiers]


def speeds(fleet, seed=0):
    return np.array([p.sec_per_step for p in fleet.build(seed).values()])


@pytest.mark.parametrize("law", LAWS)
def test_a_fleet_repeats_by_its_seed_and_is_positive(law):
    a, b, c = speeds(law(clients=200), 1), speeds(law(clients=200), 1), speeds(law(clients=200), 2)
    assert np.array_equal(a, b) and (a > 0).all() and np.isfinite(a).all()
    assert np.array_equal(a, c) == (law in (Homogeneous, LinearGrid, Tiers))


def test_the_laws_have_their_means_and_bounds():
    mu = 0.5
    assert abs(speeds(Normal(clients=20_000, sec_per_step=mu)).mean() - mu) < 0.005
    assert abs(speeds(Lognormal(clients=20_000, sec_per_step=mu)).mean() - mu) < 0.02
    exponential = speeds(Exponential(clients=20_000, sec_per_step=mu, floor=0.2))
    assert exponential.min() == pytest.approx(0.1)
    # a fifth of the mean as floor: the mean becomes mu (0.2 + exp(-0.2))
    assert abs(exponential.mean() - mu * (0.2 + np.exp(-0.2))) < 0.01
    pareto = speeds(Pareto(clients=5000, sec_per_step=mu, cap=3.0))
    assert pareto.min() >= mu and pareto.max() == pytest.approx(3 * mu)


def test_cut_draws_are_counted():
    floored = Exponential(clients=1000, sec_per_step=0.5)
    at_floor = int((speeds(floored, 3) == speeds(floored, 3).min()).sum())
    assert floored.build(3).note == f"{at_floor} of 1000 draws were faster than 0.2 mu and set to it"
    capped = Pareto(clients=1000, cap=3.0)
    at_cap = int((speeds(capped, 3) == speeds(capped, 3).max()).sum())
    assert capped.build(3).note == f"{at_cap} of 1000 draws were slower than 3 mu and set to it"
    assert 100 < at_floor < 250 and 100 < at_cap < 300
    assert "below a hundredth" in Normal(clients=1000, cv=1.0).build(0).note
    assert not Normal(clients=100, cv=0.1).build(0).note and not Homogeneous().build(0).note


def test_a_bandwidth_is_what_was_given_or_unlimited():
    fleet = Homogeneous(uplink_bytes_per_s=5.0).build(0)
    assert (fleet[0].uplink_bytes_per_s, fleet[0].downlink_bytes_per_s) == (5.0, np.inf)
    with pytest.raises(ProfileError, match="uplink_bytes_per_s=0"):
        Homogeneous(uplink_bytes_per_s=0.0).build(0)


def test_the_linear_grid_is_from_slowest_to_fastest():
    assert np.allclose(speeds(LinearGrid(clients=5, sec_per_step=1.0, x=0.8)), [1.0, 0.8, 0.6, 0.4, 0.2])
    assert np.allclose(speeds(Tiers(clients=4, sec_per_step=1.0, factors=(1.0, 3.0))), [1, 1, 3, 3])


def test_the_default_fleet_is_heterogeneous():
    fleet = MixedDevices().build(0)
    steps = [p.sec_per_step for p in fleet.values()]
    assert len(fleet) == 12 == len({p.name for p in fleet.values()}) and max(steps) / min(steps) == pytest.approx(12)
    assert (
        sum(bool(p.availability) for p in fleet.values()) == 2 and sum(p.dropout_prob > 0 for p in fleet.values()) == 1
    )
    again = MixedDevices(clients=30, slower=2.0).build(0)
    assert again[12].name == f"{TABLE[0][0]}-2" and again[12].sec_per_step == 2 * steps[0]
    table = MixedDevices(slower=2.0).build(0)
    laps = [f"-{n // 12 + 1}" if n >= 12 else "" for n in range(30)]
    assert list(again.values()) == [replace(table[n % 12], name=table[n % 12].name + laps[n]) for n in range(30)]
    assert [again.online(n, 50.0) for n in range(30)] == [table.online(n % 12, 50.0) for n in range(30)]


def test_a_large_default_fleet_is_columns_and_no_profile_for_each_client(monkeypatch):
    made, check = [], Profile.__post_init__
    monkeypatch.setattr(Profile, "__post_init__", lambda self: (made.append(self.name), check(self)))
    fleet = MixedDevices(clients=50_000).build(0).with_examples(np.ones(50_000, np.int64))
    assert len(made) < 100 and fleet[49_999].name == f"{TABLE[7][0]}-4167"


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Homogeneous(clients=0), "clients=0"),
        (lambda: Normal(sec_per_step=-1.0), "sec_per_step=-1.0"),
        (lambda: Exponential(floor=0.0).build(0), "floor=0.0"),
        (lambda: LinearGrid(x=1.0).build(0), "x=1.0"),
        (lambda: Tiers(factors=()).build(0), "factors"),
    ],
)
def test_bad_values_are_named(make, told):
    with pytest.raises(ValueError, match=told):
        make()


def test_a_trace_is_read_from_json_and_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"name": "a", "sec_per_step": 0.5, "latency_s": 0.1}, {"name": "b", "sec_per_step": 2.0, "latency_s": None}]
    (tmp_path / "fleet.json").write_text(json.dumps(rows))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "fleet.parquet")
    for file in ("fleet.json", "fleet.parquet"):
        fleet = Trace(str(tmp_path / file)).build(0)
        assert (
            [p.name for p in fleet.values()] == ["a", "b"] and fleet[0].latency_s == 0.1 and fleet[1].latency_s == 0.0
        )
    assert len(Trace(str(tmp_path / "fleet.json"), clients=1).build(0)) == 1


def test_structs_and_lists_of_a_parquet_table_are_profiles(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    names = ("flops_per_s", "availability", "availability_period_s", "compute_jitter", "silent")
    rows = [
        # the first row names a table's columns
        {"sec_per_step": 1.0, "drift": {"kind": "step", "factor": 2.0}} | dict.fromkeys(names),
        {"flops_per_s": 1e9, "drift": {"kind": "sine", "amplitude": 0.5}, "availability": [[0.0, 1.0], [2.0, 2.5]],
         "availability_period_s": 3.0, "compute_jitter": {"dist": "gamma", "cv": 0.1}, "silent": True},
    ]  # fmt: skip
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "fleet.parquet")
    first, second = Trace(str(tmp_path / "fleet.parquet")).build(0).values()
    assert first == Profile(name="client-0", sec_per_step=1.0, drift=Drift("step", factor=2.0))
    assert second.availability == ((0.0, 1.0), (2.0, 2.5)) and second.drift == Drift("sine", amplitude=0.5)
    assert second.compute_jitter == Jitter("gamma", 0.1) and second.silent and second.sec_per_step is None


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"sec_per_step": 1.0}, {"sec_per_step": -1.0}], "row 1: sec_per_step=-1.0.*seconds"),
        ([{"sec_per_stp": 1.0}], "row 0: unknown field 'sec_per_stp'.*sec_per_step"),
        ([{"sec_per_step": "fast"}], "row 0: sec_per_step='fast'.*number of seconds"),
        ([{"sec_per_step": 1.0, "availability": [[3.0, 1.0]]}], r"row 0: availability \[3.0, 1.0\) s"),
        ([{"sec_per_step": 1.0, "drift": {"kind": "ramp"}}], "row 0: drift kind='ramp'"),
        ([{"sec_per_step": 1.0, "flops_per_s": 1.0}], "row 0: give exactly one of"),
    ],
)
def test_a_bad_parquet_table_names_row_and_field(tmp_path, rows, told):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    with pytest.raises(ProfileError, match=told):
        Trace(str(tmp_path / "t.parquet")).build(0)


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "t.parquet").write_bytes(b"PK not this one")
    with pytest.raises(ProfileError, match=r"t\.parquet is no Parquet"):
        Trace(str(tmp_path / "t.parquet")).build(0)


@pytest.mark.parametrize("clients", [0, 3, -1])
def test_a_trace_has_no_more_clients_than_rows(tmp_path, clients):
    (tmp_path / "t.json").write_text('[{"sec_per_step": 1}, {"sec_per_step": 2}]')
    with pytest.raises(ProfileError, match=f"2 rows; clients={clients}"):
        Trace(str(tmp_path / "t.json"), clients=clients).build(0)


@pytest.mark.parametrize("cv", [0.3, 1.0])
def test_normal_draws_below_are_drawn_again_and_not_set_to_the_bound(cv):
    fleet = Normal(clients=50_000, sec_per_step=1.0, cv=cv)
    got = speeds(fleet)
    assert got.min() >= 0.01 and len(np.unique(got)) == len(got), "clipping would leave many at the bound"
    # the normal law given that it is above the bound a: F(x) = (Phi(x) - Phi(a)) / (1 - Phi(a))
    below = norm.cdf((0.01 - 1) / cv)
    assert kstest(got, lambda x: (norm.cdf((x - 1) / cv) - below) / (1 - below)).pvalue > 1e-3


def test_other_laws_have_their_distributions():
    got = speeds(HalfNormal(clients=20_000, sec_per_step=2.0, sd=0.5, floor=0.2))
    assert got.min() >= 0.4 and kstest(got / 2.0 - 0.2, lambda x: 2 * norm.cdf(x / 0.5) - 1).pvalue > 1e-3
    got = np.log(speeds(Lognormal(clients=20_000, sec_per_step=2.0, sigma=0.5)) / 2.0)
    assert kstest(got, lambda x: norm.cdf((x + 0.125) / 0.5)).pvalue > 1e-3
    got = speeds(Pareto(clients=20_000, sec_per_step=2.0, alpha=3.0, cap=1e9))
    assert kstest(got / 2.0, lambda x: 1 - x**-3.0).pvalue > 1e-3
    above = speeds(Exponential(clients=20_000, sec_per_step=2.0, floor=0.2)) / 2.0
    above = above[above > 0.2 + 1e-12]  # an exponential forgets how long it waited
    assert kstest(above - 0.2, lambda x: 1 - np.exp(-x)).pvalue > 1e-3


def test_a_fleet_reports_what_it_did_not_take_as_drawn(tmp_path):
    (tmp_path / "t.json").write_text('[{"sec_per_step": 1}, {"sec_per_step": 2}]')
    cut = Exponential(clients=1000)
    assert cut.report(3) == cut.build(3).note != cut.report(4)
    assert Homogeneous().report(0) == "all draws were taken as they came"
    assert MixedDevices().report(0) == "nothing is drawn: the table is fixed"
    assert Trace(str(tmp_path / "t.json")).report(0) == "nothing is drawn: the rows of t.json"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[{"sec_per_step": 1}, {"sec_per_step": -1}]', "row 1: sec_per_step=-1.*seconds"),
        ('[{"sec_per_stp": 1}]', "row 0: unknown field 'sec_per_stp'.*sec_per_step"),
        ('[{"sec_per_step": "fast"}]', "row 0"),
        ("[1, 2]", "row 0: not an object"),
        ("{}", "list of objects"),
        ("[", "no JSON"),
        ("[]", "0 rows"),
    ],
)
def test_a_bad_trace_names_row_and_field(tmp_path, text, told):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(ProfileError, match=told):
        Trace(str(tmp_path / "t.json")).build(0)
    with pytest.raises(ProfileError, match="is no file"):
        Trace(str(tmp_path / "none.json")).build(0)
