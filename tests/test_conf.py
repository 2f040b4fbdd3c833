"""Every file under conf/ composes, and its objects can be built."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from importlib import import_module

import pytest
from omegaconf import OmegaConf

from fedhet.config import composition, factory, overrides
from fedhet.engine.method import TRANSFORM_SLOTS
from fedhet.provenance import source_tree

FILES = sorted(
    p.relative_to(source_tree.conf()).with_suffix("").as_posix() for p in source_tree.conf().glob("*/**/*.yaml")
)
TOP = {"config", "demo", "bibliography"}


def missing(name: str) -> list[str]:
    """Keys without a default: folders of data, which the user has to name."""
    node = OmegaConf.load(source_tree.conf() / f"{name}.yaml")
    return [str(key) for key in node if OmegaConf.is_missing(node, key)]


@cache
def company() -> dict[str, str]:
    """For options that only some preset chooses: the first one that does."""
    found: dict[str, str] = {}
    for path in sorted((source_tree.conf() / "strategy").glob("*.yaml")):
        for item in OmegaConf.load(path).get("defaults", []):
            (group, option), *_ = item.items()
            found.setdefault(f"{group.removeprefix('override /')}/{option}", path.stem)
    return found


@pytest.mark.parametrize("name", FILES)
def test_every_option_composes_and_its_parts_can_be_built(name, tmp_path):
    group, _, option = name.rpartition("/")
    preset = company().get(name)
    asked = [f"strategy={preset}"] if preset else []
    asked += [f"{group}={option}", *(f"{group}.{key}={tmp_path}" for key in missing(name))]
    cfg = composition.resolved(composition.compose(asked))
    assert cfg["strategy"] == (option if group == "strategy" else preset or "fedavg")
    if group not in ("data", "fleet", "partition", "model"):
        assert factory.method(cfg).name == cfg["strategy"]
    node = cfg.get(group)
    if isinstance(node, Mapping) and "_target_" in node:
        assert composition.instantiate(node, group) is not None
    elif group in TRANSFORM_SLOTS:
        assert all(part is not None for part in composition.transforms(node, group))


@pytest.mark.parametrize("name", [f for f in FILES if not f.startswith(("strategy/", "debug/", "transport/"))])
def test_an_option_says_what_it_builds_or_nothing(name):
    node = OmegaConf.to_container(OmegaConf.load(source_tree.conf() / f"{name}.yaml"))
    assert isinstance(node, dict)
    inner = [v for v in node.values() if isinstance(v, dict)]
    assert node == {} or "_target_" in node or (inner and all("_target_" in v for v in inner))


@pytest.mark.parametrize("name", FILES)
def test_an_option_spells_out_every_value_its_part_takes(name):
    node = OmegaConf.to_container(OmegaConf.load(source_tree.conf() / f"{name}.yaml"))
    for part in (node, *(inner for inner in node.values() if isinstance(inner, dict))):
        if "_target_" not in part:
            continue
        module, _, attribute = part["_target_"].rpartition(".")
        takes = inspect.signature(getattr(import_module(module), attribute)).parameters.values()
        named = {p.name: p for p in takes if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        inner = {
            str(value).partition("@")[2]
            for item in part.get("defaults", [])
            if isinstance(item, dict)
            for value in item
        }
        given = {key for key in part if not key.startswith("_") and key != "defaults"}
        assert given <= set(named), "unknown to its part"
        assert {key for key, p in named.items() if p.default is not p.empty} - given - inner == set(), "not spelled out"
        # a number that may have a fraction is written with one, or the command line would insist on whole numbers
        whole = [key for key in given if type(part[key]) is int and "float" in str(named[key].annotation)]
        assert whole == []


def test_optional_axes_have_an_option_none():
    for group in (*TRANSFORM_SLOTS, "attack"):
        assert "none" in composition.options()[group]
        assert OmegaConf.load(source_tree.conf() / group / "none.yaml") == {}


def test_every_file_under_conf_belongs_to_a_group():
    assert {p.stem for p in source_tree.conf().glob("*.yaml")} == TOP
    assert [p for p in source_tree.conf().rglob("*") if p.is_file() and p.suffix != ".yaml"] == []


def test_the_demo_composes():
    demo = OmegaConf.load(source_tree.conf() / "demo.yaml").overrides
    for combination in overrides.product([str(text) for text in demo]):
        factory.method(composition.resolved(composition.compose(combination)))
