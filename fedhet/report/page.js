"use strict";
// The page is whole without this: tooltips, a crosshair, zoom and pan, orders.
document.documentElement.classList.add("js");
const tip = document.getElementById("tip");

function show(text, event) {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const x = Math.min(event.clientX + 14, innerWidth - box.width - 8);
  const y = event.clientY + 18 + box.height > innerHeight ? event.clientY - box.height - 10 : event.clientY + 18;
  tip.style.transform = `translate(${Math.max(4, x)}px,${Math.max(4, y)}px)`;
}

// A <title> is the browser's own tooltip; the first time a mark is met, ours takes its text over.
function words(node) {
  for (let at = node; at && at.nodeType === 1; at = at.parentNode) {
    if (at.dataset && at.dataset.tip) return at.dataset.tip;
    const title = at.firstElementChild;
    if (at instanceof SVGElement && title && title.localName === "title") {
      at.dataset.tip = title.textContent;
      title.remove();
      return at.dataset.tip;
    }
  }
  return "";
}
document.addEventListener("pointermove", (event) => {
  const text = words(event.target);
  if (text) show(text, event);
  else if (!event.target.closest || !event.target.closest("svg.chart:not(.bars)")) tip.hidden = true;
});
document.addEventListener("pointerleave", () => (tip.hidden = true));

for (const chart of document.querySelectorAll("svg.chart:not(.bars)")) {
  const cross = chart.querySelector(".cross");
  if (!cross) continue;
  const curves = [...chart.querySelectorAll(".curve")].map((curve) => ({
    name: curve.dataset.name,
    x: curve.dataset.x.split(" ").map(Number),
    read: curve.dataset.read.split("|"),
  }));
  chart.addEventListener("pointermove", (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(chart.getScreenCTM().inverse()).x;
    const nearest = (xs) => xs.reduce((best, x, k) => (Math.abs(x - at) < Math.abs(xs[best] - at) ? k : best), 0);
    const picked = curves.map((c) => ({ c, k: nearest(c.x) }));
    picked.sort((a, b) => Math.abs(a.c.x[a.k] - at) - Math.abs(b.c.x[b.k] - at));
    const x = picked[0].c.x[picked[0].k];
    cross.setAttribute("x1", x);
    cross.setAttribute("x2", x);
    cross.setAttribute("visibility", "visible");
    const lines = picked.filter((p) => Math.abs(p.c.x[p.k] - x) < 1).sort((a, b) => curves.indexOf(a.c) - curves.indexOf(b.c));
    const cut = (p) => p.c.read[p.k].split(": ");
    show([cut(lines[0])[0], ...lines.map((p) => `${p.c.name}: ${cut(p)[1]}`)].join("\n"), event);
  });
  chart.addEventListener("pointerleave", () => {
    cross.setAttribute("visibility", "hidden");
    tip.hidden = true;
  });
}

// The same ticks as figures.py draws.
const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400];
function niceStep(span, wanted) {
  const rough = span / wanted, power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough * (1 - 1e-9));
}
function timeStep(span, wanted) {
  const rough = span / wanted;
  if (rough <= 1) return Math.min(1, niceStep(span, wanted));
  return STEPS.find((s) => s >= rough * (1 - 1e-9)) || 86400 * Math.max(1, niceStep(span / 86400, wanted));
}
function timeLabel(at, step, high) {
  if (Math.abs(at) < step / 1e6) return "0";
  let places = step < 1 ? Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) : 0;
  if (step < 1 && Math.abs(step * 10 ** places - Math.round(step * 10 ** places)) > 1e-9) places += 1;
  if (high < 1) return `${+(at * 1000).toPrecision(6)} ms`;
  if (high <= 180) return `${at.toFixed(places)} s`;
  const minutes = Math.floor((Math.round(at * 1e6) / 1e6) / 60), pad = (n) => String(n).padStart(2, "0");
  const tail = Math.max(0, at - 60 * minutes).toFixed(places).padStart(places ? places + 3 : 2, "0");
  if (high <= 10800) return step % 60 === 0 ? `${minutes} min` : `${minutes}:${tail}`;
  const rest = step % 60 === 0 ? "" : `:${tail}`, hours = Math.floor(minutes / 60);
  if (high <= 259200) return step % 3600 === 0 ? `${hours} h` : `${hours}:${pad(minutes % 60)}${rest}`;
  return step % 86400 === 0 ? `${Math.floor(hours / 24)} d` : `${Math.floor(hours / 24)} d ${hours % 24}:${pad(minutes % 60)}${rest}`;
}

function node(like, name, attributes, text) {
  const made = document.createElementNS(like.namespaceURI, name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  if (text !== undefined) made.textContent = text;
  return made;
}

for (const svg of document.querySelectorAll("svg.timeline")) {
  const [left, right, high, bottom, top, pitch] = ["left", "right", "high", "bottom", "top", "pitch"].map((k) => Number(svg.dataset[k]));
  const zoomed = svg.querySelector(".zoomed"), axis = svg.querySelector("g.axis"), hatch = svg.querySelector("#hatch");
  const pins = svg.querySelectorAll(".pin"), width = right - left;
  const numbers = svg.querySelectorAll(".version text"), names = svg.querySelectorAll(".group text");
  let zoom = 1, shift = 0; // what lies at x is shown at left + (x - left) * zoom - shift

  function draw() {
    zoom = Math.min(Math.max(zoom, 1), 400);
    shift = Math.min(Math.max(shift, 0), width * (zoom - 1));
    zoomed.setAttribute("transform", `translate(${left - left * zoom - shift},0) scale(${zoom},1)`);
    hatch.setAttribute("patternTransform", `scale(${1 / zoom},1) rotate(45)`);
    for (const pin of pins) pin.setAttribute("transform", `translate(${pin.dataset.x},0) scale(${1 / zoom},1)`);
    const last = left * zoom + shift + width;
    let free = left * zoom + shift; // names and numbers appear as they get room
    for (const text of numbers) {
      const x = Number(text.parentNode.dataset.x) * zoom, half = Number(text.dataset.half), fits = x - half >= free && x + half <= last;
      text.setAttribute("visibility", fits ? "visible" : "hidden");
      if (fits) free = x + half;
    }
    for (const text of names)
      text.setAttribute("visibility", Number(text.dataset.width) * zoom < 7 * text.textContent.length + 8 ? "hidden" : "visible");
    const span = high / zoom, from = (shift / zoom / width) * high, step = timeStep(span, 10);
    const parts = [node(svg, "line", { class: "frame", x1: left, x2: right, y1: bottom, y2: bottom })];
    for (let k = Math.ceil(from / step - 1e-9); k * step <= from + span * (1 + 1e-9); k++) {
      const x = left + ((k * step - from) / span) * width;
      parts.push(node(svg, "line", { class: "tick", x1: x, x2: x, y1: bottom, y2: bottom + 5 }));
      parts.push(node(svg, "text", { x, y: bottom + 20, "text-anchor": "middle" }, timeLabel(k * step, step, high)));
    }
    axis.replaceChildren(...parts);
  }
  function zoomAt(x, factor) {
    const before = (x - left + shift) / zoom;
    zoom = Math.min(Math.max(zoom * factor, 1), 400);
    shift = before * zoom - (x - left);
    draw();
  }
  const place = (event) => new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse()).x;

  svg.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return; // the page scrolls
    event.preventDefault();
    zoomAt(place(event), Math.exp(-event.deltaY / 300));
  }, { passive: false });
  let held = null;
  svg.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    held = { at: place(event), shift };
    svg.setPointerCapture(event.pointerId);
    svg.classList.add("held");
  });
  svg.addEventListener("pointermove", (event) => {
    if (!held) return;
    shift = held.shift - (place(event) - held.at);
    draw();
  });
  for (const end of ["pointerup", "pointercancel"])
    svg.addEventListener(end, () => {
      held = null;
      svg.classList.remove("held");
    });
  svg.addEventListener("dblclick", (event) => zoomAt(place(event), 2));

  let fastest = false;
  const todo = {
    in: () => zoomAt((left + right) / 2, 1.6),
    out: () => zoomAt((left + right) / 2, 1 / 1.6),
    reset: () => ((zoom = 1), (shift = 0), draw()),
    order: (event) => {
      fastest = !fastest;
      event.target.textContent = fastest ? "by number" : "fastest first";
      for (const part of svg.querySelectorAll("[data-row]")) {
        const y = top + pitch * Number(fastest ? part.dataset.rank : part.dataset.row);
        if (part.localName === "g") part.setAttribute("transform", `translate(0,${y})`);
        else part.setAttribute("y", y + pitch / 2 + 4);
      }
    },
  };
  svg.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: -60, ArrowRight: 60 };
    if (event.key in moves) (shift += moves[event.key]), draw();
    else if (event.key === "+" || event.key === "=") todo.in();
    else if (event.key === "-") todo.out();
    else if (event.key === "0") todo.reset();
    else return;
    event.preventDefault();
  });
  for (const button of svg.closest("section").querySelectorAll("[data-do]")) button.addEventListener("click", todo[button.dataset.do]);
}

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) =>
    head.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      heads.forEach((h) => h.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent;
      const order = (a, b) => (isNaN(key(a)) || isNaN(key(b)) ? key(a).localeCompare(key(b)) : key(a) - key(b));
      body.append(...[...body.rows].sort((a, b) => (down ? order(b, a) : order(a, b))));
    }),
  );
}
