"""What a device builds of a received configuration: fedhet's options and what its owner allowed, nothing else."""

import copy
import json
import os
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fedhet.config import composition
from fedhet.deployment import clientapp
from fedhet.federation.common.errors import EnrollError
from fedhet.federation.device import allowlist, commands
from fedhet.federation.device.allowlist import Allowlist
from fedhet.federation.device.state import Device
from fedhet.provenance import source_tree
from fedhet.runs.experiment import Experiment


@pytest.fixture(scope="module")
def world():
    """The configuration that a server sends for a small run, as text."""
    resolved = composition.resolved(composition.compose(["data=synthetic", "data.samples=60", "fleet.clients=2"]))
    return Experiment.of(resolved).for_devices()


@pytest.fixture
def state(tmp_path):
    """The folder of a device that joined and whose owner allows nothing more."""
    (tmp_path / "state").mkdir(mode=0o700)
    Device(tmp_path / "state").note(name="st-mary", data="")
    return tmp_path / "state"


def edited(world, path, value):
    """A configuration with something else in one place."""
    cfg = json.loads(world)
    node = cfg
    *way, last = path.split(".")
    for key in way:
        node = node[key]
    node[last] = value
    return json.dumps(cfg)


def refused(code, text, allowed=None):
    with pytest.raises(EnrollError) as caught:
        (allowed or Allowlist()).admit(text)
    assert caught.value.code == code, caught.value
    return caught.value


def call(target, *args, **more):
    return {"_target_": target, "_args_": list(args), **more}


TOUCH = [["touch", "OWNED"]]
DEEP = {"a": 1}
for _ in range(40):
    DEEP = {"a": DEEP}

HOSTILE = {
    "starts a program": ("work", call("subprocess.check_output", *TOUCH)),
    "through a shell": ("work", call("os.system", "touch OWNED")),
    "when it is called": ("model", call("subprocess.run", *TOUCH, _partial_=True)),
    "of another process": ("schedule", call("asyncio.create_subprocess_shell", "touch OWNED")),
    "writes a file": ("work", call("pathlib.Path.write_text", {"_target_": "pathlib.Path", "_args_": ["OWNED"]}, "x")),
    "unpickles": ("model", call("torch.load", "OWNED")),
    "evaluates": ("work", call("builtins.eval", "open('OWNED', 'w')")),
    "ends the process": ("work", call("sys.exit", 0)),
    "imports": ("rule", call("importlib.import_module", "antigravity")),
    "by Hydra": ("work", call("hydra.utils.get_method", "os.system")),
    "by Hydra's class": ("work", call("hydra.utils.get_class", "subprocess.Popen")),
    "by Hydra once more": ("work", {"_target_": "hydra.utils.instantiate", "config": call("os.system", "touch OWNED")}),
    "our signer": ("work", call("fedhet.federation.pki.ca_signer.ask", ["touch", "OWNED"], "", None)),
    "our programs": (
        "work",
        call("fedhet.federation.common.process_supervisor.Program", "x", ["touch", "OWNED"], "OWNED", {}),
    ),
    "our files": ("work", call("fedhet.runs.event_log.write_atomic", "OWNED", "x")),
    "our record": ("work", call("fedhet.runs.event_log.Record", "OWNED")),
    "what ours imports": ("model", call("fedhet.config.factory.config.os.system", "touch OWNED")),
    "what a plug-in imports": ("model", call("clients.models.checkpoint.safetensors.torch.load_file", "OWNED")),
    "a name brought in": ("model", call("clients.models.checkpoint.Path", "OWNED")),
    "a module brought in": ("work", call("strategies.rules.chain.math.floor", 1)),
    "a plug-in's function": ("work", call("clients.data.dataset.cached", "x", None, {}, None, "x")),
    "a private function": ("model", {"_target_": "clients.models.pretrained._load", "kind": "AutoModel"}),
    "a method of a class": ("model", call("strategies.rules.krum.Krum.__init__.__globals__.get", "x")),
    "a command": ("work", call("fedhet.__main__.main")),
    "a module": ("work", call("strategies.rules.krum")),
    "nothing": ("work", call("")),
    "no text": ("work", {"_target_": {"_target_": "os.system"}}),
    "deep in arguments": ("rule.more", [{"x": [{"y": call("os.system", "touch OWNED")}]}]),
    "in positional arguments": ("rule", call("strategies.rules.chain.Chain", [call("os.system", "touch OWNED")])),
    "not built, but called later": ("model", {**call("os.system", "x"), "_partial_": True, "_recursive_": False}),
    "an environment variable": ("strategy", "${oc.env:HOME}"),
    "a decoded text": ("work._target_", "${oc.decode:os.system}"),
    "an interpolated key": ("rule.more", {"${oc.env:HOME}": 1}),
    "a flag that is none": ("work._partial_", "yes"),
    "a word of nobody's": ("work._call_", True),
    "too deep": ("work.more", DEEP),
    "too many": ("work.more", [0] * 20_001),
}


@pytest.mark.parametrize("path, value", HOSTILE.values(), ids=HOSTILE)
def test_a_device_builds_nothing_of_a_hostile_configuration(path, value, world, state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    text = edited(world, path, value)
    with pytest.raises(EnrollError) as caught:
        clientapp._device(text, str(state))
    assert caught.value.code == "E213" and not Path("OWNED").exists()
    assert "antigravity" not in sys.modules
    assert not {name for name in set(sys.modules) - before if name.partition(".")[0] not in allowlist.PLUGIN_PACKAGES}


def test_what_is_no_small_configuration_is_not_read_on():
    refused("E213", "[" * 100_000)
    refused("E213", "[]")
    refused("E213", "{")
    refused("E213", '{"a": "' + "x" * (1 << 20) + '"}')


def test_the_device_of_an_honest_configuration_is_built(world, state):
    device = clientapp._device(world, str(state))
    assert type(device.method.rule).__name__ == "Mean"
    assert Allowlist().admit(world) == json.loads(world)


def every_option():
    """Each `_target_` under conf/, with the file that names it, but for transports: no device is sent one."""
    for path in sorted(set(source_tree.conf().rglob("*.yaml")) - set((source_tree.conf() / "transport").glob("*"))):
        yield from targets(OmegaConf.to_container(OmegaConf.load(path), resolve=False), path)


def targets(node, path):
    if isinstance(node, dict):
        if isinstance(node.get("_target_"), str):
            yield node["_target_"], path
        for value in node.values():
            yield from targets(value, path)
    elif isinstance(node, list):
        for value in node:
            yield from targets(value, path)


def test_every_option_that_comes_with_fedhet_can_be_built_on_a_device():
    named = dict(every_option())
    assert len(named) > 100
    for target in named:
        Allowlist().admit(json.dumps({"x": {"_target_": target}}))
    assert {t for t in named if t.startswith("fedhet.")} == allowlist.FEDHET_TARGETS, (
        "what is allowed of our own is what is named"
    )


def test_of_our_functions_only_models_factories_can_be_built():
    """A new function that takes input_shape and classes is one that a server may call on every device."""
    import ast

    found = set()
    for package in allowlist.PLUGIN_PACKAGES:
        for path in (source_tree.root() / package).rglob("*.py"):
            module = ".".join(path.relative_to(source_tree.root()).with_suffix("").parts)
            for node in ast.parse(path.read_text()).body:
                public = isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
                if public and allowlist._is_factory(node, ours=True):
                    found.add(f"{module}.{node.name}")
    named = {target for target, path in every_option() if path.parent.name == "model"}
    assert found == named


OWN_PACKAGE = """
import os
from os import system
from subprocess import Popen as Quiet

class Rule:
    def __init__(self, factor=1.0):
        self.factor = factor

class Swapped:
    pass

Swapped = os.system

def net(input_shape, classes):
    raise AssertionError

def clean_up(folder="/"):
    os.system("touch OWNED")
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of the owner's with plug-ins and other things."""
    folder = tmp_path / "site" / "own_plugins"
    (folder / "deep").mkdir(parents=True)
    (folder / "__init__.py").write_text("from own_plugins.rules import Rule\n")
    (folder / "rules.py").write_text(OWN_PACKAGE)
    (folder / "deep" / "more.py").write_text("class More:\n    pass\n")
    (folder / "__main__.py").write_text("class Start:\n    pass\nopen('OWNED', 'w')\n")
    (tmp_path / "site" / "own_plugins_too").mkdir()
    (tmp_path / "site" / "own_plugins_too" / "rules.py").write_text("class Rule:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.chdir(tmp_path)
    source_tree.source_of.cache_clear()
    yield "own_plugins"
    source_tree.source_of.cache_clear()
    for name in [n for n in sys.modules if n.startswith("own_plugins")]:
        del sys.modules[name]


def test_a_package_that_the_owner_named_is_built_and_no_other(package):
    allowed = Allowlist(packages=(package,))
    for target in ("own_plugins.rules.Rule", "own_plugins.rules.net", "own_plugins.deep.more.More"):
        text = json.dumps({"rule": {"_target_": target}})
        assert allowed.admit(text) == json.loads(text)
        refused("E213", text)
    for target in (
        "own_plugins.Rule",  # it is defined elsewhere
        "own_plugins.rules.system",
        "own_plugins.rules.Quiet",
        "own_plugins.rules.os.system",
        "own_plugins.rules.clean_up",
        "own_plugins.rules.Swapped",
        "own_plugins.__main__.Start",
        "own_plugins.rules",
        "own_plugins.none.Rule",
        "own_plugins_too.rules.Rule",
    ):
        refused("E213", json.dumps({"rule": {"_target_": target}}), allowed)
    assert not Path("OWNED").exists()
    refused("E213", '{"rule": {"_target_": "own_plugins.rules.Rule"}}', Allowlist(packages=("own_plugins.deep",)))


def test_nothing_is_imported_of_a_configuration_of_which_a_part_is_refused(package):
    text = json.dumps({"a": {"_target_": "own_plugins.rules.Rule"}, "b": {"_target_": "os.system"}})
    refused("E213", text, Allowlist(packages=(package,)))
    assert package not in sys.modules


@pytest.fixture
def places(tmp_path):
    """A folder that the owner named and one that is none of the server's business, with links between them."""
    for name in ("named/mnist", "private"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "private" / "scans.parquet").write_text("x")
    (tmp_path / "named" / "out").symlink_to(tmp_path / "private")
    (tmp_path / "named" / "round").symlink_to(tmp_path / "named" / "mnist")
    (tmp_path / "link").symlink_to(tmp_path / "named")
    return tmp_path


def data(key, value):
    return json.dumps({"data": {"_target_": "clients.data.parquet.Images", key: value}})


@pytest.mark.parametrize("key", ["path", "cache", "elsewhere"])
def test_a_path_of_a_configuration_stays_below_the_folders_that_the_owner_named(places, key):
    allowed = Allowlist(folders=(str(places / "named"),))
    for value in ("named", "named/mnist", "named/../named/mnist", "named/round", "named/not-yet"):
        admitted = allowed.admit(data(key, str(places / value)))["data"][key]
        assert admitted == str((places / value).resolve()), "what was checked is what is opened"
    linked = Allowlist(folders=(str(places / "link"),))
    for value in ("link/mnist", "named/mnist"):
        assert linked.admit(data(key, str(places / value)))["data"][key] == str(places / "named" / "mnist")
    assert allowed.admit(data(key, "./mnist"))["data"][key] == str(places / "named" / "mnist")
    for value in (
        str(places / "private"),
        str(places / "named" / ".." / "private"),
        str(places / "named" / "out"),
        str(places / "named" / "out" / "scans.parquet"),
        str(places / "named-not"),
        str(places / "link" / "mnist"),
        "../private",
        "mnist/../../private",
        "./none",
        "/",
        "/etc/passwd",
        "~/.ssh",
        "~nobody-at-all/x",
        "..",
        "file:///etc/passwd",
        "https://example.org/x",
        "a\0b",
    ):
        error = refused("E214", data(key, value), allowed)
        assert str(places / "named") not in error.line.replace(value, ""), "what there is on a device is not told"
        refused("E214", data(key, value))


def test_a_relative_path_is_below_a_named_folder_and_not_where_the_process_works(places, monkeypatch):
    monkeypatch.chdir(places / "private")
    allowed = Allowlist(folders=(str(places / "named"),))
    refused("E214", data("path", "scans.parquet"), allowed)
    assert allowed.admit(data("path", "mnist"))["data"]["path"] == str(places / "named" / "mnist")


def test_a_hub_is_reached_for_what_the_owner_named_alone():
    text = data("hub", "ylecun/mnist")
    refused("E214", text)
    refused("E214", text, Allowlist(hubs=("ylecun/mnist2",)))
    assert Allowlist(hubs=("ylecun/mnist",)).admit(text) == json.loads(text)
    for key in ("tokenizer", "path"):
        refused("E214", json.dumps({"model": {"_target_": "clients.models.pretrained.causal_lm", key: "gpt2"}}))


def test_settings_are_kept_until_others_are_given(package, places, state, monkeypatch):
    device = Device(state)
    monkeypatch.chdir(places)
    commands.store_allowed(device, ([package], ["named"], ["ylecun/mnist", "gpt2"]))
    commands.store_allowed(device, (None, None, ["gpt2"]))
    assert Allowlist.of(device.about) == Allowlist((package,), (str(places / "named"),), ("gpt2",))
    commands.store_allowed(device, ([""], [""], None))
    assert Allowlist.of(device.about) == Allowlist((), (), ("gpt2",))
    device.note(data=str(places / "private"))
    assert Allowlist.of(device.about).folders == (str(places / "private"),), "the data it joined with"
    device.note(data="private")
    assert Allowlist.of(device.about).folders == (), "from where is not known"


@pytest.mark.parametrize(
    "allowed",
    [
        (["os"], None, None),
        (["fedhet.runs.event_log"], None, None),
        (["no_such_package"], None, None),
        (None, ["none"], None),
    ],
)
def test_what_cannot_be_allowed_is_refused_at_the_start(allowed, state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = copy.deepcopy(Device(state).about)
    with pytest.raises(EnrollError) as caught:
        commands.store_allowed(Device(state), allowed)
    assert caught.value.code == "E319" and Device(state).about == before
    assert os.listdir(state) == ["client.json"]
