"""Message handlers of a client: a ClientApp around a device, for devices across a network and for simulated ones.

The memories of plug-ins are stored on the device's disk if the node's configuration names a folder (`state`), and in
Flower's `Context.state` otherwise.
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

PRIVATE_KEYS = frozenset({"data", "state"})
"""Keys of a node's configuration that are paths on the device; they are not sent."""


def client_app(
    device_of: Callable[[Message], Device], *, seal: bool, signer: Callable[[str], Sign | None] = lambda run: None,
    tells: Callable[[str], bool] = lambda module: True, code: str = "",
) -> ClientApp:  # fmt: skip
    """A ClientApp; `device_of` gives the device for a message. `seal` is for a device across a network: every answer
    has a SHA-256, and every job is checked. `signer` maps a run to the function that signs its updates; `tells` decides
    whether a server may learn which version of a module this process has. `code` is the fingerprint of the code of a
    device that was built together with its server; by default fedhet's own."""
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
        """The stored answer if it answers this same job, else a new one, which is stored before it is sent."""
        from fedhet.flower.client_state import ClientStateStore

        store = ClientStateStore(state / "runs")
        stored = store.read(run)
        payload, sha256 = records.read_payload(message.content)
        name = f"{job.id} {job.version} {job.turn} {sha256 or wire_format.digest(payload)}"
        if stored.job == name and stored.answer is not None:
            return stored.answer
        store.check(run)
        update = device_of(message).answer(job, wire_format.open_tree(payload, sha256), stored.memories)
        answer = records.answer(update, code=code_of(message, code), seal=seal, sign=signer(run))
        store.write(run, name, answer, stored.memories)
        return answer

    def server_task(message: Message, context: Context) -> Message:
        """A server task, computed by a worker of a simulation; the message's group is the transform's name."""
        transform = dict(device_of(message).method.transforms)[message.metadata.group_id]
        assert isinstance(transform, AsksServerTasks)
        found = transform.run(wire_format.open_tree(message.content.array_records["task"]["tree"].data))
        return Message(RecordDict({"result": records.payload_record(wire_format.encode(found))}), reply_to=message)

    if not seal:  # a device across a network runs no server tasks
        app.query("server_task")(server_task)

    @app.query("profile")
    def profile(message: Message, context: Context) -> Message:
        record = ConfigRecord()
        for name, value in context.node_config.items():
            if name not in PRIVATE_KEYS:
                record[name] = value
        return Message(RecordDict({"profile": record, "fedhet": own_code(message, tells)}), reply_to=message)

    return app


def code_of(message: Message, code: str = "") -> str:
    """The hash of the code that an answer reports: of the modules in the configuration that came with the job, or,
    where the device was built together with the server, of the complete code."""
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
    """The ClientApp around one device for our own worker processes, which can run several jobs without messages."""

    def __init__(self, device: Device, code: str = "") -> None:
        self._device, self._app = device, client_app(lambda message: device, seal=False, code=code)
        self._code = code or source_tree.fingerprint()

    def __call__(self, message: Message, context: Context) -> Message:
        return self._app(message, context)

    def record_of(self, message: Message, context: Context) -> JobRecord | None:
        """The job and its payload, if the message has nothing else; None if it needs the app."""
        if not self._device.can_batch or context.state or message.metadata.message_type != "train":
            return None
        payload, sha256 = records.read_payload(message.content)
        own = context.node_config.get("partition-id", "")
        return None if sha256 else JobRecord(f"{own} {records.job_text(message.content)}", payload)

    def run_batch(self, jobs: Sequence[JobRecord], buffers: Sequence[memoryview | None]) -> list[JobRecord] | None:
        """Header and payload of each answer; None if the messages need the app."""
        split = [record.text.partition(" ") for record in jobs]
        parsed = [records.parse_job(job)[0] for _, _, job in split]
        if any(own not in ("", str(job.client)) for job, (own, _, _) in zip(parsed, split, strict=True)):
            return None  # the app reports what is wrong
        updates = self._device.run_batch(parsed, [wire_format.open_tree(record.payload) for record in jobs], buffers)
        if updates is None:
            return None
        return [
            JobRecord(records.answer_text(update, self._code), wire_format.encode(update.delta)) for update in updates
        ]

    def reply(self, message: Message, answer: JobRecord) -> Message:
        """The reply message that the app would have returned."""
        return Message(records.compose_answer(answer.text, answer.payload), reply_to=message)


def recall(context: Context) -> Memories:
    """The plug-ins' memories in a client's context."""
    memories: Memories = {}
    for name, record in context.state.items():
        if name.startswith("memory.") and isinstance(record, ArrayRecord):
            memory: Memory = {k: v.clone() for k, v in wire_format.open_tree(record["tree"].data).items()}
            memories[name.removeprefix("memory.")] = memory
    return memories


def remember(context: Context, memories: Memories) -> None:
    """Store memories in the context; those that are empty now are removed."""
    for name in [n for n in context.state if n.startswith("memory.")]:
        del context.state[name]
    for name, memory in sorted(memories.items()):
        context.state["memory." + name] = records.payload_record(wire_format.encode(memory))
