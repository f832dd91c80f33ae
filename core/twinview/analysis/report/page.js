// Curves without a library: zoom by dragging, values under the pointer, log axes, smoothing; all charts share their x axis.
"use strict";
(() => {
  const root = document.documentElement, $ = (tag, text, parent, cls) => {
    const made = document.createElement(tag); if (text !== undefined && text !== null) made.textContent = text;
    if (cls) made.className = cls; if (parent) parent.append(made); return made;
  };
  const NS = "http://www.w3.org/2000/svg", H = 210, M = { l: 50, r: 10, t: 8, b: 24 };
  const svg = (tag, attrs, parent) => { const made = document.createElementNS(NS, tag); for (const k in attrs) made.setAttribute(k, attrs[k]); if (parent) parent.append(made); return made; };
  let charts = JSON.parse(document.getElementById("data").textContent).charts;
  const view = { x: null, smooth: 0, log: {}, off: new Set() };
  const number = v => {
    if (v === null || v === undefined || !isFinite(v)) return "–";
    const a = Math.abs(v);
    return a !== 0 && (a < 1e-3 || a >= 1e6) ? v.toExponential(2) : a >= 1000 ? v.toFixed(0) : String(+v.toPrecision(4));
  };
  const ticks = (low, high, n) => {
    const step0 = (high - low) / n, mag = 10 ** Math.floor(Math.log10(step0)), step = [1, 2, 5, 10].map(k => k * mag).find(k => k >= step0), out = [];
    for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-9; v += step) out.push(Math.abs(v) < step * 1e-9 ? 0 : v);
    return out;
  };
  const logTicks = (low, high) => {
    const out = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) for (const k of high / low < 30 ? [1, 2, 5] : [1]) {
      const v = k * 10 ** e; if (v >= low && v <= high) out.push(v);
    }
    return out.length > 1 ? out : ticks(low, high, 4).filter(v => v > 0);
  };
  const smoothed = (points, share) => {
    if (!share || points.length < 4) return points;
    const last = points[points.length - 1][0], first = points[0][0], width = share * (last - first); let mean = null, before = first;
    return points.map(([x, y]) => {
      if (y === null) return [x, y];
      const keep = mean === null ? 0 : Math.exp(-(x - before) / width); before = x;
      mean = mean === null ? y : keep * mean + (1 - keep) * y; return [x, mean];
    });
  };
  const all = () => charts.flatMap(c => c.series.flatMap(s => s.points.map(p => p[0])));
  const extent = () => { const xs = all(); return xs.length ? [xs.reduce((a, b) => Math.min(a, b)), xs.reduce((a, b) => Math.max(a, b))] : [0, 1]; };
  const box = document.getElementById("charts"), made = new Map();
  const color = n => `var(--s${n % 8})`;

  function build(chart) {
    const el = $("div", null, box, "chart"), top = $("div", null, el, "top"), left = $("div", null, top);
    $("h3", chart.title, left); if (chart.note) $("div", chart.note, left, "note");
    const button = $("button", "log", top); button.type = "button"; button.title = "logarithmic axis";
    const picture = svg("svg", { role: "img", "aria-label": chart.title }, el), legend = $("div", null, el, "legend"), tip = $("div", null, el, "tip"); tip.hidden = true;
    const it = { el, picture, legend, tip, button, chart }; made.set(chart.title, it);
    button.onclick = () => { view.log[chart.title] = !(view.log[chart.title] ?? it.chart.log); draw(it); };
    let start = null, band = null;
    const at = e => { const r = picture.getBoundingClientRect(); return Math.min(Math.max(e.clientX - r.left, M.l), r.width - M.r); };
    picture.onpointerdown = e => { if (e.button) return; start = at(e); picture.setPointerCapture(e.pointerId); };
    picture.onpointermove = e => {
      const x = at(e); hover(it, x);
      if (start !== null && Math.abs(x - start) > 5) {
        band = band || svg("rect", { y: M.t, height: H - M.t - M.b, fill: "var(--accent)", opacity: .18 }, picture);
        band.setAttribute("x", Math.min(x, start)); band.setAttribute("width", Math.abs(x - start));
      }
    };
    picture.onpointerup = e => {
      const x = at(e); if (start !== null && Math.abs(x - start) > 5) { view.x = [it.back(Math.min(x, start)), it.back(Math.max(x, start))]; drawAll(); }
      start = null; if (band) band.remove(); band = null;
    };
    picture.onpointercancel = () => { start = null; if (band) band.remove(); band = null; };
    picture.onpointerleave = () => { tip.hidden = true; if (it.cross) it.cross.remove(); it.cross = null; };
    picture.ondblclick = () => { view.x = null; drawAll(); };
    return it;
  }

  function draw(it) {
    const { chart, picture, legend } = it, W = Math.max(picture.clientWidth, 200); picture.replaceChildren(); picture.setAttribute("viewBox", `0 0 ${W} ${H}`); it.cross = null;
    const [x0, x1] = view.x || extent(), wide = x1 > x0 ? x1 - x0 : 1, seen = [];
    it.lines = chart.series.map((s, n) => ({ ...s, color: color(s.color ?? n), n, shown: smoothed(s.points, s.dash ? 0 : view.smooth), off: view.off.has(chart.title + "\n" + s.name) }));
    for (const s of it.lines) if (!s.off) for (const [x, y] of (view.smooth && s.points.length > 3 ? s.shown : s.points)) if (y !== null && x >= x0 && x <= x1) seen.push(y);
    const log = (view.log[chart.title] ?? chart.log) && seen.some(y => y > 0), values = log ? seen.filter(y => y > 0) : seen;
    it.button.setAttribute("aria-pressed", log); it.button.hidden = !seen.some(y => y > 0);
    let low = values.length ? values.reduce((a, b) => Math.min(a, b)) : 0, high = values.length ? values.reduce((a, b) => Math.max(a, b)) : 1;
    if (log) { low /= 1.1; high *= 1.1; } else { const pad = high > low ? .06 * (high - low) : Math.abs(high) * .1 || 1; low -= pad; high += pad; }
    const f = log ? Math.log : v => v, X = x => M.l + (x - x0) / wide * (W - M.l - M.r), Y = y => H - M.b - (f(y) - f(low)) / (f(high) - f(low)) * (H - M.t - M.b);
    it.X = X; it.back = px => x0 + (px - M.l) / (W - M.l - M.r) * wide;
    for (const v of log ? logTicks(low, high) : ticks(low, high, 4)) {
      svg("line", { x1: M.l, x2: W - M.r, y1: Y(v), y2: Y(v), class: "grid" }, picture);
      svg("text", { x: M.l - 6, y: Y(v) + 4, "text-anchor": "end" }, picture).textContent = number(v);
    }
    for (const v of ticks(x0, x0 + wide, Math.max(3, Math.floor(W / 75)))) {
      const last = X(v) > W - 20;  // half of a number would be outside
      svg("text", { x: last ? W - 1 : X(v), y: H - 7, "text-anchor": last ? "end" : "middle" }, picture).textContent = number(v);
    }
    const clip = "c" + [...made.keys()].indexOf(chart.title); const c = svg("clipPath", { id: clip }, picture); svg("rect", { x: M.l - 5, y: 0, width: W - M.l - M.r + 10, height: H - M.b + 5 }, c);
    const plot = svg("g", { "clip-path": `url(#${clip})` }, picture);
    for (const s of it.lines) {
      if (s.off) continue;
      const path = points => { let d = "", pen = false; for (const [x, y] of points) { if (y === null || (log && y <= 0)) { pen = false; continue; } d += `${pen ? "L" : "M"}${X(x).toFixed(1)} ${Y(y).toFixed(1)}`; pen = true; } return d; };
      const draws = s.dash && s.points.length === 1 ? [[x0, s.points[0][1]], [x1, s.points[0][1]]] : s.shown;
      if (view.smooth && !s.dash) svg("path", { d: path(s.points), fill: "none", stroke: s.color, "stroke-width": 1, opacity: .25 }, plot);
      svg("path", { d: path(draws), fill: "none", stroke: s.color, "stroke-width": 1.8, "stroke-linejoin": "round", ...(s.dash ? { "stroke-dasharray": "6 4" } : {}) }, plot);
      if (s.points.length < 25 && !s.dash) for (const [x, y] of s.points) if (y !== null && !(log && y <= 0)) svg("circle", { cx: X(x), cy: Y(y), r: s.points.length < 3 ? 4 : 2.6, fill: s.color }, plot);
    }
    legend.replaceChildren();
    if (it.lines.length > 1 || it.lines[0]?.name !== chart.title) for (const s of it.lines) {
      const b = $("button", null, legend, s.off ? "off" : ""), i = $("i", null, b, s.dash ? "dash" : ""); b.type = "button"; i.style.borderTopColor = s.color; b.append(s.name);
      b.onclick = () => { const key = chart.title + "\n" + s.name; view.off.has(key) ? view.off.delete(key) : view.off.add(key); draw(it); };
    }
  }

  function hover(it, px) {
    const x = it.back(px); let near = null;
    for (const s of it.lines) if (!s.off) for (const p of s.points) if (p[1] !== null && (near === null || Math.abs(p[0] - x) < Math.abs(near - x))) near = p[0];
    if (near === null) return;
    if (!it.cross) it.cross = svg("line", { y1: M.t, y2: H - M.b, class: "cross" }, it.picture);
    it.cross.setAttribute("x1", it.X(near)); it.cross.setAttribute("x2", it.X(near));
    it.tip.replaceChildren(); $("div", "step " + number(near), it.tip, "note");
    for (const s of it.lines) {
      if (s.off) continue;
      const p = s.points.length === 1 && s.dash ? s.points[0] : s.points.find(p => p[0] === near); if (!p) continue;
      const row = $("div", null, it.tip), dot = $("span", "● ", row); dot.style.color = s.color; row.append(`${s.name}: ${number(p[1])}`);
    }
    it.tip.hidden = false; const W = it.el.clientWidth, w = it.tip.offsetWidth, left = it.X(near) + 24;
    it.tip.style.left = Math.max(4, left + w > W ? it.X(near) - w : left) + "px"; it.tip.style.top = "46px";
  }
  function drawAll() { for (const chart of charts) { const it = made.get(chart.title) || build(chart); it.chart = chart; draw(it); } const r = document.getElementById("reset"); if (r) r.hidden = !view.x; }

  const smooth = document.getElementById("smooth"), reset = document.getElementById("reset"), theme = document.getElementById("theme");
  if (smooth) smooth.oninput = () => { view.smooth = (smooth.value / 100) ** 2 * .3; drawAll(); };
  if (reset) reset.onclick = () => { view.x = null; drawAll(); };
  theme.onclick = () => { const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches; root.dataset.theme = dark ? "light" : "dark"; };
  if (box) { drawAll(); let wait; addEventListener("resize", () => { clearTimeout(wait); wait = setTimeout(drawAll, 120); }); addEventListener("beforeprint", drawAll); }

  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(part => { part.open = true; }));

  if (document.body.dataset.live) {
    let stamp = null;
    const ask = async () => {
      try {
        const answer = await fetch("data.json", { cache: "no-store" }); if (!answer.ok) throw new Error(answer.status);
        const fresh = await answer.json();
        if (stamp !== null && fresh.pictures !== stamp) { location.reload(); return; }
        stamp = fresh.pictures; charts = fresh.charts; document.getElementById("live").innerHTML = fresh.head; drawAll(); root.classList.remove("gone");
      } catch { root.classList.add("gone"); }
      setTimeout(ask, 4000);
    };
    ask();
  }
})();
