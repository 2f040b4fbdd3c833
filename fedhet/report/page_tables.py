"""Tables of a page: the ledger of updates, the clients, the configuration, the versions."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fedhet.report import number_format
from fedhet.report.event_records import Client
from fedhet.report.event_replay import Story
from fedhet.report.html import Html, join, tag
from fedhet.report.run_reader import Row
from fedhet.report.update_accounting import ACCOUNTS, Ledger

MAX_CLIENTS = 200
MAX_CONFIG_CHARACTERS = 60_000
MAX_REASONS = 12
BACKENDS = (("steps of small perceptrons", "mlp_backend", "small_steps"), ("large sums", "sum_backend"))
"""Compute backends: the label, and the key in result.json, followed by earlier names of the key."""
ALWAYS = ("accepted", "late", "rejected", "failed")
"""Accounts that are shown even if they are empty."""

MEANING = {
    "accepted": "combined into the model",
    "late": "arrived, and dropped by the schedule",
    "rejected": "arrived, and not let in by the gate",
    "failed": "nothing arrived",
    "buffered": "arrived, waiting when the run ended",
    "unfinished": "still out when the run ended",
}


def ledger(stated: Ledger, events: Ledger) -> Html:
    """A bar of all dispatched jobs, a row per account and reason, and whether the ledger adds up."""
    all_of_them = number_format.count(stated.dispatched)
    bar, rows = [], []
    for account in ACCOUNTS:
        total = stated.total(account)
        if total:
            tip = f"{account}: {number_format.count(total)} of {all_of_them}"
            bar.append(tag("i", cls=account, style=f"flex-grow:{total}", data_tip=tip))
        if total or account in ALWAYS:
            share = number_format.percent(total / stated.dispatched if stated.dispatched else None)
            rows.append(_account(account, account, MEANING[account], number_format.count(total), share))
        reasons = [(reason, n) for reason, n in stated.accounts[account].most_common() if reason]
        rows += [_account("", "reason", reason, number_format.count(n)) for reason, n in reasons[:MAX_REASONS]]
        if len(reasons) > MAX_REASONS:
            rows.append(_account("", "reason", f"and {len(reasons) - MAX_REASONS} more reasons", ""))
    foot = tag("tfoot", _account("dispatched", "total", "", all_of_them))
    stack = tag("div", *bar, cls="stack", role="img", aria_label="Share of every account") if bar else None
    return join(stack, tag("table", tag("tbody", *rows), foot, cls="ledger"), _verdict(stated, events))


def _account(name: str, kind: str, words: str, number: str, share: str = "") -> Html:
    key = tag("i", cls=f"key {kind}") if kind in ACCOUNTS else None
    cells = (tag("td", words, cls="words"), tag("td", number), tag("td", share))
    return tag("tr", tag("th", key, name, scope="row"), *cells, cls="account" if key else kind)


def _verdict(stated: Ledger, events: Ledger) -> Html:
    problems = events.differences(stated)
    if not stated.adds_up:
        dispatched, accounted = number_format.count(stated.dispatched), number_format.count(stated.accounted)
        problems.insert(0, f"{dispatched} jobs were dispatched, {accounted} are accounted for")
    if problems:
        return tag("p", "Does not add up. " + "; ".join(problems) + ".", cls="verdict bad")
    words = "Adds up: every dispatched job is in exactly one account, and the event log agrees."
    return tag("p", words, cls="verdict good")


def clients(story: Story) -> tuple[Html, str]:
    """One row per client, and a note on omitted rows."""
    everybody = sorted(story.clients.values(), key=lambda c: (isinstance(c.id, str), c.id))
    weight = sum(c.weight for c in everybody)
    head = [
        ("client", "number or name"),
        ("jobs", "given out"),
        ("accepted", "combined into the model"),
        ("lost", "failed or rejected"),
        ("mean time", "from dispatch to arrival"),
        ("per step", "mean time over steps, travel included"),
        ("busy", "share of the run it was at work"),
        ("staleness", "mean, in versions"),
        ("share of weight", "of all accepted updates"),
    ]
    cells = [tag("th", tag("button", name, type="button"), scope="col", data_tip=tip) for name, tip in head]
    most = max((c.weight for c in everybody), default=0.0)
    rows = [_client(c, story.end, weight, most) for c in everybody[:MAX_CLIENTS]]
    note = (
        f"Showing the first {MAX_CLIENTS} of {number_format.plural(len(everybody), 'client')}."
        if len(everybody) > MAX_CLIENTS
        else ""
    )
    return tag("table", tag("thead", tag("tr", *cells)), tag("tbody", *rows), cls="clients sortable"), note


def _client(c: Client, end: float, weight: float, most: float) -> Html:
    def cell(value: float | None, text: str, *more: Html) -> Html:
        return tag("td", *more, text, data_sort=repr(-1.0 if value is None else float(value)))

    mean = c.seconds / c.arrived if c.arrived else None
    pace = c.seconds / c.steps if c.steps else None
    stale = c.staleness / c.accepted if c.accepted else None
    share = c.weight / weight if weight else None
    filled = tag("i", style=f"width:{100 * c.weight / most if most else 0:.1f}%")
    busy = min(1.0, c.seconds / end) if end else None
    return tag(
        "tr",
        tag("th", str(c.id), scope="row", **({"data_sort": str(c.id)} if isinstance(c.id, int) else {})),
        cell(c.tasks, number_format.count(c.tasks)),
        cell(c.accepted, number_format.count(c.accepted)),
        cell(c.lost, number_format.count(c.lost)),
        cell(mean, number_format.seconds(mean)),
        cell(pace, number_format.seconds(pace)),
        cell(busy, number_format.percent(busy, 0)),
        cell(stale, number_format.NONE if stale is None else f"{stale:.2f}"),
        cell(share, "", tag("span", filled, cls="share"), tag("span", number_format.percent(share), cls="of")),
    )


def config(text: str) -> Html:
    """The resolved configuration with highlighted keys; truncated if it is very long."""
    cut = text[:MAX_CONFIG_CHARACTERS]
    parts: list[Html] = []
    for line in cut.splitlines():
        match = re.match(r"^(\s*(?:- )?)([\w./-]+:)(.*)$", line)
        parts.append(join(match[1], tag("b", match[2]), match[3], "\n") if match else join(line, "\n"))
    rest = "" if len(cut) == len(text) else f"… {number_format.count(len(text) - len(cut))} more characters\n"
    return tag("pre", *parts, rest)


def facts(pairs: Sequence[tuple[str, str]]) -> Html:
    """A table of names and values."""
    return tag(
        "table",
        tag("tbody", *(tag("tr", tag("th", name, scope="row"), tag("td", value)) for name, value in pairs)),
        cls="facts",
    )


def versions(result: Row) -> Html:
    """Package versions, hashes of weights and events, backends and peak memory of a run."""
    packages = result.inner("packages").data if "packages" in result.data else {}
    pairs = [(str(name), str(number)) for name, number in packages.items()]
    pairs += [
        (name, result.text(key))
        for name, key in (("weights", "weights_sha256"), ("events", "events_sha256"))
        if result.text(key)
    ]
    pairs += [(name, words) for name, *keys in BACKENDS for key in keys if (words := result.text(key))]
    memory = result.optional("peak_rss_bytes")
    if memory is not None:
        pairs.append(("peak memory", number_format.size(memory)))
    return facts(pairs)
