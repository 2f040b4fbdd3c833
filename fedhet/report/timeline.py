"""The client timeline: one lane per client with download, training and upload of its jobs, and when they were combined.

Zooming is one transform of one SVG group; elements that must keep their shape (dots, numbers, names) are positioned in
seconds and scaled back. The number of drawn elements is limited, and the page says so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from fedhet.report import number_format
from fedhet.report.event_records import Combination, Group, Job
from fedhet.report.event_replay import Story
from fedhet.report.html import Html, tag, xy
from fedhet.report.number_format import Scale
from fedhet.report.run_reader import Name
from fedhet.report.timeline_items import bar, bracket, marks, short

MAX_LANES = 48
MAX_BARS = 1500
MAX_MARKS = 600
MAX_GROUP_ROWS = 5
WIDTH, LEFT, RIGHT = 1100.0, 84.0, 1084.0


@dataclass(frozen=True)
class Plan:
    """What is drawn: lanes in order of client, the end of the axis in seconds, and a note on what is omitted."""

    lanes: dict[Name, list[Job]]
    end: float
    combinations: list[Combination]
    rows: list[list[Group]]
    omitted: str

    @classmethod
    def of(cls, story: Story) -> Plan:
        """Select the first jobs of the clients with the most jobs."""
        kept = {job.client for job in story.jobs}
        ranked = sorted((c for c in story.clients.values() if c.id in kept), key=lambda c: (-c.tasks, _key(c.id)))
        shown = {client.id for client in ranked[:MAX_LANES]}
        theirs = [job for job in story.jobs if job.client in shown]
        jobs = theirs[:MAX_BARS]
        cut = len(theirs) > MAX_BARS or len(story.jobs) < story.ledger.dispatched
        end = jobs[-1].sent if cut and jobs else story.end
        lanes: dict[Name, list[Job]] = defaultdict(list)
        for job in jobs:
            lanes[job.client].append(job)
        made = [c for c in story.combinations if c.at <= end + 1e-9]
        groups = [g for g in story.groups.values() if g.expected is not None and g.opened <= end]
        rows = _rows(groups)
        counts = (
            ("the {} busiest of {}", len(lanes), len(story.clients), "client"),
            ("the first {} of {}", len(jobs), story.ledger.dispatched, "job"),
            ("the first {} of {}", min(MAX_MARKS, len(made)), len(made), "combination"),
            ("{} of {}", sum(map(len, rows)), len(groups), "group"),
        )
        omitted = [
            text.format(number_format.count(n), number_format.plural(of, noun))
            for text, n, of, noun in counts
            if n < of
        ]
        sentence = f"Showing {', '.join(omitted)}." if omitted else ""
        return cls({c: lanes[c] for c in sorted(lanes, key=_key)}, end, made[:MAX_MARKS], rows, sentence)


def timeline(story: Story) -> tuple[Html, str]:
    """The drawing, and a note on what is omitted ("" if nothing is)."""
    plan = Plan.of(story)
    if not plan.lanes:
        return tag("p", "No job was given out.", cls="empty"), ""
    across = Scale(0.0, max(plan.end, 0.0), LEFT, RIGHT)
    pitch = 26.0 if len(plan.lanes) <= 16 else 19.0 if len(plan.lanes) <= 32 else 14.0
    top = 40.0 + (len(plan.rows) * 17 + 8 if plan.rows else 0)
    bottom = top + pitch * len(plan.lanes) + 4
    brackets = [bracket(g, across, 40.0 + 17 * k, bottom) for k, row in enumerate(plan.rows) for g in row]
    stripes, labels, lanes = _lanes(plan, across, story.end, top, pitch)
    names = [_name("combined", 26)] + ([_name("groups", 50)] if plan.rows else [])
    window = tag("rect", x=LEFT, y=0, width=RIGHT - LEFT, height=bottom + 8)
    drawing = tag("g", *marks(plan.combinations, across, bottom), *brackets, *lanes, cls="zoomed")
    svg = tag(
        "svg",
        tag("defs", _hatch(), tag("clipPath", window, id="window")),
        *stripes,
        *names,
        *labels,
        tag("g", drawing, clip_path="url(#window)"),
        tag("g", *_axis(across, bottom), cls="axis"),
        viewBox=f"0 0 {xy(WIDTH)} {xy(bottom + 30)}",
        cls="timeline",
        role="group",
        aria_label="Client timeline",
        tabindex="0",
        data_left=LEFT,
        data_right=RIGHT,
        data_high=repr(across.high),
        data_bottom=bottom,
        data_top=top,
        data_pitch=pitch,
    )
    return svg, plan.omitted


def _key(client: Name) -> tuple[bool, Name]:
    return isinstance(client, str), client


def _lanes(
    plan: Plan, across: Scale, now: float, top: float, pitch: float
) -> tuple[list[Html], list[Html], list[Html]]:
    """Backgrounds, names and bars; `data-row` is a lane's place by number, `data-rank` its place by speed."""
    order = list(plan.lanes)
    by_pace = sorted(range(len(order)), key=lambda row: (_pace(plan.lanes[order[row]]), row))
    ranks = {order[row]: rank for rank, row in enumerate(by_pace)}
    stripes, labels, lanes = [], [], []
    for row, (client, jobs) in enumerate(plan.lanes.items()):
        y, rank = top + pitch * row, ranks[client]
        if row % 2 == 0:
            stripes.append(tag("rect", cls="stripe", x=LEFT, width=RIGHT - LEFT, y=y, height=pitch))
        text = short(f"client {client}" if len(order) <= 32 else str(client))
        labels.append(_name(text, y + pitch / 2 + 4, data_row=row, data_rank=rank))
        bars = [bar(job, across, now, pitch) for job in jobs]
        place = f"translate(0,{xy(y)})"
        lanes.append(tag("g", *bars, cls="lane", transform=place, data_row=row, data_rank=rank))
    return stripes, labels, lanes


def _name(text: str, y: float, **attributes: float) -> Html:
    return tag("text", text, cls="name", x=LEFT - 8, y=y, text_anchor="end", **attributes)


def _pace(jobs: Sequence[Job]) -> float:
    """Mean seconds per step of a client's finished jobs; one that never finished comes last."""
    done = [(job.ended - job.sent, max(1, job.steps)) for job in jobs if job.ended is not None]
    return sum(length for length, _ in done) / sum(steps for _, steps in done) if done else float("inf")


def _rows(groups: Sequence[Group]) -> list[list[Group]]:
    """Rows of groups that do not overlap in time; groups that do not fit in `MAX_GROUP_ROWS` rows are omitted."""
    rows: list[list[Group]] = []
    for group in sorted(groups, key=lambda g: g.opened):
        free = next((row for row in rows if row[-1].until <= group.opened + 1e-9), None)
        if free is not None:
            free.append(group)
        elif len(rows) < MAX_GROUP_ROWS:
            rows.append([group])
    return rows


def _axis(across: Scale, bottom: float) -> list[Html]:
    step = number_format.time_step(across.span, 10)
    parts = [tag("line", cls="frame", x1=LEFT, x2=RIGHT, y1=bottom, y2=bottom)]
    for at in number_format.ticks(0.0, across.high, step):
        x, text = across(at), number_format.time_label(at, step, across.high)
        parts.append(tag("line", cls="tick", x1=x, x2=x, y1=bottom, y2=bottom + 5))
        parts.append(tag("text", text, x=x, y=bottom + 20, text_anchor="middle"))
    return parts


def _hatch() -> Html:
    """The hatch pattern over bars of lost jobs."""
    stripe, turned = tag("path", d="M0 0V6", cls="hatching"), "rotate(45)"
    return tag("pattern", stripe, id="hatch", width=5, height=5, patternUnits="userSpaceOnUse", patternTransform=turned)
