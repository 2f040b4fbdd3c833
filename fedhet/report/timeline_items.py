"""Elements of the timeline: a job's bar with its tooltip, a combination's mark, a group's bracket."""

from __future__ import annotations

from collections.abc import Sequence

from fedhet.report import number_format
from fedhet.report.event_records import Combination, Group, Job
from fedhet.report.html import Html, tag, xy
from fedhet.report.number_format import Scale
from fedhet.report.run_reader import Name

MIN_WIDTH = 0.0005
"""Width in drawing units below which a phase is not drawn."""


def bar(job: Job, across: Scale, now: float, pitch: float) -> Html:
    """Download, training and upload as far as the job got; then a thin line while it waits to be combined."""
    end = max(job.sent, now if job.ended is None else job.ended)
    high = pitch * 0.62
    y = (pitch - high) / 2

    def box(kind: str, start: float, stop: float) -> Html | None:
        a, b = across(min(start, end)), across(min(stop, end))
        shape = f"M{xy(a)} {xy(y)}h{xy(b - a)}v{xy(high)}h-{xy(b - a)}z"
        return tag("path", cls=kind, d=shape) if b - a > MIN_WIDTH else None

    if job.flight is not None:
        times = (job.sent, *job.flight)
        parts = [box(kind, times[k], times[k + 1]) for k, kind in enumerate(("down", "train", "up"))]
    else:
        parts = [box("away", job.sent, end)]
    if job.lost:
        parts.append(box("hatch", job.sent, end))
    if job.group is not None:
        strip = f"M{xy(across(job.sent))} {xy(y + high)}H{xy(across(end))}"
        parts.append(tag("path", cls=f"of {color(job.group)}", d=strip))
    if job.latest is not None and job.overdue > 0:
        strip = f"M{xy(across(job.latest))} {xy(y + high)}H{xy(across(end))}"
        parts.append(tag("path", cls="overdue", d=strip))
    waits = job.combined if job.combined is not None else now if job.account == "buffered" else end
    if across(waits) - across(end) > 0.01:
        parts.append(tag("path", cls="wait", d=f"M{xy(across(end))} {xy(pitch / 2)}H{xy(across(waits))}"))
    return tag("g", tag("title", _tooltip(job, end)), *parts, cls=f"job {job.account}")


def _tooltip(job: Job, end: float) -> str:
    """The tooltip of a job's bar."""
    sent = f"sent at {number_format.seconds(job.sent)}"
    if job.steps:
        sent += f", {number_format.plural(job.steps, 'step')}"
    if job.group is not None:
        sent += f", group {job.group}"
    lines = [f"client {job.client} · job {job.id} · from version {job.version}", sent]
    if job.flight is not None:
        times = (job.sent, *job.flight)
        phases = [(name, times[k + 1] - times[k]) for k, name in enumerate(("download", "training", "upload"))]
        lines.append(" · ".join(f"{name} {number_format.seconds(length)}" for name, length in phases if length > 0))
    if job.overdue > 0:
        lines.append(f"{number_format.seconds(job.overdue)} after its group's latest second")
    match job.account:
        case "accepted":
            lines.append(f"back after {number_format.seconds(end - job.sent)}, in version {job.into}")
            lines.append(f"staleness {job.staleness}, scale {number_format.figure(job.scale)}")
        case "unfinished":
            lines.append("still out when the run ended")
        case "buffered":
            lines.append("back, but not combined when the run ended")
        case account:
            lines.append(f"{account} at {number_format.seconds(end)}: {job.reason}")
    return "\n".join(line for line in lines if line)


def marks(combinations: Sequence[Combination], across: Scale, bottom: float) -> list[Html]:
    """A dot and a line at every new version, with its number where it fits."""
    parts, free = [], across.start
    foot = 38.0 if len(combinations) > 120 else bottom
    for made in combinations:
        x, name = across(made.at), f"v{made.version}"
        half = 4.0 * len(name) + 2
        hidden = "hidden" if x - half < free or x + half > across.end else None
        free = free if hidden else x + half
        number = tag("text", name, text_anchor="middle", y=26, visibility=hidden, data_half=half)
        pin = tag("g", number, tag("circle", r=2.6, cy=32), cls="pin", data_x=x, transform=f"translate({xy(x)},0)")
        title = (
            f"version {name[1:]} at {number_format.seconds(made.at)}\nof {number_format.plural(made.updates, 'update')}"
        )
        line = tag("path", d=f"M{xy(x)} 32V{xy(foot)}")
        parts.append(tag("g", tag("title", title), line, pin, cls="version"))
    return parts


def bracket(group: Group, across: Scale, y: float, bottom: float) -> Html:
    """A bracket from a group's opening to its expected and its latest arrival, with faint lines through the lanes."""
    expected = group.opened if group.expected is None else group.expected
    start, due, until = across(group.opened), across(max(group.opened, expected)), across(group.until)
    parts = [
        tag("title", _describe(group, expected)),
        tag("rect", cls="span", x=start, y=y, width=max(0.4, due - start), height=13),
        tag("path", cls="due", d=f"M{xy(due)} {xy(y)}V{xy(bottom)}"),
    ]
    if until > due:
        parts.append(tag("rect", cls="slack", x=due, y=y, width=until - due, height=13))
        parts.append(tag("path", cls="latest", d=f"M{xy(until)} {xy(y)}V{xy(bottom)}"))
    name = short(f"group {group.id}")
    hidden = "hidden" if due - start < 7 * len(name) + 8 else None
    label = tag("text", name, x=5, y=y + 10, visibility=hidden, data_width=due - start)
    parts.append(tag("g", label, cls="pin", data_x=start, transform=f"translate({xy(start)},0)"))
    return tag("g", *parts, cls=f"group {color(group.id)}")


def _describe(group: Group, expected: float) -> str:
    lines = [
        f"group {group.id}, founded at {number_format.seconds(group.opened)}",
        f"expected {number_format.seconds(expected)}",
    ]
    if group.latest is not None:
        lines[1] += f", latest {number_format.seconds(group.latest)}"
    if group.members:
        named = [f"{client} ({steps})" if steps else str(client) for client, steps in list(group.members.items())[:12]]
        more = f" and {len(group.members) - 12} more" if len(group.members) > 12 else ""
        lines.append(f"clients (steps): {', '.join(named)}{more}")
    return "\n".join(lines)


def color(group: Name) -> str:
    """A group's colour class: neighbours in number differ."""
    return f"s{(group if isinstance(group, int) else sum(map(ord, group))) % 8}"


def short(text: str) -> str:
    """A name shortened to fit next to a lane."""
    return text if len(text) <= 12 else text[:11] + "…"
