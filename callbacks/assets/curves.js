// One chart for every logged name, all runs in it, drawn as inline SVG from the block "curve-data".
"use strict";
(() => {
  const place = document.getElementById("curves");
  if (!place) return;
  const { names, better, runs } = JSON.parse(document.getElementById("curve-data").textContent);
  const [width, height, left, right, top, bottom] = [440, 230, 52, 10, 10, 26];
  const hiddenRuns = new Set();
  const charts = [];

  const color = (k) => `var(--run-${k % 8})`;
  const dashes = (k) => ["", "6 3", "2 3"][Math.floor(k / 8) % 3];
  const short = (value) => (value === 0 ? "0" : Number(value.toPrecision(4)).toString());
  const tickText = (value) =>
    Math.abs(value) >= 1e4 ? value.toExponential().replace("e+", "e") : Number(value.toPrecision(6)).toString();

  function element(name, attributes, ...children) {
    const made = ["svg", "g", "line", "path", "text", "circle", "rect"].includes(name)
      ? document.createElementNS("http://www.w3.org/2000/svg", name)
      : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  function linearTicks(low, high, count = 4) {
    const rough = Math.max(high - low, 1e-12) / count;
    const unit = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * unit).find((one) => one >= rough * 0.999);
    const first = Math.floor(low / step + 1e-9);
    const last = Math.max(Math.ceil(high / step - 1e-9), first + 1);
    return Array.from({ length: last - first + 1 }, (_, k) => Number(((first + k) * step).toPrecision(12)));
  }

  function logTicks(low, high) {
    const [first, last] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
    const stride = Math.ceil((last - first) / 6) || 1;
    const factors = last - first > 3 ? [1] : [1, 2, 5];
    const ticks = [];
    for (let decade = first; decade <= last; decade += stride) {
      for (const factor of factors) ticks.push(Number(`${factor}e${decade}`));
    }
    const from = ticks.filter((tick) => tick <= low).pop() ?? ticks[0];
    const to = ticks.find((tick) => tick >= high) ?? ticks[ticks.length - 1];
    return ticks.filter((tick) => tick >= from && tick <= to);
  }

  function chart(name) {
    const series = runs.map((run) => run.curves[name]);
    const all = series.flatMap((one) => (one ? one[1] : []));
    const canBeLog = all.every((value) => value > 0);
    let isLog = canBeLog && name.startsWith("train/") && Math.max(...all) > 5 * Math.min(...all);
    let scales = null;
    const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0, "aria-label": name });
    const reading = element("div", { class: "reading", role: "status", "aria-live": "off" });
    const toggle = element("button", { type: "button" });
    toggle.addEventListener("click", () => {
      isLog = !isLog;
      draw();
    });

    function draw() {
      const shown = series.map((one, k) => (hiddenRuns.has(k) ? null : one));
      const values = shown.flatMap((one) => (one ? one[1] : []));
      const steps = shown.flatMap((one) => (one ? one[0] : []));
      svg.replaceChildren();
      reading.replaceChildren();
      scales = null;
      toggle.hidden = !canBeLog;
      toggle.textContent = isLog ? "logarithmic" : "linear";
      toggle.setAttribute("aria-label", `${name}: the axis is ${toggle.textContent}; change it`);
      if (!values.length) return;
      const ticks = (isLog ? logTicks : linearTicks)(Math.min(...values), Math.max(...values));
      const bend = isLog ? Math.log10 : (value) => value;
      const [low, high] = [bend(Math.min(...ticks, ...values)), bend(Math.max(...ticks, ...values))];
      const last = Math.max(...steps, 1);
      const x = (step) => left + (step / last) * (width - left - right);
      const y = (value) => top + (1 - (bend(value) - low) / (high - low || 1)) * (height - top - bottom);
      for (const tick of ticks) {
        svg.append(
          element("line", { x1: left, x2: width - right, y1: y(tick), y2: y(tick), stroke: "var(--line)" }),
          element("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, tickText(tick)),
        );
      }
      for (const step of linearTicks(0, last, 6).filter((one) => one <= last)) {
        const words = step.toLocaleString("en");
        svg.append(element("text", { x: x(step), y: height - 6, "text-anchor": "middle" }, words));
      }
      shown.forEach((one, k) => {
        if (!one) return;
        for (const step of runs[k].resumed) {
          const line = { x1: x(step), x2: x(step), y1: top, y2: height - bottom, stroke: color(k) };
          svg.append(element("line", { ...line, class: "resumed", "stroke-dasharray": "1 4" }));
        }
        const path = one[0].map((step, n) => `${n ? "L" : "M"}${x(step).toFixed(1)},${y(one[1][n]).toFixed(1)}`);
        const style = { fill: "none", stroke: color(k), "stroke-width": 1.6, "stroke-dasharray": dashes(k) };
        svg.append(element("path", { ...style, class: "curve", d: path.join(""), "stroke-linejoin": "round" }));
      });
      const cursor = element("g", {});
      svg.append(cursor);
      scales = { x, y, last, cursor, shown, step: null };
    }

    function read(step) {
      if (!scales) return;
      scales.step = step;
      scales.cursor.replaceChildren();
      reading.replaceChildren();
      let nearest = null;
      scales.shown.forEach((one, k) => {
        if (!one) return;
        const n = one[0].reduce((best, s, i) => (Math.abs(s - step) < Math.abs(one[0][best] - step) ? i : best), 0);
        nearest ??= one[0][n];
        const [cx, cy] = [scales.x(one[0][n]), scales.y(one[1][n])];
        scales.cursor.append(element("circle", { cx, cy, r: 3.5, fill: color(k) }));
        const label = runs.length > 1 ? element("span", { class: "run", style: `--run: ${color(k)}` }, runs[k].name) : "";
        reading.append(element("span", {}, label, ` ${short(one[1][n])}`));
      });
      if (nearest === null) return;
      reading.prepend(element("span", {}, `step ${nearest.toLocaleString("en")}:`));
      const x = scales.x(nearest);
      scales.cursor.prepend(element("line", { x1: x, x2: x, y1: top, y2: height - bottom, stroke: "var(--soft)" }));
    }

    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const at = ((event.clientX - box.left) / box.width) * width;
      if (scales) read(((at - left) / (width - left - right)) * scales.last);
    });
    svg.addEventListener("keydown", (event) => {
      const turn = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!turn || !scales) return;
      event.preventDefault();
      read(Math.min(Math.max((scales.step ?? scales.last) + (turn * scales.last) / 50, 0), scales.last));
    });
    const head = element("header", {}, element("h3", {}, `${name} ${better[name]}`), toggle);
    charts.push(draw);
    draw();
    return element("figure", { "data-name": name }, head, svg, reading);
  }

  if (runs.length > 1) {
    const legend = element("div", { class: "legend" });
    runs.forEach((run, k) => {
      const label = element("span", { class: "run", style: `--run: ${color(k)}` }, run.name);
      const button = element("button", { type: "button", "aria-pressed": "true" }, label);
      button.addEventListener("click", () => {
        if (!hiddenRuns.delete(k)) hiddenRuns.add(k);
        button.setAttribute("aria-pressed", String(!hiddenRuns.has(k)));
        charts.forEach((draw) => draw());
      });
      legend.append(button);
    });
    place.append(legend);
  }
  const isMain = (name) => /^(train|val)\//.test(name);
  const others = names.filter((name) => !isMain(name));
  place.append(element("div", { class: "charts" }, ...names.filter(isMain).map(chart)));
  if (others.length) {
    const grid = element("div", { class: "charts" }, ...others.map(chart));
    place.append(element("details", {}, element("summary", {}, `Others that were logged (${others.length})`), grid));
  }
  if (runs.some((run) => run.resumed.length)) {
    place.append(element("p", {}, "Dotted lines: there the run was resumed from a checkpoint."));
  }
  place.append(element("p", {}, "Over steps; long curves are means of stretches. Values are under the pointer."));
})();
