"""Where modules were before they had rooms: `fedhet.gate` is now `fedhet.engine.update_validation`, and so on.

For one release the former names are imported as the present modules, each with a line that names the present one.
Configurations and overrides that were written with former names are read as what these are called now.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from importlib.abc import Loader

MODULES = {
    "aggregation": "engine.aggregator",
    "app": "flower.client_handlers",
    "aside": "engine.background_thread",
    "bases.layer": "bases.transform",
    "batched": "native.mlp_batched",
    "blocks": "numerics.stacking",
    "books": "engine.server_state",
    "build": "config.factory",
    "bulletin": "deployment.notices",
    "bundle": "flower.app_bundle",
    "calendar": "population.availability",
    "card": "export.model_card",
    "catalogue": "config.catalog",
    "checkpoint": "runs.checkpoint",
    "chores": "engine.background_tasks",
    "cite": "config.citations",
    "cli_bench": "cli.bench",
    "cli_client": "cli.client",
    "cli_compare": "cli.compare",
    "cli_enroll": "cli.federation",
    "cli_run": "cli.run",
    "cli_show": "cli.show",
    "cli_simulate": "cli.simulate",
    "cli_submit": "cli.submit",
    "cli_sweep": "cli.sweep",
    "cli_use": "cli.use",
    "client": "engine.client_runner",
    "clock": "engine.clock",
    "compiled": "native.compiler",
    "compose": "engine.method",
    "descent": "native.mlp_sgd",
    "descent_source": "native.mlp_sgd_c",
    "device_code": "provenance.device_code",
    "drive": "flower.event_loop",
    "durable": "system.atomic_file",
    "ending": "runs.run_ending",
    "enroll.admission": "federation.server.admission",
    "enroll.agent": "federation.device.agent",
    "enroll.agree": "federation.server.registry_check",
    "enroll.alone": "federation.common.exclusive",
    "enroll.audit": "federation.server.audit_log",
    "enroll.benchmark": "federation.device.benchmark",
    "enroll.ca": "federation.pki.ca",
    "enroll.canonical": "federation.pki.canonical_json",
    "enroll.certificates": "federation.pki.certificates",
    "enroll.desk": "federation.server.control_socket",
    "enroll.device": "federation.device.state",
    "enroll.device_commands": "federation.device.commands",
    "enroll.doctor": "federation.device.doctor",
    "enroll.errors": "federation.common.errors",
    "enroll.federation": "federation.server.operator",
    "enroll.fence": "federation.device.allowlist",
    "enroll.files": "federation.common.private_files",
    "enroll.flower": "federation.server.superlink",
    "enroll.guard": "federation.server.connection_limits",
    "enroll.identity": "federation.pki.identity",
    "enroll.join": "federation.device.join",
    "enroll.limits": "federation.server.rate_limits",
    "enroll.link": "federation.device.server_connection",
    "enroll.lock": "federation.pki.key_encryption",
    "enroll.members": "federation.server.membership",
    "enroll.names": "federation.server.client_names",
    "enroll.node": "deployment.device_node",
    "enroll.offline": "federation.device.offline_join",
    "enroll.operator_key": "federation.pki.operator_key",
    "enroll.orders": "federation.pki.signed_orders",
    "enroll.output": "federation.common.output",
    "enroll.passphrase": "federation.pki.passphrase",
    "enroll.peers": "federation.server.peer_addresses",
    "enroll.policy": "federation.server.policy",
    "enroll.processes": "federation.common.process_supervisor",
    "enroll.profiles": "federation.server.client_profiles",
    "enroll.proxy": "federation.server.tls_proxy",
    "enroll.registry": "federation.server.registry",
    "enroll.rows": "federation.server.registry_writes",
    "enroll.runs": "federation.server.run_supervisor",
    "enroll.seal": "federation.pki.signed_requests",
    "enroll.serve": "federation.server.serve",
    "enroll.service": "federation.server.http_api",
    "enroll.sign": "federation.pki.update_signature",
    "enroll.signer": "federation.pki.ca_signer",
    "enroll.speed": "federation.device.bandwidth",
    "enroll.submit": "federation.server.submit",
    "enroll.tables": "federation.server.schema",
    "enroll.tokens": "federation.pki.invitation",
    "enroll.trust": "federation.pki.trust",
    "enroll.vouch": "federation.server.update_verification",
    "evaluate": "runs.evaluator",
    "experiment": "runs.experiment",
    "explain": "runs.explain",
    "finished": "runs.saved_run",
    "flower_compat": "flower.compat",
    "flower_fleet": "flower.fleet_api",
    "flower_legacy": "simulation.legacy_servers",
    "flower_project": "simulation.flower_project",
    "flower_replies": "flower.reply_stream",
    "flower_socket": "flower.socket_files",
    "gate": "engine.update_validation",
    "grids.arena": "numerics.shared_memory",
    "grids.cluster": "simulation.ray_executor",
    "grids.crew": "simulation.simultaneous",
    "grids.executor": "simulation.executor",
    "grids.hands": "simulation.background_tasks",
    "grids.line": "simulation.worker_channel",
    "grids.parcel": "simulation.message_packing",
    "grids.pool": "simulation.worker_pool",
    "grids.pulse": "system.process_liveness",
    "grids.virtual": "simulation.virtual_grid",
    "grids.worker": "simulation.worker",
    "heap": "native.malloc",
    "hierarchy.columns": "hierarchy.column_shards",
    "hierarchy.leaf": "hierarchy.worker",
    "hierarchy.share": "hierarchy.shard",
    "hierarchy.team": "hierarchy.processes",
    "hierarchy.tree": "hierarchy.reduction_tree",
    "initial": "flower.initial_model",
    "inner": "numerics.gram",
    "joined": "model.batch_joining",
    "journal": "runs.write_ahead_log",
    "keep": "flower.client_state",
    "kernel": "native.weighted_sum",
    "launch": "runs.runner",
    "limits": "engine.stopping",
    "live": "deployment.live_run",
    "locks": "system.file_lock",
    "lowrank": "numerics.low_rank",
    "message": "flower.messages",
    "module_state": "model.module_state",
    "nodes": "flower.node_directory",
    "origin": "provenance.source_tree",
    "overrides": "config.overrides",
    "perceptron": "native.mlp_gradient",
    "plain": "numerics.plain_data",
    "profile": "population.profile",
    "progress": "cli.progress",
    "ray": "deployment.ray_simulation",
    "record": "runs.event_log",
    "rehearsal": "runs.rehearsal",
    "report.bars": "report.timeline_items",
    "report.chart": "report.line_chart",
    "report.compare": "report.aggregate_runs",
    "report.comparison": "report.comparison_page",
    "report.figures": "report.number_format",
    "report.files": "report.run_reader",
    "report.labels": "report.run_labels",
    "report.ledger": "report.update_accounting",
    "report.lives": "report.event_records",
    "report.markup": "report.html",
    "report.ranking": "report.comparison_table",
    "report.runs": "report.run_groups",
    "report.skeleton": "report.page_layout",
    "report.staleness": "report.staleness_chart",
    "report.story": "report.event_replay",
    "report.tables": "report.page_tables",
    "result": "runs.result",
    "roster": "population.roster",
    "run_config": "runs.run_config",
    "seeding": "simulation.global_seeds",
    "server": "engine.server",
    "session": "runs.session",
    "shelf": "numerics.buffer_pool",
    "shown": "display",
    "simulate": "simulation.flower_app",
    "streams": "numerics.rng",
    "superlink": "deployment.local_superlink",
    "transports": "simulation.virtual_time",
    "tree": "numerics.tree",
    "variation": "population.speed_variation",
    "wire": "numerics.wire_format",
}
"""Former module names below `fedhet`, and what they are now."""
NAMES = {
    "config": "config.composition",
    "flower": "deployment.strategy",
    "export": "export.export",
    "model": "model.flat_model",
    "testing": "testing.quadratic",
}
"""Of packages that bear a former module's name: which module has what that one had."""
TRANSPORTS = {
    "virtual": "fedhet.simulation.virtual_time.VirtualTime",
    "cluster": "fedhet.simulation.virtual_time.RayCluster",
    "ray": "fedhet.deployment.ray_simulation.RaySimulation",
    "superlink": "fedhet.deployment.local_superlink.LocalSuperLink",
    "flower": "fedhet.deployment.live_run.OnGrid",
}
"""Transports by the name that configurations had in place of a target."""
PACKAGES = ("fedhet.enroll", "fedhet.grids")
"""Folders that former modules were in."""
TARGETS = {"clients.fleet.unlike.Unlike": "clients.fleet.mixed_devices.MixedDevices"}
"""Classes with another name than before."""
OPTIONS = {"fleet=unlike": "fleet=mixed_devices"}
"""Options of configuration groups."""
KEYS = {"gate.clones": "gate.reject_duplicates", "gate.forgive_after": "gate.clear_violation_after"}
"""Keys of the configuration."""
CLASSES = {
    "fedhet.protocols": {
        "Layer": "Transform", "Policy": "BudgetPolicy", "Together": "BatchedWork", "Picking": "OffersIndexedBatches",
    },
    "fedhet.bases": {"AbstractLayer": "AbstractTransform"},
}  # fmt: skip
"""Of modules that stayed where they were: what classes in them were called."""

HOOKS = {"accept": "decode_delta", "parts": "split_optimized"}
"""Methods of spaces that somebody may override."""


class FormerName(FutureWarning):
    """Something is still called by a former name."""


class FormerNames:
    """Imports a former name as the present module: the same object, so that there are no two of any class.

    A finder and a loader without the bases of `importlib.abc`: to import those takes longer than all of this package.
    """

    def __init__(self) -> None:
        self.specs: dict[str, ModuleSpec | None] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A spec for a former name of ours; None for any other."""
        if fullname in PACKAGES:
            return ModuleSpec(fullname, cast("Loader", self), is_package=True)
        return ModuleSpec(fullname, cast("Loader", self), is_package=False) if present(fullname) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """The present module; a new one, with nothing in it, for a folder that there is no more."""
        now = present(spec.name)
        if now is None:
            return None
        _warn(spec.name, now)
        module = importlib.import_module(now)
        self.specs[now] = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It was executed under its present name, which its `__spec__` goes on to say."""
        module.__spec__ = self.specs.get(module.__name__, module.__spec__)

    def get_code(self, fullname: str) -> CodeType | None:
        """For `python -m`."""
        now = present(fullname)
        spec = find_spec(now) if now else None
        code: CodeType | None = spec.loader.get_code(spec.name) if spec and spec.loader else None  # type: ignore[attr-defined]
        return code


def install() -> None:
    """Former names can be imported from now on; what exists comes first."""
    if not any(isinstance(finder, FormerNames) for finder in sys.meta_path):
        sys.meta_path.append(FormerNames())


def as_notices() -> None:
    """From now on each former name in use is one line on standard error, for commands."""
    shown = warnings.showwarning
    if getattr(shown, "former_names", False):
        return

    def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        if issubclass(category, FormerName):
            print(f"notice: {message}", file=sys.stderr, flush=True)
        else:
            shown(message, category, *rest, **more)

    show.former_names = True  # type: ignore[attr-defined]
    warnings.showwarning = show


def present(module: str) -> str | None:
    """The present name of a former module; None if it is none."""
    top, _, rest = module.partition(".")
    return f"fedhet.{MODULES[rest]}" if top == "fedhet" and rest in MODULES else None


def renamed(module: str, name: str) -> Any:
    """A class by its former name, for a module's `__getattr__`. Raises AttributeError."""
    now = CLASSES.get(module, {}).get(name)
    if now is None:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    _warn(f"{module}.{name}", f"{module}.{now}")
    return getattr(sys.modules[module], now)


def rename_hooks(space: type) -> None:
    """Give what a space's class defines by a former name its present name, so that it is not passed over in silence."""
    for former, now in HOOKS.items():
        if former in vars(space) and now not in vars(space):
            _warn(f"{space.__name__}.{former}", now)
            setattr(space, now, vars(space)[former])


def overrides(texts: Sequence[str]) -> list[str]:
    """Overrides as they would be typed today."""
    return [_override(text) for text in texts]


def _override(text: str) -> str:
    key, equals, value = text.partition("=")
    plain = key.lstrip("+~")
    now = f"{key[: len(key) - len(plain)]}{KEYS.get(plain, plain)}{equals}{value}"
    now = OPTIONS.get(now, now)
    if now != text:
        _warn(text, now)
    return now


def forwarded(package: str, name: str) -> Any:
    """What the former module of a package's name had. Raises AttributeError."""
    now = NAMES.get(package.removeprefix("fedhet."))
    if now is None or name.startswith("__") or find_spec(f"{package}.{name}") is not None:  # that is imported then
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    module = importlib.import_module(f"fedhet.{now}")
    if not hasattr(module, name):
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return getattr(module, name)


def current(node: Any) -> Any:
    """A configuration as it would be written today: former targets by their present names, nothing else changed."""
    if isinstance(node, Mapping):
        made = {key: current(value) for key, value in node.items()}
        if isinstance(target := made.get("_target_"), str):
            made["_target_"] = target_now(target)
        transport = made.get("transport")
        if isinstance(transport, Mapping) and "_target_" not in transport and transport.get("name") in TRANSPORTS:
            rest = {key: value for key, value in transport.items() if key != "name"}
            made["transport"] = {"_target_": TRANSPORTS[str(transport["name"])], **rest}
        for former, now in KEYS.items():
            (group, old), new = former.split("."), now.partition(".")[2]
            if isinstance(inside := made.get(group), dict) and old in inside:
                made[group] = {new if key == old else key: value for key, value in inside.items()}
        return made
    if isinstance(node, list | tuple):
        return [current(value) for value in node]
    return node


def target_now(target: str) -> str:
    """A dotted name of something inside a module, by the module's present name."""
    module, _, name = target.rpartition(".")
    if target in TARGETS:
        return TARGETS[target]
    if now := present(module):
        return f"{now}.{name}"
    inside = module.removeprefix("fedhet.")
    return f"fedhet.{NAMES[inside]}.{name}" if inside in NAMES and module.startswith("fedhet.") else target


def _warn(former: str, now: str) -> None:
    warnings.warn(f"{former} is now {now}; the former name goes with the next release", FormerName, stacklevel=4)
