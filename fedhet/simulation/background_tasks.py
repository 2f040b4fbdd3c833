"""The server's server_tasks on the workers that train the simulated clients.

A chore is submitted when it comes up, urgent by the second it is due, and waited for when that has come. A worker that
dies or fails is no outcome of a chore: the server then does it itself, which gives the same bits, or the same error.
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
"""The node that a chore's message names: it is for no client."""


@dataclass(frozen=True)
class PoolExecutor:
    """`TaskExecutor` over an executor; the numbers of server_tasks lie below those of messages."""

    pool: Executor
    inline: InlineExecutor

    def begin(self, chore: ServerTask) -> None:
        content = RecordDict({"task": records.payload_record(wire_format.encode(chore.input))})
        message = Message(content, SERVER_NODE, "query.server_task", group_id=chore.transform)
        set_message_id(message, f"chore{chore.update.job.id}")
        context = Context(1, SERVER_NODE, {}, RecordDict(), {})
        self.pool.submit(self._number(chore), round(chore.due * 1e9), message, context)

    def result(self, chore: ServerTask) -> Tree:
        reply = self.pool.result(self._number(chore)).reply
        if reply.has_error():
            return self.inline.result(chore)
        found = wire_format.open_tree(bytearray(reply.content.array_records["result"]["tree"].data))
        return dict(found)

    def forget(self, chore: ServerTask) -> None:
        self.pool.result(self._number(chore))

    @staticmethod
    def _number(chore: ServerTask) -> int:
        return -1 - chore.update.job.id
