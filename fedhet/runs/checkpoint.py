"""The state of a run on disk, written atomically: a run resumed from it continues bit for bit after a kill at any time.

A checkpoint is a folder with one JSON file and one payload per tree. It is written next to the last one and becomes
current when a file with its name and hash is renamed; the JSON file has the hashes of the others. So a file that was
altered, truncated or lost is detected before it is used. Jobs in flight are stored without their results: their
training is repeated, which gives the same bits.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import RecordDict

from fedhet import types
from fedhet.engine.background_tasks import ServerTask
from fedhet.engine.server import Server
from fedhet.engine.server_state import ClientHistory
from fedhet.engine.update_validation import Gate
from fedhet.flower.messages import payload_record
from fedhet.numerics import plain_data, wire_format
from fedhet.runs.event_log import write_atomic
from fedhet.system import atomic_file
from fedhet.system.atomic_file import DamagedError
from fedhet.types import Job, Tree, Update

PLAIN_FIELDS = (
    "now",
    "version",
    "closing",
    "turns",
    "held",
    "sent_earlier",
    "timers",
    "draws",
    "jobs",
    "landed",
    "consecutive_failures",
    "opened",
    "cause",
    "alike",
    "carried",
    "stuck",
)
"""Fields of the server that are plain data, stored as JSON under their names."""


class CheckpointError(DamagedError):
    """A run folder that cannot be resumed."""


@dataclass
class Extras:
    """What the host adds to the server's state: `numbers` has the clock, file sizes and byte counts, `clients` the
    memories of simulated clients."""

    numbers: dict[str, Any]
    clients: dict[int, RecordDict]


def save(folder: Path, server: Server, gate: Gate, extras: Extras) -> None:
    """Write the present state as the folder's checkpoint. The server must be between two instants."""
    root = folder / "checkpoint"
    root.mkdir(exist_ok=True)
    name = _free(root, f"{server.landed:012d}-{server.version:08d}")
    part, hashes = root / (name + ".part"), dict[str, str]()
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()

    def put(file: str, tree: Tree) -> None:
        hashes[file] = atomic_file.write(part / file, wire_format.encode(tree))

    for version, tree in server.bases.items():
        put(f"base-{version}", tree)
    for number, update in server.updates.items():
        put(f"update-{number}", update.delta)
    for transform, memory in server.memories.items():
        put(f"memory-{transform}", memory)
    for number, task in server.server_tasks.open.items():
        put(f"chore-{number}", task.update.delta)
        put(f"task-{number}", task.input)
    clients = {}
    for client, state in extras.clients.items():
        clients[str(client)] = sorted(state.array_records)
        for record, arrays in state.array_records.items():
            file = f"client-{client}-{record}"
            hashes[file] = atomic_file.write(part / file, arrays["tree"].data)
    data = {
        "server": {name: plain_data.dump(getattr(server, name)) for name in PLAIN_FIELDS},
        "counts": dict(server.counts),
        "seen": {
            str(c): [s.finished, s.failed, s.seconds_per_step, s.rank, s.faults, s.why] for c, s in server.seen.items()
        },
        "excluded": sorted(server.excluded),
        "revoked_jobs": sorted(server.revoked_jobs),
        "inflight": plain_data.dump(list(server.inflight.values())),
        "buffer": plain_data.dump(list(server.buffer.values())),
        "updates": {str(n): [u.weight, u.scale, dict(u.metrics)] for n, u in server.updates.items()},
        "server_tasks": [
            [
                plain_data.dump(c.update.job),
                [c.update.weight, c.update.scale, dict(c.update.metrics)],
                c.transform,
                c.due,
                c.seconds,
            ]
            for c in server.server_tasks.open.values()
        ],
        "bases": sorted(server.bases),
        "memories": sorted(server.memories),
        "schedule": plain_data.dump(server.method.schedule),
        "gate": gate.dump(),
        "clients": clients,
        "extras": extras.numbers,
        "files": hashes,
    }
    digest = atomic_file.write(part / "run.json", json.dumps(data).encode())
    atomic_file.sync_folder(part)
    final = root / name
    part.replace(final)
    atomic_file.sync_folder(root)
    write_atomic(root / "current", f"{name} {digest}")  # on the disk before the last checkpoint is deleted
    for old in root.iterdir():
        if old.is_dir() and old != final:
            shutil.rmtree(old)


def exists(folder: Path) -> bool:
    """Whether a run folder has a complete checkpoint."""
    return (folder / "checkpoint" / "current").is_file()


def peek(folder: Path) -> dict[str, Any]:
    """The host's numbers in the current checkpoint, without building the server."""
    numbers: dict[str, Any] = _read(folder)[1]["extras"]
    return numbers


def load(folder: Path, server: Server, gate: Gate) -> Extras:
    """Restore the folder's checkpoint into a newly built server and gate; returns the host's part. Raises
    CheckpointError or DamagedError."""
    at, data = _read(folder)
    hashes = data["files"]

    def content(file: str) -> bytes:
        if file not in hashes:
            raise CheckpointError(f"{at}: run.json has no hash of {file}")
        return atomic_file.read(at / file, hashes[file])

    def tree(file: str) -> Tree:
        return wire_format.open_tree(bytearray(content(file)))

    schedule = server.method.schedule
    modules = [sys.modules[type(schedule).__module__], types]
    for name in PLAIN_FIELDS:
        if name in data["server"]:  # checkpoints of former versions have no carried updates
            setattr(server, name, plain_data.load(data["server"][name], modules))
    plain_data.fill(schedule, data["schedule"], modules)
    server.counts = Counter(data["counts"])
    server.seen = {int(c): ClientHistory(*row) for c, row in data["seen"].items()}
    server.excluded.update(data["excluded"])
    server.revoked_jobs = set(data["revoked_jobs"])
    server.bases = {v: tree(f"base-{v}") for v in data["bases"]}
    server.state = server.bases[server.version]
    server.memories = {m: dict(tree(f"memory-{m}")) for m in data["memories"]}
    jobs: list[Job] = plain_data.load(data["buffer"], modules)
    inflight: list[Job] = plain_data.load(data["inflight"], modules)
    updates = {
        job.id: Update(job, tree(f"update-{job.id}"), *data["updates"][str(job.id)]) for job in jobs
    }  # weight, scale, metrics in the record's order
    for stored, fields, transform, due, seconds in data["server_tasks"]:
        job = plain_data.load(stored, modules)
        update = Update(job, tree(f"chore-{job.id}"), *fields)
        server.server_tasks.take(ServerTask(update, transform, dict(tree(f"task-{job.id}")), due, seconds))
    server.adopt(inflight, jobs, updates)
    prepared = [task.update for task in server.server_tasks.open.values()]
    gate.remember([*updates.values(), *prepared])  # the digests of waiting updates; `load` restores the rest
    gate.load(data["gate"])
    clients = {
        int(c): RecordDict({r: payload_record(content(f"client-{c}-{r}")) for r in records})
        for c, records in data["clients"].items()
    }
    return Extras(data["extras"], clients)


def _free(root: Path, name: str) -> str:
    """A folder name that does not exist yet: saving twice at one time must not change the existing checkpoint."""
    names = itertools.chain([name], (f"{name}-{again}" for again in itertools.count(2)))
    return next(one for one in names if not (root / one).exists())


def _read(folder: Path) -> tuple[Path, dict[str, Any]]:
    current = folder / "checkpoint" / "current"
    if not current.is_file():
        raise CheckpointError(f"{folder} has no checkpoint to resume from")
    name, _, digest = current.read_text(errors="replace").partition(" ")
    if not re.fullmatch(r"\d{12}-\d{8}(-\d+)?", name) or not digest:
        raise CheckpointError(f"{current} does not name a checkpoint: {atomic_file.OR_ANEW}")
    at = folder / "checkpoint" / name
    data: dict[str, Any] = json.loads(atomic_file.read(at / "run.json", digest))
    return at, data
