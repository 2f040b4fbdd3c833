"""The few private touch points with Flower 1.41 and 1.42, in files of their own, so that an upgrade breaks there only.

* `Message(...)` for a request reads a process-wide task identity that Flower's runtime sets; outside it we must.
* A grid gives messages their ids through a private slot, as Flower's own grids do.
* `Grid.run` is typed with a class that has no public name; error codes and the server's node id likewise.
* Both ends of the conversation with a SuperLink: `fedhet.flower.fleet_api` and `fedhet.flower.reply_stream`.
* `fedhet.flower.socket_files` starts Flower's programs so that they listen on socket files.
* `fedhet.simulation.legacy_servers` lets servers of Flower's former API send from their threads in virtual time.
* What a run configuration means is asked of Flower's own parser: `parse_overrides` and `flat_config`.
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
    """Let this process create request messages for a run, as a ServerApp's process may."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, SUPERLINK_NODE_ID


def empty_run(run_id: int) -> Run:
    """A Run without an app bundle."""
    return Run.create_empty(run_id)


def set_message_id(message: Message, message_id: str) -> None:
    """Name a message that a grid accepted."""
    message.metadata.__dict__["_message_id"] = message_id


def parse_overrides(texts: list[str]) -> dict[str, Any]:
    """What `flwr run --run-config` makes of its texts. Raises ValueError for what it refuses, OSError for a file."""
    import click
    from flwr.common.config import parse_config_args  # a tenth of a second, which nobody else needs

    try:
        return parse_config_args(texts)
    except click.ClickException as error:
        raise ValueError(error.message) from None


def flat_config(table: dict[str, Any] | None) -> dict[str, Any]:
    """A `[tool.flwr.app.config]` as an app sees it, nested tables as dotted keys. Raises ValueError for other values
    than booleans, numbers and strings."""
    from flwr.common.config import flatten_dict

    return dict(flatten_dict(table))


def aggregate_arrayrecords(records: list[RecordDict], weighting_metric_name: str) -> ArrayRecord:
    """The weighted mean as Flower's own strategies take it, to measure ours against."""
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords as theirs

    return theirs(records, weighting_metric_name)
