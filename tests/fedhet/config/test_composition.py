"""Configurations compose as given, and errors name the key."""

from __future__ import annotations

import re

import pytest
from omegaconf import OmegaConf

from fedhet.config import composition, overrides
from fedhet.errors import ConfigError
from fedhet.provenance import source_tree


@pytest.fixture
def folder(tmp_path):
    """A small axis with known options, beside the real ones."""
    group = tmp_path / "schedule"
    group.mkdir()
    (group / "probe.yaml").write_text(
        "_target_: builtins.dict\nsize: 3\nrate: 0.5\nflag: false\nword: abc\nsteps: [1, 2]\n"
    )
    return tmp_path


def failure(texts, folder=None):
    with pytest.raises(ConfigError) as caught:
        composition.resolved(composition.compose(texts, folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_axis_override_wins_over_the_preset_whatever_the_order():
    for texts in (["strategy=fedbuff", "schedule=sync"], ["schedule=sync", "strategy=fedbuff"]):
        cfg = composition.compose(texts)
        assert cfg.strategy == "fedbuff"
        assert cfg.schedule._target_.endswith("Sync")
        assert cfg.staleness._target_.endswith("Polynomial")


def test_a_value_override_wins_over_preset_and_option():
    assert composition.compose(["strategy=fedasync"]).schedule.size == 1
    assert composition.compose(["strategy=fedasync", "schedule.size=4"]).schedule.size == 4


def test_a_folder_of_the_users_own_adds_options(folder):
    cfg = composition.resolved(composition.compose(["schedule=probe", "schedule.size=9"], folder))
    assert cfg["schedule"] == {
        "_target_": "builtins.dict", "size": 9, "rate": 0.5, "flag": False, "word": "abc", "steps": [1, 2]
    }  # fmt: skip
    assert "probe" in composition.options(folder)["schedule"]
    assert "probe" not in composition.options()["schedule"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("schedul=sync", ["schedul=sync", "no key 'schedul'", "nearest: schedule"]),
        ("schedule=synk", ["schedule=synk", "nearest: sync", "fedhet list schedule"]),
        ("sead=3", ["sead=3", "nearest: seed"]),
        ("schedule.sise=4", ["schedule.sise=4", "nearest: schedule.size"]),
        ("rate=4", ["rate=4", "schedule.rate"]),
        ("seed=abc", ["seed=abc: needs an integer"]),
        ("seed=1.5", ["seed=1.5: needs an integer"]),
        ("seed=true", ["seed=true: needs an integer"]),
        ("schedule.rate=fast", ["schedule.rate=fast: needs a number"]),
        ("schedule.flag=2", ["schedule.flag=2: needs true or false"]),
        ("schedule.steps=3", ["needs a list"]),
        ("schedule.word=[1]", ["needs a text"]),
        ("stop=3", ["needs a mapping"]),
        ("stop.seconds=soon", ["stop.seconds=soon: needs a number"]),
        ("stop.tasks=1.5", ["stop.tasks=1.5: needs an integer"]),
        ("workers=-1", ["workers=-1: needs auto"]),
        ("workers=many", ["workers=many: needs auto"]),
        ("seed=1,2", ["several values", "--multirun", "fedhet compare"]),
        ("seed", ["'seed' is not an override", "key=value"]),
        ("=3", ["'=3'", "key=value"]),
        ("seed=[1", ["'seed=[1' does not parse"]),
        ("~seed", ["~seed", "cannot be removed"]),
        ("~schedule", ["~schedule", "cannot be removed"]),
        ("+schedule=sync", ["schedule is there already"]),
        ("rule={a: 1}", ["rule=", "name one option"]),
        ("++a.b=1", ["a.b=1", "no key 'a.b'", "fedhet run --cfg job"]),
        ("+sead=3", ["sead=3", "nearest: seed"]),
        ("++stop.version=3", ["stop.version=3", "nearest: stop.versions"]),
        ("++work.lrr=0.1", ["work.lrr: Sgd has no parameter 'lrr'", "nearest: lr", "fedhet list work"]),
        ("+world.clientz=3", ["world.clientz: SimulatedWorld has no parameter", "nearest: clients"]),
        ("+work.lr.inner=1", ["no key 'work.lr.inner'"]),
        ("++seed=abc", ["seed=abc: needs an integer"]),
        ("++attack.fraction=0.5", ["no key 'attack.fraction'"]),
    ],
)
def test_bad_input_names_itself_and_what_is_near(folder, text, parts):
    message = failure(["schedule=probe", text] if not text.startswith(("schedule=", "~schedule")) else [text], folder)
    for part in parts:
        assert part in message


def test_keys_are_added_where_something_reads_them(folder):
    cfg = composition.compose(["schedule=probe", "+schedule.more=1", "rule=nnm",
                               "+rule.before.clip._target_=strategies.rules.clipping.Clipping", "++seed=4",
                               "+codec.second._target_=strategies.codecs.Some"], folder)  # fmt: skip
    assert (cfg.schedule.more, cfg.seed, cfg.codec.second._target_) == (1, 4, "strategies.codecs.Some")
    assert len(composition.instantiate(composition.resolved(cfg)["rule"], "rule").mixings) == 2


def test_numbers_of_the_right_kind_pass(folder):
    cfg = composition.compose(
        ["schedule=probe", "schedule.rate=2", "seed=7", "stop.seconds=3", "stop.tasks=null"], folder
    )
    assert (cfg.schedule.rate, cfg.seed, cfg.stop.seconds, cfg.stop.tasks) == (2, 7, 3, None)


def test_a_folder_that_is_none_is_refused(tmp_path):
    assert "not a folder" in failure([], tmp_path / "absent")


def test_automatic_workers_become_a_number_within_bounds():
    workers = composition.resolved(composition.compose())["workers"]
    assert isinstance(workers, int) and 1 <= workers <= composition.MAX_AUTO_WORKERS
    assert composition.resolved(composition.compose(["workers=0"]))["workers"] == 0


def test_resolved_is_plain_and_without_hydra():
    plain = composition.resolved(composition.compose())
    assert type(plain) is dict and "hydra" not in plain
    assert "${" not in OmegaConf.to_yaml(OmegaConf.create(plain))


def test_a_value_without_a_default_is_asked_for(folder):
    (folder / "schedule" / "open.yaml").write_text("_target_: builtins.dict\nsize: ???\n")
    assert failure(["schedule=open"], folder) == "schedule.size has no default: give schedule.size=VALUE"
    assert (
        composition.resolved(composition.compose(["schedule=open", "schedule.size=3"], folder))["schedule"]["size"] == 3
    )


def test_an_interpolation_that_leads_nowhere_is_bad_input(folder):
    (folder / "schedule" / "lost.yaml").write_text("_target_: builtins.dict\nsize: ${no.such.key}\n")
    assert "no.such.key" in failure(["schedule=lost"], folder)


class Part:
    """A target for the tests below."""

    def __init__(self, size: int = 1, inner: object = None) -> None:
        if size < 1:
            raise ValueError(f"size={size} must be at least 1")
        if size == 13:
            raise RuntimeError("a fault of the code, not of the input")
        if size == 14:
            raise FileNotFoundError("no such data")
        self.size, self.inner = size, inner


HERE = "tests_config_part.Part"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    import sys
    import types

    module = types.ModuleType("tests_config_part")
    module.Part = Part
    monkeypatch.setitem(sys.modules, "tests_config_part", module)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": HERE, "size": -3}, "rule.size=-3 must be at least 1"),
        ({"_target_": HERE, "sise": 3}, "rule.sise: Part has no parameter 'sise' (nearest: size)"),
        ({"_target_": HERE, "inner": {"_target_": HERE, "size": 0}}, "rule.inner.size=0 must be at least 1"),
        ({"_target_": HERE, "size": 14}, "rule: no such data"),
        (
            {"_target_": "tests_config_part.Other"},
            "rule: tests_config_part has no Other; it defines no class or function",
        ),
        (
            {"_target_": "no_such_package.Thing"},
            "rule: no_such_package.Thing cannot be imported: there is no module 'no_such_package'",
        ),
        ({"size": 3}, "rule: nothing to build"),
        (3, "rule: nothing to build, 3 has no _target_"),
    ],
)
def test_a_part_that_refuses_its_values_is_named_by_its_key(node, message):
    with pytest.raises(ConfigError, match="^" + re.escape(message)):
        composition.instantiate(node, "rule")


def test_parts_of_the_world_are_named_as_they_are_typed():
    node = {"_target_": HERE, "inner": {"_target_": HERE, "size": 0}}
    with pytest.raises(ConfigError, match=r"^inner\.size=0 must"):
        composition.instantiate(node, "world")


def test_a_fault_of_the_code_is_not_dressed_up_as_bad_input():
    with pytest.raises(RuntimeError, match="a fault of the code"):
        composition.instantiate({"_target_": HERE, "size": 13}, "rule")


def test_instantiate_takes_resolved_and_unresolved_nodes():
    node = {"_target_": HERE, "size": 2, "inner": [1, {"a": 2}]}
    for given in (node, OmegaConf.create(node)):
        built = composition.instantiate(given, "rule")
        assert (built.size, built.inner) == (2, [1, {"a": 2}])
        assert type(built.inner) is list and type(built.inner[1]) is dict


def test_layers_are_none_one_or_several_in_order():
    one = {"_target_": HERE, "size": 2}
    assert composition.transforms({}, "codec") == ()
    assert [p.size for p in composition.transforms(one, "codec")] == [2]
    several = {"first": one, "left_out": {}, "second": {"_target_": HERE, "size": 5}}
    assert [p.size for p in composition.transforms(several, "codec")] == [2, 5]
    with pytest.raises(ConfigError, match=r"^codec\.second\.size=0"):
        composition.transforms({"first": one, "second": {"_target_": HERE, "size": 0}}, "codec")


def test_a_product_has_every_combination_with_the_last_key_fastest():
    assert overrides.product(["a=1,2", "b=3", "c=range(0,2)"]) == [
        ["a=1", "b=3", "c=0"], ["a=1", "b=3", "c=1"], ["a=2", "b=3", "c=0"], ["a=2", "b=3", "c=1"]
    ]  # fmt: skip
    assert overrides.product([]) == [[]]
    assert overrides.product(["a=[1,2]"]) == [["a=[1,2]"]]
    assert overrides.sweeps(["a=1,2", "b=3", "c=[1,2]"]) == ["a"]


def test_a_sweep_without_a_finite_list_is_refused():
    with pytest.raises(ConfigError, match="no finite list"):
        overrides.product(["work.lr=interval(0.1,1)"])


def test_every_group_of_the_defaults_list_is_a_folder():
    text = (source_tree.conf() / "config.yaml").read_text()
    for item in OmegaConf.create(text).defaults:
        if item != "_self_" and not next(iter(item)).startswith("override "):
            group, option = next(iter(item.items()))
            assert option in composition.options()[group], f"{group}/{option}.yaml is missing"


@pytest.mark.parametrize("path", sorted((source_tree.conf() / "strategy").glob("*.yaml")), ids=lambda p: p.stem)
def test_a_preset_sets_no_value_inside_its_rule_which_another_rule_might_not_have(path):
    assert "rule" not in OmegaConf.load(path)


@pytest.mark.parametrize("preset", ["fedbuff", "fedcompass"])
def test_a_published_method_takes_another_rule_and_keeps_the_rest(preset):
    cfg, own = (
        composition.resolved(composition.compose([f"strategy={preset}", *more])) for more in (["rule=robust"], [])
    )
    assert cfg["rule"]["_target_"] == "strategies.rules.chain.Chain"
    assert cfg["replaced"] == ["rule=robust"] and own["replaced"] == []
    assert {**cfg, "rule": None, "replaced": None} == {**own, "rule": None, "replaced": None}


@pytest.mark.parametrize(
    ("over", "uniform", "presets"),
    [
        ("cohort", False, ["fedavg", "fedprox", "fedadam", "fednova", "fedat", "time_window", "port"]),
        ("count", False, ["fedbuff", "fedasync", "ca2fl", "dc_asgd"]),
        ("population", False, ["fedcompass", "fedcompass_momentum", "fedcompass_normalised", "fedfix"]),
        ("cohort", True, ["scaffold", "feddyn"]),
    ],
)
def test_published_methods_divide_by_what_their_paper_does(over, uniform, presets):
    for preset in presets:
        defaults = OmegaConf.load(source_tree.conf() / "strategy" / f"{preset}.yaml").defaults
        option = next(item["override /rule"] for item in defaults if "override /rule" in item)
        rule = OmegaConf.load(source_tree.conf() / "rule" / f"{option}.yaml")
        assert (rule.over, rule.uniform) == (over, uniform), preset


def test_parts_know_the_number_of_clients_of_a_fleet_that_does_not_state_it():
    texts = ["fleet=ranked", "fleet.ranks=[8,4,2]", "attack=sign_flip", "space=control"]
    plain = composition.resolved(composition.compose(texts, source_tree.root() / "experiments" / "flora" / "conf"))
    assert "clients" not in plain["fleet"]
    assert plain["attack"]["population"] == plain["space"]["clients"] == 3
    plain = composition.resolved(composition.compose(["fleet.clients=7", "attack=sign_flip"]))
    assert plain["attack"]["population"] == 7
