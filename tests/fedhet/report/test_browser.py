"""The pages in a real browser: no errors, and the buttons work."""

import html
import json
import re
import shutil
import subprocess

import pytest

from fedhet.report import number_format, write_comparison, write_report

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
OFF = ("gpu", "quic", "background-networking", "component-update", "sync", "dev-shm-usage", "extensions")


@pytest.fixture
def browse(tmp_path):
    """browse(path, *flags): (DOM after its scripts, console messages) of a file."""

    def run(path, *flags):
        profile = tmp_path / f"profile{len(list(tmp_path.glob('profile*')))}"
        off = [f"--disable-{name}" for name in OFF]
        command = [CHROMIUM, "--headless", "--no-sandbox", "--no-first-run", *off, f"--user-data-dir={profile}"]
        command += ["--enable-logging=stderr", "--window-size=1280,900", *flags, path.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout, re.findall(r"CONSOLE.*", done.stderr)

    return run


def probe(path, script):
    """The page beside itself, without its policy, with one more script whose `answer` is left in the DOM."""
    source = re.sub(r"<meta http-equiv=[^>]*>", "", path.read_text(encoding="utf-8"))
    leave = "Object.assign(document.createElement('pre'), { id: 'answer', textContent: JSON.stringify(answer) })"
    more = f"<script>const answer = (() => {{ {script} }})(); document.body.append({leave});</script>"
    beside = path.with_name("probe.html")
    beside.write_text(source.replace("</body>", more + "</body>"), encoding="utf-8")
    return beside


def answer(browse, path, script):
    dom, messages = browse(probe(path, script), "--dump-dom")
    assert messages == []
    return json.loads(html.unescape(re.search(r'<pre id="answer">(.*?)</pre>', dom, re.S)[1]))


def scale(transform):
    return float(re.search(r"scale\(([\d.]+),1\)", transform)[1])


def test_an_error_or_a_fetch_would_be_seen(browse, tmp_path):
    page = tmp_path / "bad.html"
    policy = "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'\">"
    page.write_text(f"<!doctype html>{policy}<script>1</script>")
    assert any("Content Security Policy" in m for m in browse(page, "--dump-dom")[1])
    page.write_text("<!doctype html><script>undefinedFunction()</script>")
    assert any("undefinedFunction" in m for m in browse(page, "--dump-dom")[1])


def test_a_report_is_drawn_without_an_error(browse, fake_run):
    folder = fake_run(strategy="fedcompass")
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    dom, messages = browse(write_report(folder), "--dump-dom")
    assert messages == []
    assert '<html lang="en" class="js">' in dom
    assert len(re.findall(r'<g class="job ', dom)) == sum(e["event"] == "assign" for e in events)
    assert len(re.findall(r'<g class="lane"', dom)) == 12
    assert dom.count("<svg") == 5


def test_a_hostile_name_does_not_run(browse, fake_run):
    folder = fake_run()
    row = json.loads((folder / "result.json").read_text())
    row["strategy"] = "<script>document.title='owned'</script><img src=x onerror=document.title='owned'>"
    (folder / "result.json").write_text(json.dumps(row))
    dom, messages = browse(write_report(folder), "--dump-dom")
    assert messages == [] and "<title>owned" not in dom and "<img" not in dom


def test_the_timeline_zooms_moves_orders_and_comes_back(browse, fake_run):
    script = """
      const svg = document.querySelector("svg.timeline"), of = (s) => svg.querySelector(s).getAttribute("transform");
      const press = (name) => document.querySelector(`[data-do=${name}]`).click();
      const ticks = () => [...svg.querySelectorAll("g.axis text")].map((t) => t.textContent);
      const lanes = () => [...svg.querySelectorAll(".lane")].map((l) => l.getAttribute("transform"));
      const box = () => svg.querySelector(".job").getBoundingClientRect().width;
      const start = { ticks: ticks(), lanes: lanes(), width: box() };
      press("in"); press("in");
      const zoomed = { transform: of(".zoomed"), pin: of(".pin"), ticks: ticks(), width: box() };
      svg.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
      const moved = of(".zoomed");
      press("reset"); press("order");
      const ordered = lanes();
      press("order");
      return { start, zoomed, moved, ordered, end: { ticks: ticks(), lanes: lanes(), width: box() } };
    """
    seen = answer(browse, write_report(fake_run(strategy="fedcompass")), script)
    assert scale(seen["zoomed"]["transform"]) == pytest.approx(2.56)
    assert scale(seen["zoomed"]["pin"]) == pytest.approx(1 / 2.56)
    assert seen["zoomed"]["width"] == pytest.approx(2.56 * seen["start"]["width"], rel=0.02)
    assert seen["zoomed"]["ticks"] != seen["start"]["ticks"]
    assert seen["moved"] != seen["zoomed"]["transform"]
    assert sorted(seen["ordered"]) == sorted(seen["start"]["lanes"]) and seen["ordered"] != seen["start"]["lanes"]
    assert seen["end"] == seen["start"]


def test_pointing_tells_and_clicking_a_head_sorts(browse, fake_run):
    script = """
      const tip = document.getElementById("tip");
      const over = (node, x) => {
        node.dispatchEvent(new PointerEvent("pointermove", { bubbles: true, clientX: x, clientY: 400 }));
        return tip.hidden ? "" : tip.textContent;
      };
      const bar = over(document.querySelector(".job path"), 300);
      const chart = document.querySelector("svg.chart");
      const curve = over(chart, chart.getBoundingClientRect().right - 30);
      const nothing = over(document.querySelector("h1"), 10);
      const head = document.querySelectorAll("table.sortable th button")[1];
      const rows = () => [...document.querySelectorAll("table.sortable tbody tr")];
      const column = () => rows().map((row) => Number(row.cells[1].textContent));
      head.click();
      const down = column();
      head.click();
      return { bar, curve, nothing, down, up: column() };
    """
    folder = fake_run(strategy="fedbuff")
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    seen = answer(browse, write_report(folder), script)
    assert seen["bar"].startswith("client 0 · job 0 · from version 0\nsent at 0 s, 20 steps\ndownload ")
    last = f"accuracy: {100 * metrics[-1]['accuracy']:.2f}%\nworst tenth of clients: "
    assert seen["curve"].startswith(number_format.seconds(metrics[-1]["t"]) + "\n" + last)
    assert seen["nothing"] == ""
    assert seen["down"] == sorted(seen["down"], reverse=True) and seen["up"] == seen["down"][::-1]


def test_the_script_writes_ticks_as_the_page_does(browse, fake_run):
    cases = []
    for high in (0.5, 1.5, 12.0, 60.0, 179.0, 400.0, 3600.0, 10_000.0, 90_000.0, 250_000.0, 1e6, 3e7):
        for zoom in (1, 3, 20, 170):
            step = number_format.time_step(high / zoom, 10)
            cases += [
                (high / zoom, step, at, high)
                for at in number_format.ticks(high * 0.6, high * 0.6 + high / zoom, step)[:4]
            ]
    script = (
        f"return {json.dumps(cases)}.map(([span, step, at, high]) => [timeStep(span, 10), timeLabel(at, step, high)]);"
    )
    seen = answer(browse, write_report(fake_run()), script)
    for (_, step, at, high), (theirs, label) in zip(cases, seen, strict=True):
        assert theirs == pytest.approx(step)
        assert label == number_format.time_label(at, step, high), (at, step, high)


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_both_schemes_are_drawn_in_their_colours(browse, fake_run, tmp_path, scheme):
    image = pytest.importorskip("PIL.Image")
    out = write_comparison([fake_run(f"r{k}", seed=k) for k in range(2)], tmp_path / "comparison.html")
    picture = tmp_path / "shot.png"
    flag = f"--blink-settings=preferredColorScheme={'0' if scheme == 'dark' else '1'}"
    _, messages = browse(out, flag, f"--screenshot={picture}")
    assert messages == []
    shot = image.open(picture).convert("RGB")
    assert shot.getpixel((2, 450)) == ((0x12, 0x11, 0x1C) if scheme == "dark" else (0xF5, 0xF4, 0xFA))
    assert len(shot.resize((128, 90)).getcolors(128 * 90)) > 20
