"""Message handlers of a client: a ClientApp around a device, for one across a network and for simulated ones.

Plug-ins' memories live on the device's own disk where it has a place for them (`state` in the node's configuration),
and in Flower's `Context.state` where it does not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedhet.engine.background_tasks import AsksServerTasks
from fedhet.engine.client_runner import Device, Memories
from fedhet.flower import messages as records
from fedhet.flower.job_batch import JobRecord
from fedhet.flower.messages import Sign
from fedhet.numerics import wire_format
from fedhet.provenance import device_code, source_tree
from fedhet.types import Job, Memory

PRIVATE = frozenset({"data", "state"})
"""Of a node's configuration: paths on the device, which nobody else is told."""


def client_app(
    device_of: Callable[[Message], Device], *, seal: bool, signer: Callable[[str], Sign | None] = lambda run: None,
    tells: Callable[[str], bool] = lambda module: True, code: str = "",
) -> ClientApp:  # fmt: skip
    """A ClientApp around a way to get the device. `seal` is for a device across a network: every answer has a SHA-256,
    and what it is asked is checked. `signer` gives what signs the updates of a run; `tells` says whether a server may
    know which version of a module this process has. `code` is the fingerprint of a device that was built together with
    its server; fedhet's own if empty."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        job, _ = records.read_job(message.content)
        if seal:
            records.check_job(job)
        own = context.node_config.get("partition-id", job.client)
        if own != job.client:
            raise ValueError(f"job {job.id} is for client {job.client}, this is client {own}")
        payload, sha256 = records.read_payload(message.content)
        state, run = context.node_config.get("state"), records.read_run(message.content)
        if state and run:
            return Message(_from_disk(Path(str(state)), run, job, message), reply_to=message)
        memories = recall(context)
        update = device_of(message).answer(job, wire_format.open_tree(payload, sha256), memories)
        remember(context, memories)
        sign = signer(run) if run else None
        return Message(records.answer(update, code=code_of(message, code), seal=seal, sign=sign), reply_to=message)

    def _from_disk(state: Path, run: str, job: Job, message: Message) -> RecordDict:
        """The answer that the disk holds if it is to this very job, else a new one, kept before it is sent."""
        from fedhet.flower.client_state import ClientStateStore

        keep = ClientStateStore(state / "runs")
        kept = keep.read(run)
        payload, sha256 = records.read_payload(message.content)
        name = f"{job.id} {job.version} {job.turn} {sha256 or wire_format.digest(payload)}"
        if kept.job == name and kept.answer is not None:
            return kept.answer
        keep.check(run)
        update = device_of(message).answer(job, wire_format.open_tree(payload, sha256), kept.memories)
        answer = records.answer(update, code=code_of(message, code), seal=seal, sign=signer(run))
        keep.write(run, name, answer, kept.memories)
        return answer

    def chore(message: Message, context: Context) -> Message:
        """The server's own work, done by a simulated run's workers: the layer's name is the group of the message."""
        layer = dict(device_of(message).method.transforms)[message.metadata.group_id]
        assert isinstance(layer, AsksServerTasks)
        found = layer.run(wire_format.open_tree(message.content.array_records["task"]["tree"].data))
        return Message(RecordDict({"result": records.payload_record(wire_format.encode(found))}), reply_to=message)

    if not seal:  # a device far from the server does no work of the server's
        app.query("server_task")(chore)

    @app.query("profile")
    def profile(message: Message, context: Context) -> Message:
        record = ConfigRecord()
        for name, value in context.node_config.items():
            if name not in PRIVATE:
                record[name] = value
        return Message(RecordDict({"profile": record, "fedhet": own_code(message, tells)}), reply_to=message)

    return app


def code_of(message: Message, code: str = "") -> str:
    """What an answer says of the code that made it: that of a device's half of the configuration that came with the
    job, or, where the device was built together with the server, that of the whole."""
    world = records.read_world(message.content)
    return device_code.digest(world) if world else code or source_tree.fingerprint()


def own_code(message: Message, tells: Callable[[str], bool]) -> ConfigRecord:
    """This process's protocol, and its hashes of the modules that a query asks for."""
    asked: Mapping[str, object] = message.content.config_records.get("fedhet") or {}
    names = json.loads(str(asked.get("modules", "[]")))
    names = [name for name in names[: device_code.MOST] if isinstance(name, str)]
    hashes = {n: device_code.CLOSED for n in names} | device_code.hashes([n for n in names if tells(n)])
    return ConfigRecord({"protocol": device_code.PROTOCOL, "code": json.dumps(hashes)})


class DeviceApp:
    """The ClientApp around one device for processes of our own, which may do several jobs without their messages."""

    def __init__(self, device: Device, code: str = "") -> None:
        self._device, self._app = device, client_app(lambda message: device, seal=False, code=code)
        self._code = code or source_tree.fingerprint()

    def __call__(self, message: Message, context: Context) -> Message:
        return self._app(message, context)

    def record_of(self, message: Message, context: Context) -> JobRecord | None:
        """The job and its payload, if they are all there is; None if the message is for the app."""
        if not self._device.can_batch or context.state or message.metadata.message_type != "train":
            return None
        payload, sha256 = records.read_payload(message.content)
        own = context.node_config.get("partition-id", "")
        return None if sha256 else JobRecord(f"{own} {records.job_text(message.content)}", payload)

    def run_batch(self, briefs: Sequence[JobRecord], rooms: Sequence[memoryview | None]) -> list[JobRecord] | None:
        """Header and payload of the answers; None if the messages are for the app."""
        told = [brief.text.partition(" ") for brief in briefs]
        jobs = [records.parse_job(job)[0] for _, _, job in told]
        if any(own not in ("", str(job.client)) for job, (own, _, _) in zip(jobs, told, strict=True)):
            return None  # the app says what is wrong with it
        updates = self._device.run_batch(jobs, [wire_format.open_tree(brief.payload) for brief in briefs], rooms)
        if updates is None:
            return None
        return [
            JobRecord(records.answer_text(update, self._code), wire_format.encode(update.delta)) for update in updates
        ]

    def reply(self, message: Message, answer: JobRecord) -> Message:
        """The message that the app would have answered with."""
        return Message(records.compose_answer(answer.text, answer.payload), reply_to=message)


def recall(context: Context) -> Memories:
    """The plug-ins' memories a client's context holds."""
    memories: Memories = {}
    for name, record in context.state.items():
        if name.startswith("memory.") and isinstance(record, ArrayRecord):
            memory: Memory = {k: v.clone() for k, v in wire_format.open_tree(record["tree"].data).items()}
            memories[name.removeprefix("memory.")] = memory
    return memories


def remember(context: Context, memories: Memories) -> None:
    """Put memories back into the context; one that emptied is removed."""
    for name in [n for n in context.state if n.startswith("memory.")]:
        del context.state[name]
    for name, memory in sorted(memories.items()):
        context.state["memory." + name] = records.payload_record(wire_format.encode(memory))
