"""The report of one run: `report.html`, one self-contained file without network access, readable without scripts."""

from __future__ import annotations

from pathlib import Path

from fedhet.report import number_format, page_tables
from fedhet.report.event_replay import Story
from fedhet.report.html import Html, tag
from fedhet.report.line_chart import Axis, Curve, legend, line_chart
from fedhet.report.page_layout import card, page, tile
from fedhet.report.run_labels import method_name
from fedhet.report.run_reader import Row, document, lines, text
from fedhet.report.staleness_chart import histogram
from fedhet.report.timeline import timeline
from fedhet.report.update_accounting import Ledger, from_result

COLUMNS = ("accuracy", "worst_decile_accuracy", "loss", "bytes_up", "bytes_down")

Column = list[tuple[float, float]]


def write_report(run_dir: Path) -> Path:
    """Write RUN_DIR/report.html from the files of a finished run; returns its path.

    Raises ReportError with file and line; then nothing is written.
    """
    run_dir = Path(run_dir)
    result = document(run_dir / "result.json")
    config = text(run_dir / "config.yaml")
    story = Story.of(lines(run_dir / "events.jsonl"))
    curves = evaluations(run_dir / "metrics.jsonl")
    stated = from_result(result, story.ledger)
    stale = card("Staleness", "Bars: updates by age. Line: the mean scale they were given.", histogram(story))
    ledger = card(
        "Update ledger", "Where every job that was given out ended.", page_tables.ledger(stated, story.ledger)
    )
    sections = [
        _head(result, story),
        _tiles(result, stated),
        _progress(result, curves, story),
        _timeline(result, story),
        tag("div", stale, ledger, cls="pair"),
        _costs(result, curves, story),
        _clients(story),
        _details(config, result),
    ]
    title = f"{method_name(result)} · seed {result.text('seed', '?')}"
    path = run_dir / "report.html"
    path.write_text(page(title, *sections), encoding="utf-8")
    return path


def evaluations(path: Path) -> dict[str, Column]:
    """Columns of metrics.jsonl over time, as points; figures that are missing or not finite are left out."""
    columns: dict[str, Column] = {name: [] for name in COLUMNS}
    for row in lines(path):
        at = row.time("t")
        for name, column in columns.items():
            value = row.optional(name)
            if value is not None:
                column.append((at, value))
    return columns


def _clock(result: Row) -> str:
    return "virtual time" if result.text("transport", "virtual") == "virtual" else "run time"


def _head(result: Row, story: Story) -> Html:
    chips = [f"seed {result.text('seed', '?')}", number_format.plural(len(story.clients), "client")]
    chips.append(f"{result.text('transport', 'virtual')} transport")
    if story.stopped:
        chips.append(f"ended: {story.stopped}")
    name = tag("h1", method_name(result))
    notices = [tag("p", f"Notice: {told}") for told in result.texts("notices")]
    notices += [tag("p", f"Failing: {told}") for told in result.texts("failing")]
    shown = tag("p", *(tag("span", c) for c in chips), cls="chips")
    return tag("header", tag("p", "fedhet", cls="brand"), name, shown, *notices)


def _tiles(result: Row, ledger: Ledger) -> Html:
    """The headline figures."""
    reached, span, wall = (result.optional(k) for k in ("time_to_target", "virtual_seconds", "wall_seconds"))
    worst = number_format.percent(result.optional("worst_decile_accuracy"))
    met = "no evaluation met it" if reached is None else "first evaluation that met it"
    took = (
        f"computed in {number_format.seconds(wall)}, {number_format.figure(span / wall, 2)}× real time"
        if span and wall
        else ""
    )
    tasks, accepted = number_format.count(result.optional("client_tasks")), ledger.total("accepted")
    share = number_format.percent(accepted / ledger.dispatched if ledger.dispatched else None)
    down = number_format.size(result.optional("bytes_down"))
    tiles = (
        (
            "accuracy at the end",
            number_format.percent(result.optional("accuracy")),
            f"worst tenth of clients {worst}",
            "s0",
        ),
        (f"time to {number_format.level(result.optional('target'))}", _reached(reached), met, "s3"),
        (_clock(result), number_format.seconds(span), took, "s4"),
        ("versions", number_format.count(result.optional("versions")), f"{tasks} client tasks", "s2"),
        ("accepted", share, f"{number_format.count(accepted)} of {number_format.count(ledger.dispatched)} jobs", "s7"),
        ("sent up", number_format.size(result.optional("bytes_up")), f"{down} down", "s1"),
    )
    return tag("div", *(tile(*fields) for fields in tiles), cls="tiles")


def _reached(seconds: float | None) -> str:
    return "not reached" if seconds is None else number_format.seconds(seconds)


def _progress(result: Row, curves: dict[str, Column], story: Story) -> Html:
    target = result.optional("target")
    shown = [
        Curve("accuracy", curves["accuracy"], "s0"),
        Curve("worst tenth of clients", curves["worst_decile_accuracy"], "s1", dashed=True),
    ]
    chart = line_chart(
        shown,
        Axis("time", _clock(result)),
        Axis("share"),
        width=1100,
        height=330,
        label="Accuracy over time",
        target=None if target is None else (target, f"target {number_format.level(target)}"),
        reached=result.optional("time_to_target"),
        end=story.end,
    )
    return card("Accuracy", "On the server's test data, at every evaluation.", legend(shown), chart)


def _timeline(result: Row, story: Story) -> Html:
    drawing, omitted = timeline(story)
    flights = [job.flight is not None for job in story.jobs]
    keys = [("down", "download"), ("train", "training"), ("up", "upload")] if any(flights) else []
    keys += [] if all(flights) else [("away", "at the client")]
    keys += [("overdue", "after its group's latest second")] if story.overdue else []
    keys += [("wait", "waits to be combined"), ("hatched", "late, rejected or failed"), ("mark", "combined")]
    words = f"Over {_clock(result)}, one lane a client."
    if story.groups:
        paler = " and, paler, to the latest" if any(g.latest is not None for g in story.groups.values()) else ""
        words += f" A group's bar runs to the expected arrival{paler}; its jobs are underlined in its colour."
    if story.grouped_answers:
        answers = number_format.plural(story.grouped_answers, "answer")
        words += f" {number_format.count(story.overdue)} of {answers} came late for a group."
    buttons = [
        tag("button", name, type="button", data_do=do, data_tip=tip)
        for name, do, tip in (
            ("fastest first", "order", "order of the lanes"),
            ("−", "out", "zoom out"),
            ("+", "in", "zoom in"),
            ("reset", "reset", "show all of it"),
        )
    ]
    hint = tag("span", "drag to move, Ctrl + wheel to zoom", cls="hint")
    legend_ = tag("div", *(tag("span", tag("i", cls=f"key {k}"), name) for k, name in keys), cls="legend")
    tools = tag("div", legend_, tag("div", hint, *buttons, cls="tools"), cls="bar")
    return card("Client timeline", words, tools, drawing, note=omitted)


def _costs(result: Row, curves: dict[str, Column], story: Story) -> Html:
    x = Axis("time", _clock(result))
    up, down, tasks = (result.optional(key) for key in ("bytes_up", "bytes_down", "client_tasks"))
    words = f"{number_format.size(up)} up, {number_format.size(down)} down"
    if up is not None and down is not None and tasks:
        words += f": {number_format.size((up + down) / tasks)} a client task"
    loss, sent = (
        [Curve("loss", curves["loss"], "s3")],
        [Curve("up", curves["bytes_up"], "s1"), Curve("down", curves["bytes_down"], "s4", dashed=True)],
    )
    number, size, end = Axis("number", floor=0.0), Axis("bytes", floor=0.0), story.end
    left = line_chart(loss, x, number, width=530, height=254, label="Loss over time", end=end)
    right = line_chart(sent, x, size, width=530, height=254, label="Bytes over time", end=end)
    test = "On the server's test data, at every evaluation."
    return tag(
        "div", card("Loss", test, legend(loss), left), card("Bytes", f"{words}.", legend(sent), right), cls="pair"
    )


def _clients(story: Story) -> Html:
    table, omitted = page_tables.clients(story)
    words = "Lost: failed or rejected. Busy: share of the run between dispatch and arrival. Per step includes travel."
    return card("Clients", words, tag("div", table, cls="scroll"), note=omitted)


def _details(config: str, result: Row) -> Html:
    settings = tag("details", tag("summary", "Configuration"), page_tables.config(config))
    versions = tag("details", tag("summary", "Versions and fingerprints"), page_tables.versions(result))
    return tag("section", settings, versions, cls="card")
