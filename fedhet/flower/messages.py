"""Jobs and updates as Flower records: a JSON header, and one Array with one safetensors payload.

    request  {"fedhet": {"job": json list, "sha256": hex?, "world": json?, "run": hex?, "order": json?},
              "payload": {"tree": Array}}
    answer   {"fedhet": {"update": json, "sha256": hex?, "node": hex?, "signature": hex?}, "payload": {"tree": Array}}

`world` is the resolved configuration that a device needs to build its half of the method; it is absent if the device
was built together with the server. `order` is the operator's signature over it
(fedhet/federation/pki/signed_orders.py). `sha256` is the hash of a payload that crosses a network. `run` names the run;
`node` and `signature` identify the client of an answer where clients are enrolled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedhet.engine.answer import Answer
from fedhet.numerics import wire_format
from fedhet.numerics.wire_format import MalformedUpdate
from fedhet.types import Budget, Job, Update

STYPE = "fedhet.safetensors"
MAX_METRICS = 64
"""Metrics that an answer may have."""


Sign = Callable[[Update, bytes | memoryview], Mapping[str, str]]
"""Maps an update and its payload to the header fields "node" and "signature"."""


def array(payload: bytes | memoryview) -> Array:
    """A payload as a Flower Array. A memoryview is not copied, and must not leave this machine's processes."""
    made = Array("uint8", (len(payload),), STYPE, payload if isinstance(payload, bytes) else b"")
    if not isinstance(payload, bytes):
        made.data = payload  # type: ignore[assignment]  # the constructor would copy it
    return made


def payload_record(payload: bytes | memoryview) -> ArrayRecord:
    """A payload as a record of a message; one record may be used in many requests."""
    record = ArrayRecord()
    record["tree"] = array(payload)
    return record


def request(
    job: Job, payload: ArrayRecord, *, bytes_up: int, batch: int, sha256: str = "", world: str = "", run: str = "",
    order: str = "",
) -> RecordDict:  # fmt: skip
    """A job for a device. A simulated transport computes its duration from `bytes_up` and `batch`."""
    b = job.budget
    fields = [
        job.id,
        job.client,
        job.version,
        job.turn,
        b.steps,
        b.rank,
        b.width,
        job.sent,
        job.task,
        job.held,
        bytes_up,
        batch,
    ]
    head = {"job": json.dumps(fields)}
    if sha256:
        head["sha256"] = sha256
    if world:
        head["world"] = world
    if run:
        head["run"] = run
    if order:
        head["order"] = order
    return RecordDict({"fedhet": ConfigRecord(head), "payload": payload})  # type: ignore[arg-type]


def read_job(content: RecordDict) -> tuple[Job, dict[str, Any]]:
    """The job of a request, and the fields for a simulated transport ("bytes_up", "batch")."""
    return parse_job(job_text(content))


def job_text(content: RecordDict) -> str:
    """The encoded job of a request."""
    return str(_head(content)["job"])


def parse_job(text: str) -> tuple[Job, dict[str, Any]]:
    """Decode the result of `job_text`; returns what `read_job` does."""
    id_, client, version, turn, steps, rank, width, sent, task, held, bytes_up, batch = json.loads(text)
    job = Job(id_, client, version, turn, Budget(steps, rank, width), sent, task, held)
    return job, {"bytes_up": bytes_up, "batch": batch}


def check_job(job: Job) -> None:
    """Raises MalformedUpdate if a number of a job that came over a network is out of range."""
    counts = {"id": job.id, "client": job.client, "version": job.version, "turn": job.turn, "rank": job.budget.rank}
    bad = [name for name, value in {**counts, "steps": job.budget.steps}.items() if type(value) is not int or value < 0]
    bad += [] if type(job.held) is int and job.held >= -1 else ["held"]
    bad += [name for name, value in (("sent", job.sent), ("width", job.budget.width)) if not _finite(value)]
    bad += [] if "width" in bad or 0 < job.budget.width <= 1 else ["width"]
    if bad or not isinstance(job.task, str):
        raise MalformedUpdate("format", f"the job's {', '.join(bad) or 'task'} is out of range")


def read_world(content: RecordDict) -> str:
    """The configuration in a request; empty if there is none."""
    return str(_head(content).get("world", ""))


def read_order(content: RecordDict) -> str:
    """The operator's signature over the configuration in a request; empty if there is none."""
    return str(_head(content).get("order", ""))


def read_run(content: RecordDict) -> str:
    """The run that a request belongs to; empty if it names none."""
    return str(_head(content).get("run", ""))


def read_payload(content: RecordDict) -> tuple[bytes | memoryview, str]:
    """The payload of a request or an answer, and the SHA-256 in its header ("" if absent). Raises MalformedUpdate."""
    record = content.get("payload")
    tree = record.get("tree") if isinstance(record, ArrayRecord) else None
    if tree is None or tree.stype != STYPE:
        raise MalformedUpdate("format", "the message has no fedhet payload")
    return tree.data, str(_head(content).get("sha256", ""))


def answer(update: Update, *, code: str, seal: bool, sign: Sign | None = None) -> RecordDict:
    """A device's update as records; the delta is encoded here."""
    payload = wire_format.encode(update.delta)
    if seal or sign is not None:
        payload = bytes(payload)  # it leaves this machine's processes, for which Flower needs bytes
    more = {"sha256": wire_format.digest(payload)} if seal else {}
    if sign is not None:
        more |= sign(update, payload)
    return compose_answer(answer_text(update, code), payload, more)


def answer_text(update: Update, code: str) -> str:
    """The header of an answer as JSON: all of an update except its delta."""
    job = update.job
    fields = {"job": job.id, "client": job.client, "version": job.version, "weight": update.weight}
    return json.dumps({**fields, "metrics": dict(update.metrics), "code": code})


def compose_answer(text: str, payload: bytes | memoryview, more: Mapping[str, str] | None = None) -> RecordDict:
    """An answer from the result of `answer_text` and a payload, with the fields `more` in its header."""
    head = {"update": text, **(more or {})}
    return RecordDict({"fedhet": ConfigRecord(head), "payload": payload_record(payload)})  # type: ignore[arg-type]


def read_answer(content: RecordDict) -> Answer:
    """Parse an untrusted answer. Raises MalformedUpdate with code `format`, `weight` or `metrics`."""
    payload, sha256 = read_payload(content)
    head = _head(content)
    text = str(head.get("update", ""))
    if len(text) > 1 << 16:
        raise MalformedUpdate("format", f"header of {len(text)} characters")
    try:
        fields = json.loads(text)
        numbers = [fields[k] for k in ("job", "client", "version")]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise MalformedUpdate("format", f"header: {type(error).__name__}") from None
    if not all(type(n) is int for n in numbers):
        raise MalformedUpdate("format", "job, client and version must be integers")
    weight, metrics = fields.get("weight"), fields.get("metrics")
    if not _finite(weight):
        raise MalformedUpdate("weight", f"weight is {str(weight)[:40]}, not a finite number")
    if not isinstance(metrics, dict) or len(metrics) > MAX_METRICS or not all(_finite(v) for v in metrics.values()):
        raise MalformedUpdate("metrics", f"metrics must be at most {MAX_METRICS} finite numbers")
    code = fields.get("code")
    job, client, version = numbers
    return Answer(
        job, client, version, float(weight), metrics, payload, sha256, code if isinstance(code, str) else "",
        node=str(head.get("node", "")), signature=str(head.get("signature", "")),
    )  # fmt: skip


def _head(content: RecordDict) -> Mapping[str, Any]:
    head = content.get("fedhet")  # not through config_records, which builds a filtered copy at every access
    if not isinstance(head, ConfigRecord):
        raise MalformedUpdate("format", "the message has no fedhet header")
    return head


def _finite(value: object) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
    except OverflowError:
        return False
