"""Why a client got its jobs: the jobs, and what the schedule logged when it assigned them, from the event log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]


@dataclass
class JobStory:
    """One job of one client. Times are seconds of the run's clock."""

    job: int
    at: float
    version: int
    steps: int
    rank: int
    width: float
    why: list[str] = field(default_factory=list)
    end: str = "still out when the record ends"
    known: float | None = None
    """Seconds per step that the server had measured when it assigned the job."""


@dataclass
class ClientStory:
    """All jobs of a client; `loose` are events about it that belong to no job."""

    client: int
    jobs: list[JobStory] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)


def explain(rows: Iterable[Row], client: int) -> ClientStory:
    """Read an event log in order. Raises ValueError if the client never occurs in it."""
    story, waiting = ClientStory(client), list[str]()
    measured: float | None = None
    seen, clients = False, 0
    by_job: dict[int, JobStory] = {}
    for row in rows:
        event = row["event"]
        clients = int(row["clients"]) if event == "started" else clients
        if event == "combined":
            _combined(row, by_job)
            continue
        if event == "dropped":
            for job in row["jobs"]:
                if job in by_job:
                    by_job[job].end += f", then dropped ({row['reason']})"
            continue
        if row.get("client") != client:
            continue
        seen = True
        if event == "note":
            waiting.append(_note(row))
        elif event == "assign":
            one = JobStory(row["job"], row["t"], row["version"], row["steps"], row["rank"], row["width"])
            one.why, waiting, one.known = waiting, [], measured
            by_job[one.job] = one
            story.jobs.append(one)
        elif event == "arrived":
            by_job[row["job"]].end = f"arrived at {row['t']:.3f} s, after {row['seconds']:.3f} s"
            measured = row["seconds"] / max(1, by_job[row["job"]].steps)
        elif event in ("failed", "rejected") and row["job"] in by_job:
            reason = row.get("reason") or f"{row.get('code')}: {row.get('detail')}"
            by_job[row["job"]].end = f"{event} at {row['t']:.3f} s ({reason})"
        elif event in ("joined", "left", "skipped"):
            story.loose.append(f"{row['t']:.3f} s: {event} {row.get('reason', '')}".rstrip())
    story.loose += [f"noted, no job followed: {note}" for note in waiting]
    if not seen:
        raise ValueError(_no_jobs(client, clients))
    return story


def text(story: ClientStory, limit: int = 20) -> str:
    """The story as text: the first `limit` jobs, and the number of the others."""
    lines = [f"client {story.client}: {len(story.jobs)} jobs"]
    for one in story.jobs[:limit]:
        work = f"{one.steps} steps" + (f", rank {one.rank}" if one.rank else "")
        work += f", width {one.width:g}" if one.width != 1 else ""
        lines.append(f"{one.at:.3f} s  job {one.job}, model version {one.version}: {work}")
        speed = "its speed was not known yet" if one.known is None else f"measured {one.known:.4g} s a step so far"
        lines.append(f"    why: {'; '.join(one.why) if one.why else 'the budget policy alone'}; {speed}")
        lines.append(f"    {one.end}")
    if len(story.jobs) > limit:
        lines.append(f"... and {len(story.jobs) - limit} more jobs (--all shows them)")
    return "\n".join([*lines, *story.loose])


def _combined(row: Row, by_job: Mapping[int, JobStory]) -> None:
    for job, late, scale in zip(row["jobs"], row["staleness"], row["scales"], strict=True):
        if job in by_job:
            detail = f", {late} versions late" if late else ""
            detail += f", scaled by {scale:.3g}" if scale != 1 else ""
            by_job[job].end += f", combined into version {row['version']}{detail}"


def _note(row: Row) -> str:
    fields = {k: v for k, v in row.items() if k not in ("t", "event", "kind", "client")}
    values = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in fields.items())
    return f"{row['kind']}: {values}"


def _no_jobs(client: int, clients: int) -> str:
    if 0 <= client < clients:
        return f"client {client} got no job in this run"
    return f"there is no client {client} in this run; its clients are 0 to {clients - 1}"
