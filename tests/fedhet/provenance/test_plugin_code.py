"""The plug-in modules that a run depends on; it continues with no others."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fedhet.config import composition
from fedhet.provenance import plugin_code, source_tree
from fedhet.provenance.plugin_code import PluginError
from fedhet.runs import run_config, runner


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the user's own on the import path, whose module names are new for every test."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    source_tree.also(tmp_path)
    return tmp_path


def write(folder: Path, **sources: str) -> None:
    for name, source in sources.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
    source_tree.source_of.cache_clear()


def test_what_a_plug_in_imports_of_its_own_is_hashed_and_no_library(folder: Path) -> None:
    write(folder, pca_rule="import torch, json\nimport pca_help\n\nclass R: ...", pca_help="import pca_deep.inner\n")
    write(folder, pca_deep__inner="from . import other", pca_deep__other="", pca_unused="")
    cfg = {"rule": {"_target_": "pca_rule.R"}, "work": {"_target_": "clients.work.sgd.Sgd"}}
    found = plugin_code.hashes({**cfg, "model": {"_target_": "torch.nn.Linear"}})
    assert list(found) == ["pca_deep.inner", "pca_deep.other", "pca_help", "pca_rule"]
    assert plugin_code.hashes({"rule": {"_target_": "strategies.rules.mean.Mean"}}) == {}
    assert plugin_code.combined({}) == source_tree.fingerprint() != plugin_code.combined(found)


def test_comments_change_no_hash_and_code_does(folder: Path) -> None:
    cfg = {"rule": {"_target_": "pcb_rule.R"}}
    write(folder, pcb_rule="class R:\n    x = 1\n")
    before = plugin_code.hashes(cfg)
    write(folder, pcb_rule='"""What it is."""\nclass R:\n    x = 1  # one\n')
    assert plugin_code.hashes(cfg) == before
    plugin_code.check({**cfg, "plugins": before})
    write(folder, pcb_rule="class R:\n    x = 2\n")
    with pytest.raises(PluginError, match=r"module pcb_rule \(.*pcb_rule.py\) was changed"):
        plugin_code.check({**cfg, "plugins": before})
    plugin_code.check(cfg)  # a configuration that kept none


def test_a_run_does_not_go_on_with_a_plug_in_that_was_changed_is_gone_or_imports_more(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    write(folder, pcc_rule="import pcc_help\nfrom strategies.rules.mean import Mean as R", pcc_help="x = 1")
    resolved = composition.resolved(composition.compose(["rule=pcc_rule.R", "debug=quick"]))
    assert list(resolved["plugins"]) == ["pcc_help", "pcc_rule"]
    run = tmp_path_factory.mktemp("run")
    (run / "config.yaml").write_text(run_config.text(resolved))
    write(folder, pcc_help="x = 2")
    with pytest.raises(PluginError, match=r"module pcc_help .* was changed"):
        runner.resume(run)
    write(folder, pcc_help="import pcc_new\nx = 1", pcc_new="")
    with pytest.raises(PluginError, match=r"pcc_help .* was changed"):
        runner.resume(run)
    (folder / "pcc_help.py").unlink()
    source_tree.source_of.cache_clear()
    with pytest.raises(PluginError, match="module pcc_help is not found: run from the folder that it lies in"):
        runner.resume(run)
