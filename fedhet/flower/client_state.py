"""What a device keeps of a run on its own disk: its plug-ins' memories, and its last answer, in one file, whole or not.

Personal layers, error feedback and control variates survive the process, the run's server and the machine's power. A
job that comes a second time, because the server died before it could hear the answer, is answered from the disk: it is
not trained twice, and the memories do not move twice.

    SHA-256 of all that follows, a line
    JSON line {"job", "head", "memories"} | payload of the answer | payloads of the memories
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, RecordDict

from fedhet.engine.client_runner import Memories
from fedhet.federation.common import private_files
from fedhet.flower.messages import payload_record
from fedhet.numerics import wire_format
from fedhet.system.atomic_file import DamagedError

ROOM = 1 << 20
"""Bytes that must be free, beside what was kept last, before a job is begun."""
RUNS = 4
"""Runs kept; the one that was silent for longest is forgotten first."""


class CannotWrite(OSError):
    """The device's disk takes no answer and no memory, so that it can do no job. Names no path: the server is told."""


@dataclass(frozen=True, slots=True)
class ClientState:
    """A run's file as it was read: the job answered last, its answer, and the memories after it."""

    job: str = ""
    answer: RecordDict | None = None
    memories: Memories = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClientStateStore:
    """The folder of a device's runs."""

    folder: Path

    def read(self, run: str) -> ClientState:
        """What is kept of a run; empty if it is new. Raises DamagedError for a file that is not what was written:
        memories that were altered would bend every later answer."""
        path = self._path(run)
        if not path.exists():
            return ClientState()
        told, _, rest = private_files.read_private(path).partition(b"\n")
        if told.decode(errors="replace") != wire_format.digest(rest):
            raise DamagedError(f"{path} is not what was written: delete it, and the client goes on with empty memories")
        data = memoryview(rest)
        end = bytes(data[: 1 << 20]).index(b"\n")
        about = json.loads(bytes(data[:end]))
        parts, at = [], end + 1
        for size in [about["answer"], *about["memories"].values()]:
            parts.append(data[at : at + size])
            at += size
        content: Mapping[str, Any] = {"fedhet": ConfigRecord(about["head"]), "payload": payload_record(bytes(parts[0]))}
        trees = (wire_format.open_tree(bytearray(part)) for part in parts[1:])
        memories = {name: dict(tree) for name, tree in zip(about["memories"], trees, strict=True)}
        return ClientState(about["job"], RecordDict(content), memories)  # type: ignore[arg-type]

    def check(self, run: str) -> None:
        """Before a job is done: raises CannotWrite if its answer could hardly be kept."""
        place = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        disk = os.statvfs(place)
        if disk.f_flag & os.ST_RDONLY:
            raise CannotWrite(errno.EROFS, os.strerror(errno.EROFS))
        path = self._path(run)
        needed = ROOM + (path.stat().st_size if path.exists() else 0)
        if disk.f_blocks and disk.f_bavail * disk.f_frsize < needed:  # some that are mounted from afar do not say
            raise CannotWrite(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write(self, run: str, job: str, answer: RecordDict, memories: Memories) -> None:
        """Keep an answer and the memories after it, in place of what was kept before; on the disk on
        return. Raises CannotWrite."""
        try:
            self._write(run, job, answer, memories)
        except OSError as error:
            raise CannotWrite(error.errno, error.strerror) from error

    def _write(self, run: str, job: str, answer: RecordDict, memories: Memories) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        payload = answer.array_records["payload"]["tree"].data
        packed = {name: wire_format.encode(memory) for name, memory in sorted(memories.items())}
        sizes = {name: len(data) for name, data in packed.items()}
        about = {"job": job, "head": dict(answer.config_records["fedhet"]), "answer": len(payload), "memories": sizes}
        data = b"".join([json.dumps(about).encode(), b"\n", payload, *packed.values()])
        private_files.write_file(self._path(run), wire_format.digest(data).encode() + b"\n" + data)
        for old in sorted(self.folder.glob("*.keep"), key=lambda path: path.stat().st_mtime)[:-RUNS]:
            old.unlink()

    def _path(self, run: str) -> Path:
        if not (run.isascii() and run.isalnum() and len(run) <= 64):
            raise ValueError(f"{run!r:.60} does not name a run")
        return self.folder / f"{run}.keep"
