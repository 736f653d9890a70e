"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const NS = "http://www.w3.org/2000/svg";
  const tip = document.getElementById("tip");
  const css = (name) => `var(--${name})`;
  const byId = (id) => document.getElementById(id);

  // ------------------------------------------------------------------------------------------------- small helpers

  function element(space, tag, attributes, children) {
    const made = space ? document.createElementNS(space, tag) : document.createElement(tag);
    for (const [key, value] of Object.entries(attributes || {})) {
      if (value !== null && value !== undefined) made.setAttribute(key, value);
    }
    for (const child of children || []) made.append(child);
    return made;
  }
  const html = (tag, attributes, ...children) => element(null, tag, attributes, children);
  const svg = (tag, attributes, ...children) => element(NS, tag, attributes, children);

  const accuracy = (value) => (value === null ? "-" : Math.abs(value) >= 100 ? value.toFixed(2) : value.toFixed(4));
  const figure = (value) => (value === null ? "-" : value.toFixed(3));
  function bytes(value) {
    if (value === null) return "-";
    for (const unit of ["B", "kB", "MB"]) {
      if (value < 1000) return `${unit === "B" ? value : value.toPrecision(3)} ${unit}`;
      value /= 1000;
    }
    return `${value.toPrecision(3)} GB`;
  }
  const short = (text, length) => (text.length > length ? text.slice(0, length - 1) + "…" : text);
  const range = (values) => values.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [1 / 0, -1 / 0]);

  function ticks(low, high, wanted) {
    const step = 10 ** Math.floor(Math.log10((high - low) / wanted || 1));
    const size = [1, 2, 5, 10].map((factor) => factor * step).find((s) => (high - low) / s <= wanted) || step;
    const digits = Math.max(0, -Math.floor(Math.log10(size) + 1e-9));
    const found = [];
    for (let v = Math.ceil(low / size) * size; v <= high + size * 1e-6; v += size) found.push([v, (v + 0).toFixed(digits).replace(/^-(0(\.0*)?)$/, "$1")]);
    return found;
  }
  const scale = ([from, to], [start, end]) => (v) => start + ((v - from) / (to - from || 1)) * (end - start);

  // One tooltip for every chart; by keyboard a chart is one tab stop, and the arrow keys go through its marks.
  function hint(mark, text) {
    mark.dataset.tip = text;
    mark.append(svg("title", {}, text));
  }
  function showTip(mark) {
    const box = mark.getBoundingClientRect();
    tip.textContent = mark.dataset.tip;
    tip.hidden = false;
    const left = Math.min(box.right + 10, innerWidth - tip.offsetWidth - 8);
    const top = Math.min(Math.max(8, box.top - 8), innerHeight - tip.offsetHeight - 8);
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${top}px`;
  }
  function listen(chart, onPick) {
    let here = -1;
    const marks = [...chart.querySelectorAll(".mark")];
    const clear = () => marks.forEach((mark) => mark.classList.remove("here"));
    chart.addEventListener("mouseover", (event) => {
      const mark = event.target.closest(".mark");
      if (mark) {
        mark.querySelector("title")?.remove();
        showTip(mark);
      } else tip.hidden = true;
    });
    chart.addEventListener("mouseleave", () => (tip.hidden = true));
    chart.addEventListener("click", (event) => {
      const mark = event.target.closest(".mark");
      if (mark && onPick) onPick(mark);
    });
    chart.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (step && marks.length) {
        here = (here + step + marks.length) % marks.length;
        clear();
        marks[here].classList.add("here");
        showTip(marks[here]);
        event.preventDefault();
      } else if (event.key === "Enter" && here >= 0 && onPick) onPick(marks[here]);
      else if (event.key === "Escape") tip.hidden = true;
    });
    chart.addEventListener("blur", () => {
      clear();
      tip.hidden = true;
    });
  }

  // Charts are drawn as wide as the page is, so that their letters stay as large on a phone.
  const WIDTH = Math.max(300, Math.min(920, document.querySelector("main").clientWidth - 28));
  const along = (wanted) => Math.max(3, Math.round((wanted * WIDTH) / 920));
  function frame(width, height, label) {
    return svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label, tabindex: 0 });
  }
  function axes(chart, box, x, y, xTicks, yTicks, xName, yName) {
    for (const [value, text] of yTicks) {
      chart.append(svg("line", { class: "tick", x1: box.left, x2: box.right, y1: y(value), y2: y(value) }));
      chart.append(svg("text", { x: box.left - 6, y: y(value) + 4, "text-anchor": "end" }, text));
    }
    for (const [value, text] of xTicks) {
      chart.append(svg("line", { class: "tick", x1: x(value), x2: x(value), y1: box.top, y2: box.bottom }));
      chart.append(svg("text", { x: x(value), y: box.bottom + 16, "text-anchor": "middle" }, text));
    }
    chart.append(svg("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }));
    chart.append(svg("line", { class: "axis", x1: box.left, x2: box.left, y1: box.top, y2: box.bottom }));
    chart.append(svg("text", { x: (box.left + box.right) / 2, y: box.bottom + 34, "text-anchor": "middle" }, xName));
    chart.append(svg("text", { x: box.left, y: box.top - 8 }, yName));
  }
  function legend(entries) {
    const items = entries.map(([colour, text]) => html("li", {}, html("i", { style: `background:${css(colour)}` }), text));
    return html("ul", { class: "legend" }, ...items);
  }

  const words = { met: "meets", not_met: "does not meet", failed: "failed", not_judged: "not judged" };
  function trialText(t) {
    const bounds = t.low !== null && t.high !== null && t.low < t.high;
    const lines = [`Trial ${t.id}: ${words[t.verdict]}`, t.stage + (t.label ? `, ${t.label}` : "")];
    if (t.accuracy !== null) {
      lines.push(bounds ? `accuracy ${accuracy(t.low)} to ${accuracy(t.high)}` : `accuracy ${accuracy(t.accuracy)}`);
    }
    if (t.ratio !== null) lines.push(`latency ${figure(t.ratio)} × fp32 [${figure(t.ci[0])}, ${figure(t.ci[1])}]`);
    if (t.size !== null) lines.push(`size ${bytes(t.size)}`);
    if (t.recipes) lines.push(`recipes ${t.recipes}`);
    if (t.reason) lines.push(t.reason);
    return lines.join("\n");
  }

  // ----------------------------------------------------------------------------------------- accuracy against cost

  const COSTS = [
    ["ratio", "latency ÷ fp32's (less is faster)", (v) => v.toFixed(2)],
    ["size", "size of the model", bytes],
  ];
  function pareto(cost) {
    const [key, name, write] = COSTS.find(([id]) => id === cost);
    const trials = data.trials.filter((t) => t.accuracy !== null && t[key] !== null);
    const box = { left: 62, right: WIDTH - 20, top: 28, bottom: 360 };
    const chart = frame(WIDTH, 404, "Accuracy of every trial against its cost");
    const xs = trials.map((t) => t[key]);
    if (key === "ratio") xs.push(1);
    else if (data.fp32 && data.fp32.size) xs.push(data.fp32.size);
    const ys = trials.map((t) => t.accuracy);
    if (data.target !== null) ys.push(data.target);
    if (data.fp32 && data.fp32.accuracy !== null) ys.push(data.fp32.accuracy);
    const pad = ([low, high], share) => [low - (high - low || Math.abs(high) || 1) * share, high + (high - low || Math.abs(high) || 1) * share];
    const xRange = pad(range(xs), 0.05), yRange = pad(range(ys), 0.06);
    const x = scale(xRange, [box.left, box.right]), y = scale(yRange, [box.bottom, box.top]);
    const xTicks = ticks(...xRange, along(8)).map(([v, text]) => [v, key === "size" ? write(Math.max(0, v)) : text]);
    axes(chart, box, x, y, xTicks, ticks(...yRange, 6), name, "accuracy");
    if (data.target !== null) {
      chart.append(svg("line", { class: "target", x1: box.left, x2: box.right, y1: y(data.target), y2: y(data.target) }));
      const above = data.higher ? -5 : 14;
      chart.append(svg("text", { x: box.right, y: y(data.target) + above, "text-anchor": "end" }, `target ${accuracy(data.target)}`));
    }
    const better = (a, b) => (data.higher ? a > b : a < b);
    const front = [];
    for (const t of [...trials].sort((a, b) => a[key] - b[key] || (better(a.accuracy, b.accuracy) ? -1 : 1))) {
      if (!front.length || better(t.accuracy, front[front.length - 1].accuracy)) front.push(t);
    }
    chart.append(svg("polyline", { class: "front", points: front.map((t) => `${x(t[key])},${y(t.accuracy)}`).join(" ") }));
    for (const t of trials) {
      const chosen = t.id === data.best;
      const mark = svg("circle", {
        class: "mark", cx: x(t[key]), cy: y(t.accuracy), r: chosen ? 8 : 5, fill: css(t.verdict),
        "fill-opacity": 0.75, stroke: chosen ? css("ink") : null, "data-trial": t.id,
      });
      hint(mark, trialText(t));
      chart.append(mark);
    }
    if (data.fp32 && data.fp32.accuracy !== null) {
      const at = key === "ratio" ? 1 : data.fp32.size;
      if (at !== null) {
        const mark = svg("rect", { class: "mark", x: x(at) - 5, y: y(data.fp32.accuracy) - 5, width: 10, height: 10, fill: css("baseline") });
        hint(mark, `fp32\naccuracy ${accuracy(data.fp32.accuracy)}\nsize ${bytes(data.fp32.size)}`);
        chart.append(mark);
      }
    }
    listen(chart, (mark) => mark.dataset.trial && reveal(Number(mark.dataset.trial)));
    const missing = data.trials.length - trials.length;
    const note = missing ? html("p", { class: "note" }, `${missing} of ${data.trials.length} trials are not shown: they failed, or were not measured in this cost.`) : "";
    byId("pareto-chart").replaceChildren(chart, legend([["met", "meets"], ["not_met", "does not meet"], ["baseline", "fp32"], ["accent", "best accuracy for the cost"]]), note);
  }
  function showPareto() {
    const usable = COSTS.filter(([key]) => data.trials.some((t) => t.accuracy !== null && t[key] !== null));
    if (!usable.length) return;
    const select = byId("cost");
    for (const [key, name] of usable) select.append(html("option", { value: key }, name.split(" (")[0]));
    select.addEventListener("change", () => pareto(select.value));
    byId("pareto").hidden = false;
    pareto(usable[0][0]);
  }

  // --------------------------------------------------------------------------------------------------- sensitivity

  const colourOf = (mode) => (mode === "fp32" ? "float" : mode === "fp16" || mode === "bf16" ? "half" : "quantized");
  function sensitivity(order) {
    const rows = data.impact.filter(([, gain]) => gain !== null);
    if (order === "rank") rows.sort((a, b) => b[1] - a[1]);
    const step = 20, box = { left: Math.min(240, 0.4 * WIDTH), right: WIDTH - 40, top: 22, bottom: 22 + rows.length * step };
    const chart = frame(WIDTH, box.bottom + 40, "Accuracy gained by returning each op to floating point");
    const [low, high] = range(rows.map(([, gain]) => gain).concat(0));
    const x = scale([low, high === low ? low + 1 : high], [box.left, box.right]);
    axes(chart, box, x, (v) => v, ticks(low, high === low ? low + 1 : high, along(7)), [], "accuracy gained", "");
    rows.forEach(([name, gain, mode, count], index) => {
      const top = box.top + index * step;
      chart.append(svg("text", { x: box.left - 8, y: top + 14, "text-anchor": "end" }, short(name, Math.floor(box.left / 7))));
      const mark = svg("rect", {
        class: "mark", x: Math.min(x(0), x(gain)), y: top + 3, width: Math.max(2, Math.abs(x(gain) - x(0))), height: step - 6,
        fill: css(colourOf(mode)), rx: 2,
      });
      hint(mark, `${name}${count > 1 ? ` (with ${count - 1} more op${count > 2 ? "s" : ""})` : ""}\ngain ${gain.toPrecision(3)}\n${mode ? `${mode} in the final model` : ""}`);
      chart.append(mark);
    });
    listen(chart);
    byId("sensitivity-chart").replaceChildren(chart, legend([["quantized", "quantized in the final model"], ["half", "half precision"], ["float", "fp32"]]));
  }
  function showSensitivity() {
    if (!data.impact.some(([, gain]) => gain !== null)) return;
    byId("sensitivity").hidden = false;
    byId("order").addEventListener("change", (event) => sensitivity(event.target.value));
    sensitivity("rank");
  }

  // ------------------------------------------------------------------------------------------------------ timeline

  const SPAN = { judge: "busy", baseline: "baseline", latency: "latency", footprint: "latency", probe: "probe", lost: "lost", failed: "lost" };
  function timeline() {
    const spans = data.spans;
    if (!spans.length) return;
    const ranks = [...new Set(spans.map(([rank]) => rank))].sort((a, b) => a - b);
    const lane = Math.max(12, Math.min(26, 400 / ranks.length));
    const box = { left: 62, right: WIDTH - 20, top: 12, bottom: 12 + ranks.length * lane };
    const chart = frame(WIDTH, box.bottom + 40, "What each rank did, over time");
    const end = Math.max(...spans.map((span) => span[3]));
    const x = scale([0, end], [box.left, box.right]);
    axes(chart, box, x, (v) => v, ticks(0, end, along(9)), [], "seconds since the run began", "");
    ranks.forEach((rank, index) => chart.append(svg("text", { x: box.left - 6, y: box.top + index * lane + lane / 2 + 4, "text-anchor": "end" }, `rank ${rank}`)));
    for (const [rank, kind, from, to, label] of spans) {
      const mark = svg("rect", {
        class: "mark", x: x(from), width: Math.max(1, x(to) - x(from)), y: box.top + ranks.indexOf(rank) * lane + 2,
        height: lane - 4, fill: css(SPAN[kind]), rx: 1,
      });
      hint(mark, `rank ${rank}: ${kind === "judge" ? "trial" : kind}\n${label}\n${from.toFixed(2)} s to ${to.toFixed(2)} s`);
      chart.append(mark);
    }
    const busy = ranks.map((rank) => spans.filter((s) => s[0] === rank).reduce((sum, s) => sum + s[3] - s[2], 0) / end);
    const share = busy.reduce((sum, b) => sum + Math.min(1, b), 0) / ranks.length;
    listen(chart);
    byId("timeline").hidden = false;
    byId("timeline-chart").replaceChildren(chart, legend([["baseline", "baseline"], ["busy", "judging"], ["latency", "latency window, footprint"], ["probe", "probe"], ["lost", "failed or lost"]]),
      html("p", { class: "note" }, `The ranks were at work ${(100 * share).toFixed(0)}% of the time; gaps are start-up, calibration, decisions and waiting.`));
  }

  // ----------------------------------------------------------------------------------------------------- diagnosis

  function histogram(title, shown) {
    const { edges, counts } = shown;
    const box = { left: 10, right: 330, top: 24, bottom: 120 };
    const chart = frame(340, 150, title);
    const x = scale([edges[0], edges[edges.length - 1]], [box.left, box.right]);
    const other = shown.quantized_counts || counts.map(() => 0);
    const peak = Math.log1p(Math.max(...counts, ...other)) || 1;
    const height = (count) => (Math.log1p(count) / peak) * (box.bottom - box.top);
    counts.forEach((count, index) => {
      const mark = svg("rect", { class: "mark", x: x(edges[index]), width: Math.max(1, x(edges[index + 1]) - x(edges[index]) - 0.5), y: box.bottom - height(count), height: height(count), fill: css("float"), "fill-opacity": 0.6 });
      hint(mark, `${edges[index].toPrecision(3)} to ${edges[index + 1].toPrecision(3)}\nfp32 ${count}, quantized ${other[index]}`);
      chart.append(mark);
    });
    const outline = other.flatMap((count, index) => [edges[index], edges[index + 1]].map((edge) => `${x(edge)},${box.bottom - height(count)}`));
    chart.append(svg("polyline", { points: outline.join(" "), fill: "none", stroke: css("quantized"), "stroke-width": 1.5, "pointer-events": "none" }));
    for (const bound of shown.clip || []) chart.append(svg("line", { class: "target", x1: x(bound), x2: x(bound), y1: box.top, y2: box.bottom }));
    chart.append(svg("text", { x: box.left, y: 14 }, title));
    for (const [at, anchor] of [[0, "start"], [edges.length - 1, "end"]]) {
      chart.append(svg("text", { x: x(edges[at]), y: box.bottom + 16, "text-anchor": anchor }, edges[at].toPrecision(3)));
    }
    listen(chart);
    return chart;
  }
  const SHOWN = 6; // the others are behind a click
  function figures(shown) {
    const parts = [];
    if (typeof shown.sqnr_db === "number") parts.push(`SQNR ${shown.sqnr_db.toFixed(1)} dB`);
    if (typeof shown.mse === "number") parts.push(`MSE ${shown.mse.toPrecision(3)}`);
    if (shown.saturation) parts.push(`${(100 * shown.saturation).toPrecision(2)}% saturated`);
    return parts.join(", ");
  }
  function diagnosis() {
    const worst = ([, tensors]) => Math.min(...Object.values(tensors).map((shown) => shown.sqnr_db ?? 1 / 0));
    const ops = Object.entries(data.diagnosis).filter(([, tensors]) => Object.keys(tensors).length);
    if (!ops.length) return;
    ops.sort((one, other) => worst(one) - worst(other) || 0);
    const panels = ops.map(([name, tensors]) => {
      const panel = html("div", {}, html("h3", {}, name));
      for (const [kind, shown] of Object.entries(tensors)) {
        if (!shown.edges) continue;
        panel.append(html("p", { class: "note" }, figures(shown)), histogram(kind, shown));
      }
      return panel;
    });
    byId("diagnosis").hidden = false;
    byId("diagnosis-charts").before(legend([["float", "fp32"], ["quantized", "quantized (line)"]]));
    byId("diagnosis-charts").replaceChildren(...panels.slice(0, SHOWN));
    if (panels.length <= SHOWN) return;
    const more = html("div", { class: "chart grid" }, ...panels.slice(SHOWN));
    byId("diagnosis").append(html("details", {}, html("summary", {}, `${panels.length - SHOWN} more`), more));
  }

  // -------------------------------------------------------------------------------------------------------- trials

  const COLUMNS = [
    ["id", "trial", (t) => String(t.id), true],
    ["stage", "stage", (t) => t.stage, false],
    ["label", "candidate", (t) => t.label, false],
    ["verdict", "verdict", (t) => words[t.verdict], false],
    ["accuracy", "accuracy", (t) => (t.low !== null && t.high !== null && t.low < t.high ? `${accuracy(t.low)}..${accuracy(t.high)}` : accuracy(t.accuracy)), true],
    ["ratio", "latency", (t) => figure(t.ratio), true],
    ["size", "size", (t) => bytes(t.size), true],
    ["samples", "samples", (t) => String(t.samples), true],
    ["seconds", "seconds", (t) => t.seconds.toFixed(2), true],
    ["rank", "rank", (t) => (t.rank === null ? "-" : String(t.rank)), true],
  ];
  let sorted = ["id", 1];
  const open = new Set();
  const head = document.querySelector("#trial-table thead"), body = document.querySelector("#trial-table tbody");

  function summary(t) {
    const lines = [];
    if (t.recipes) lines.push(`recipes: ${t.recipes}`);
    if (t.reason) lines.push(`reason: ${t.reason}`);
    if (t.config) {
      const groups = new Map();
      t.config.forEach((option, index) => {
        if (!groups.has(option)) groups.set(option, []);
        groups.get(option).push(data.ops[index] ? data.ops[index][0] : `op ${index}`);
      });
      for (const [option, names] of [...groups].sort((a, b) => b[1].length - a[1].length)) {
        const listed = names.length > 12 ? `${names.slice(0, 12).join(", ")} and ${names.length - 12} more` : names.join(", ");
        lines.push(`${data.options[option]}: ${names.length} op${names.length > 1 ? "s" : ""} (${listed})`);
      }
    }
    return lines.length ? lines : ["nothing more is known"];
  }
  function row(t) {
    const cells = COLUMNS.map(([key, , write, number]) => {
      const text = key === "verdict" ? html("span", { class: `pill ${t.verdict}` }, write(t)) : write(t);
      return html("td", { class: number ? "number" : null }, text);
    });
    const button = html("button", { type: "button", "aria-expanded": String(open.has(t.id)), title: "show the tuning config" }, String(t.id));
    cells[0].replaceChildren(button);
    button.addEventListener("click", () => {
      open.has(t.id) ? open.delete(t.id) : open.add(t.id);
      draw();
      body.querySelector(`tr[data-trial="${t.id}"] button`)?.focus();
    });
    const made = html("tr", { "data-trial": t.id, class: [t.id === data.best ? "chosen" : "", open.has(t.id) ? "open" : ""].join(" ").trim() || null }, ...cells);
    if (!open.has(t.id)) return [made];
    const detail = html("td", { class: "detail", colspan: COLUMNS.length }, ...summary(t).map((line) => html("div", {}, line)));
    return [made, html("tr", { class: "more" }, detail)];
  }
  function draw() {
    const text = byId("filter").value.trim().toLowerCase(), verdict = byId("verdict").value;
    const shown = data.trials.filter((t) => (!verdict || t.verdict === verdict) &&
      (!text || `${t.id} ${t.stage} ${t.label} ${t.recipes} ${t.reason}`.toLowerCase().includes(text)));
    const [key, direction] = sorted;
    shown.sort((a, b) => {
      if (a[key] === null || b[key] === null) return (a[key] === null) - (b[key] === null);
      return (a[key] < b[key] ? -1 : a[key] > b[key] ? 1 : a.id - b.id) * direction;
    });
    body.replaceChildren(...shown.flatMap(row));
    byId("count").textContent = `${shown.length} of ${data.trials.length}`;
    head.querySelectorAll("th").forEach((th) => th.setAttribute("aria-sort", th.dataset.key === key ? (direction > 0 ? "ascending" : "descending") : "none"));
  }
  function reveal(id) {
    byId("filter").value = "";
    byId("verdict").value = "";
    open.add(id);
    draw();
    body.querySelector(`tr[data-trial="${id}"]`)?.scrollIntoView({ block: "center" });
  }
  function trials() {
    if (!data.trials.length) return;
    byId("trials").hidden = false;
    const cells = COLUMNS.map(([key, name, , number]) => {
      const button = html("button", { type: "button" }, name);
      button.addEventListener("click", () => {
        sorted = [key, sorted[0] === key ? -sorted[1] : 1];
        draw();
      });
      return html("th", { scope: "col", "data-key": key, class: number ? "number" : null }, button);
    });
    head.append(html("tr", {}, ...cells));
    for (const verdict of new Set(data.trials.map((t) => t.verdict))) byId("verdict").append(html("option", { value: verdict }, words[verdict]));
    byId("filter").addEventListener("input", draw);
    byId("verdict").addEventListener("change", draw);
    draw();
  }

  showPareto();
  showSensitivity();
  timeline();
  diagnosis();
  trials();
})();
