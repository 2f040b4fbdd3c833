"""Text from a device is shown in terminals, logs and pages with visible characters only."""

import contextlib
import io
import json
import logging
import subprocess
import sys

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from fedhet import display
from fedhet.cli import main
from fedhet.cli.progress import Bar
from fedhet.federation.common.errors import EnrollError
from fedhet.federation.device import join
from fedhet.federation.pki.tls import trusting
from fedhet.report import summary_table
from fedhet.report.html import tag

EVIL = "\x1b]0;owned\x07\x1b[2J\r\n\x9b31m\x7f\u202egnp.exe\u2066\u200b\u061c\ufeff\ud800[link=http://x]y[/link]"


def visible(text):
    return all(c.isprintable() or c == "\n" for c in text) and "\x1b" not in text


@settings(derandomize=True)
@given(st.text())
def test_every_character_is_visible_and_what_was_visible_is_untouched(text):
    assert display.shown(text).isprintable()
    assert visible(display.shown_lines(text).replace("\t", " "))
    if text.isprintable():
        assert display.shown(text) == text
    json.loads(display.shown_json(text))
    assert display.shown_json(text).isprintable()


def test_escapes_are_those_of_python():
    assert display.shown("a\x1b\u202e\U000e0001\n") == r"a\x1b\u202e\U000e0001\x0a"
    assert display.shown_lines("a\n\tb\r") == "a\n\tb" + r"\x0d"


@pytest.fixture
def hostile(door):
    """A federation with a client whose every free text is hostile."""
    _, line = door.invite("a")
    folder = door.folder / "dev"
    real = join.benchmark.hardware
    with pytest.MonkeyPatch.context() as patch:
        text = EVIL.replace("\ud800", "")
        patch.setattr(join.benchmark, "hardware", lambda: {**real(), "gpu": text, "software": text})
        door.begin(folder, line, join.Data("", 3, labels={text: 3}))
    return door


def test_the_operators_commands_show_what_a_device_declares_spelled_out(hostile):
    home = ["--home", str(hostile.federation.folder)]
    for words in (["clients", "list"], ["clients", "show", "a"], ["enroll", "pending"], ["audit", "show"]):
        for more in ([], ["--json"]):
            result = CliRunner().invoke(main.app, [*words, *home, *more])
            assert result.exit_code == 0 and visible(result.stdout), result.output
            assert "owned" in result.stdout or "show" not in words or "audit" in words


def test_a_refusal_is_one_visible_line(capsys):
    error = EnrollError("E302", EVIL)
    assert visible(error.line) and "\n" not in error.line and visible(str(error))
    back = EnrollError.from_dict({"code": "E302", "detail": EVIL, "data": {"code": 1, "detail": 2, "self": 3}})
    assert visible(back.line)
    assert EnrollError.from_dict({"code": ["E302"]}).code == "E311"
    assert main._fail(EVIL, 2) == 2
    assert visible(capsys.readouterr().err)


def test_log_lines_of_anybody_are_visible_and_one_line_each(door):
    program = (
        "import logging, sys; from fedhet.display import log_to_terminal; log_to_terminal(); evil = sys.argv[1]\n"
        "logging.getLogger('anybody').warning('it says %s', evil)\n"
        "try: raise ValueError(evil)\n"
        "except ValueError: logging.getLogger('other').exception('caught')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, EVIL.replace("\ud800", "")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and visible(done.stderr), done.stderr
    assert len([line for line in done.stderr.splitlines() if "it says" in line]) == 1
    assert "Traceback" in done.stderr


def test_a_forwarded_address_is_an_address_wherever_it_is_shown(door, guarded, caplog):
    from fedhet.federation.server.http_api import service
    from fedhet.federation.server.peer_addresses import Proxies

    caplog.set_level(logging.INFO)
    certificate = door.federation.folder / "ca" / "server.pem"
    proxies = Proxies.parse(["127.0.0.1"])
    with (
        guarded(service(door.federation), certificate, proxies=proxies) as (port, _),
        httpx.Client(verify=trusting((door.federation.folder / "ca" / "root.pem").read_bytes())) as client,
    ):
        client.post(
            f"https://127.0.0.1:{port}/v1/enroll/join", content=b"{", headers={b"x-forwarded-for": b"\x9b31m, [2J"}
        )
    assert "127.0.0.1 /v1/enroll/join refused: E115" in caplog.text


def test_summaries_bars_stories_and_pages_are_visible():
    from rich.console import Console

    result = {"strategy": EVIL, "seed": 1, "updates": {"rejected": {EVIL: 2}}, "weights_sha256": EVIL}
    out = io.StringIO()
    Console(file=out, width=400).print(summary_table(result))
    assert visible(out.getvalue()) and "owned" in out.getvalue()
    told = io.StringIO()
    with Bar(EVIL, told) as bar:
        bar.say([EVIL])
        bar({"version": EVIL, "t": 0.0, "tasks": 1, "share": 1.0})
    assert visible(told.getvalue())
    assert visible(tag("p", EVIL, title=EVIL).replace("\t", " "))
    with contextlib.redirect_stderr(told):
        main._fail(EVIL, 1)
    assert visible(told.getvalue())
