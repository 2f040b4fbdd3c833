"""Server tasks on the workers that train the simulated clients.

A task is submitted when it begins, with its due time as urgency, and waited for when it is due. If its worker fails or
dies, the server computes it itself, which gives the same bits, or the same error.
"""

from __future__ import annotations

from dataclasses import dataclass

from flwr.app import Context, Message, RecordDict

from fedhet.engine.background_tasks import InlineExecutor, ServerTask
from fedhet.flower import messages as records
from fedhet.flower.compat import set_message_id
from fedhet.numerics import wire_format
from fedhet.simulation.executor import Executor
from fedhet.types import Tree

SERVER_NODE = 1
"""The node in a server task's message, which belongs to no client."""


@dataclass(frozen=True)
class PoolExecutor:
    """A `TaskExecutor` over an executor of messages; server tasks have negative numbers, messages others."""

    pool: Executor
    inline: InlineExecutor

    def begin(self, task: ServerTask) -> None:
        content = RecordDict({"task": records.payload_record(wire_format.encode(task.input))})
        message = Message(content, SERVER_NODE, "query.server_task", group_id=task.transform)
        set_message_id(message, f"chore{task.update.job.id}")
        context = Context(1, SERVER_NODE, {}, RecordDict(), {})
        self.pool.submit(self._number(task), round(task.due * 1e9), message, context)

    def result(self, task: ServerTask) -> Tree:
        reply = self.pool.result(self._number(task)).reply
        if reply.has_error():
            return self.inline.result(task)
        found = wire_format.open_tree(bytearray(reply.content.array_records["result"]["tree"].data))
        return dict(found)

    def forget(self, task: ServerTask) -> None:
        self.pool.result(self._number(task))

    @staticmethod
    def _number(task: ServerTask) -> int:
        return -1 - task.update.job.id
