"""Private names of Flower 1.41 and 1.42, in this file and those listed here, so that an upgrade breaks nowhere else.

* `Message(...)` for a request reads a process-wide task identity that Flower's runtime sets; outside it we set it.
* A grid sets the ids of messages through a private slot, as Flower's own grids do.
* `Grid.run` is typed with a class that has no public name; error codes and the server's node id likewise.
* The two sides of the protocol with a SuperLink: `fedhet.flower.fleet_api` and `fedhet.flower.reply_stream`.
* `fedhet.flower.socket_files` starts Flower's programs so that they listen on socket files.
* `fedhet.simulation.legacy_servers` lets servers of Flower's former API send from their threads in virtual time.
* Run configurations are parsed by Flower's own parser: `parse_overrides` and `flat_config`.
"""

from __future__ import annotations

from typing import Any

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = [
    "SUPERLINK_NODE_ID",
    "ErrorCode",
    "Run",
    "claim_identity",
    "empty_run",
    "flat_config",
    "parse_overrides",
    "set_message_id",
]


def claim_identity(run_id: int) -> None:
    """Allow this process to create request messages for a run, as a ServerApp's process can."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, SUPERLINK_NODE_ID


def empty_run(run_id: int) -> Run:
    """A Run without an app bundle."""
    return Run.create_empty(run_id)


def set_message_id(message: Message, message_id: str) -> None:
    """Set the id of a message that a grid accepted."""
    message.metadata.__dict__["_message_id"] = message_id


def parse_overrides(texts: list[str]) -> dict[str, Any]:
    """Parse texts as `flwr run --run-config` does. Raises ValueError for invalid texts, OSError for an unreadable
    file."""
    import click
    from flwr.common.config import parse_config_args  # imported here since it takes a tenth of a second

    try:
        return parse_config_args(texts)
    except click.ClickException as error:
        raise ValueError(error.message) from None


def flat_config(table: dict[str, Any] | None) -> dict[str, Any]:
    """A `[tool.flwr.app.config]` as an app reads it, nested tables as dotted keys. Raises ValueError for values other
    than booleans, numbers and strings."""
    from flwr.common.config import flatten_dict

    return dict(flatten_dict(table))


def aggregate_arrayrecords(records: list[RecordDict], weighting_metric_name: str) -> ArrayRecord:
    """The weighted mean of Flower's own strategies, for benchmarks against ours."""
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords as flower_mean

    return flower_mean(records, weighting_metric_name)
