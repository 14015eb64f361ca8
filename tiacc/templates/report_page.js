"use strict";
// The page: reads the report, draws its sections, and lets the graph be opened, searched, zoomed and clicked.

const report = JSON.parse(document.getElementById("report").textContent);
const page = document.getElementById("page");
const COLOURS = ["#2f9e6e", "#7c5cd6", "#d08a1d", "#2f8fc4", "#c2558f", "#6b8e23"], TORCH = "#d1495b", UNCHANGED = "as before";

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value); else if (value !== "") element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function section(title, ...children) {
  const made = make("section", {}, make("h2", {}, title), ...children);
  page.append(made);
  return made;
}

// numbers: the columns that hold numbers
function table(head, rows, numbers) {
  const cell = (tag) => (text, place) => make(tag, { class: numbers && numbers.includes(place) ? "number" : "" }, text instanceof Node ? text : String(text));
  return make("div", { class: "scroll" }, make("table", {}, make("thead", {}, make("tr", {}, ...head.map(cell("th")))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map(cell("td")))))));
}

const list = (texts) => make("ul", {}, ...texts.map((text) => make("li", {}, text)));
const small = (number) => (typeof number === "string" ? number : number.toExponential(2)); // what JSON has no number for is text
const megabytes = (bytes) => (bytes / 1e6).toFixed(1) + " MB";
const plural = (count, what) => count.toLocaleString("en") + " " + what + (count === 1 ? "" : "s");

function drawHead() {
  const result = report.optimization_result, hardware = report.hardware_environment, data = report.test_data_info;
  const level = "level " + report.achieved_level + (report.achieved_level === report.requested_level ? "" : " (level " + report.requested_level + " was asked for)");
  const errors = report.outputs.map((row) => Number(row.rel_norm)), worst = errors.length && report.accuracy_check === null ? Math.max(...errors) : null;
  const isMeasured = report.baseline_latency && report.optimized_latency;
  page.append(make("section", { class: "head" },
    make("h1", {}, "tiacc " + report.tiacc_version),
    make("span", { class: "gain", id: "gain", title: "times as fast as the input model, by medians" }, isMeasured ? result.speedup + " ×" : "speed not measured"),
    worst === null ? null : make("span", {}, "error " + small(worst), make("br"), make("small", {}, "relative, " + (report.tolerance === null ? "not bounded" : "accepted: " + small(report.tolerance)))),
    make("span", {}, level, make("br"), make("small", {}, hardware.device_type + ": " + hardware.microarchitecture)),
    make("span", {}, "test data, " + data.test_data_source, make("br"), make("small", {}, data.test_data_shape + " " + data.test_data_type)),
    report.seconds === null ? null : make("span", { class: "soft" }, "optimized in " + report.seconds.toFixed(1) + " s")));
}

function drawLatency() {
  const rows = [["input model", report.baseline_latency, "baseline"], ["optimized", report.optimized_latency, "optimized"]].filter((row) => row[1]);
  if (!rows.length) return;
  const most = Math.max(...rows.map((row) => row[1].p99_ms)), bars = make("div", { class: "bars", id: "latency" });
  for (const [name, latency, kind] of rows) {
    for (const which of ["p50", "p90", "p99"]) {
      const time = latency[which + "_ms"];
      bars.append(make("span", { class: which === "p50" ? "" : "soft" }, which === "p50" ? name + ", " + which : which),
        make("span", { class: "bar " + kind + " " + which, style: "width:" + (100 * time / most).toFixed(2) + "%" }),
        make("span", {}, time.toFixed(3) + " ms", which === "p50" ? make("span", { class: "more" }, ", " + (1000 / time).toFixed(1) + " calls/s, " + latency.runs + " runs") : null));
    }
  }
  section("Latency of one call", bars);
}

function drawPasses() {
  if (!report.passes.length) return;
  const line = make("div", { class: "timeline", id: "timeline" }), totals = new Map();
  for (const row of report.passes) {
    line.append(make("span", { class: row.changes ? "changed" : "", style: "flex-grow:" + Math.max(row.ms, 1e-3), title: row.name + ": " + plural(row.changes, "change") + ", " + row.ms.toFixed(1) + " ms" }, row.name));
    const known = totals.get(row.name) || [0, 0];
    totals.set(row.name, [known[0] + row.changes, known[1] + row.ms]);
  }
  section("Passes, as wide as the time they took; grey ones changed nothing", line, table(["pass", "changes", "ms"], [...totals].map(([name, [changes, ms]]) => [name, changes, ms.toFixed(1)]), [1, 2]), ...drawNotes());
}

function drawNotes() {
  const notes = report.passes.flatMap((row) => row.notes.map((note) => row.name + ": " + note));
  return notes.length ? [make("details", { id: "notes" }, make("summary", {}, plural(notes.length, "note") + " of what passes left as it was"), list(notes))] : [];
}

function drawPrecision() {
  const precision = report.precision, most = 40;
  if (!precision) return;
  const percent = (part) => (100 * part).toFixed(1) + " %", groups = new Map();
  for (const row of precision.kept) groups.set(row.op + "\n" + row.reason, (groups.get(row.op + "\n" + row.reason) || 0) + 1);
  const kept = [...groups].sort((one, other) => other[1] - one[1]).slice(0, most).map(([key, count]) => [...key.split("\n"), count]);
  const parts = [make("p", {}, percent(precision.operators) + " of the operators and " + percent(precision.flops) + " of the arithmetic, with " + plural(precision.casts, "cast")
    + (precision.error_before === null ? "" : "; the repair brought the error of the outputs from " + small(precision.error_before) + " to " + small(precision.error_after)))];
  if (kept.length) parts.push(table(["in float32", "why", "count"], kept, [2]));
  if (precision.sensitivities.length) {
    parts.push(make("h2", {}, "What rounding does to operators"), table(["operator", "source", "kept in float32", "own error", "error of the outputs"],
      precision.sensitivities.slice(0, most).map((row) => [row.op + " " + row.node, row.source, row.is_kept ? "yes" : "", small(row.local), small(row.contribution)]), [3, 4]));
  }
  section("Half precision: " + precision.half_dtype, ...parts);
}

function drawAccuracy() {
  if (report.outputs.length) {
    section("Accuracy", table(["output", "max abs", "max rel", "rel norm", "cosine", "top 1"],
      report.outputs.map((row) => [row.name, small(row.max_abs), small(row.max_rel), small(row.rel_norm), Number(row.cosine).toFixed(8),
        row.top1 === null ? "" : (100 * row.top1).toFixed(1) + " %"]), [1, 2, 3, 4, 5]),
    make("small", {}, report.tolerance === null ? "" : report.accuracy_check === null ? "accepted: a rel norm of " + small(report.tolerance)
      : "your accuracy_check: " + small(report.accuracy_check) + ", accepted up to " + small(report.tolerance)));
  }
}

function drawRemarks() {
  if (report.actions.length) section("Done about it", list(report.actions));
  if (report.warnings.length) section("Warnings", list(report.warnings));
}

function drawTables() {
  if (report.segments.length) {
    const bytes = report.segments.reduce((sum, row) => sum + row.size_bytes, 0);
    section("Engines: " + plural(report.segments.length, "segment") + ", " + megabytes(bytes) + " in the saved model",
      table(["segment", "backend", "inputs → outputs", "operators", "computes in", "built in", "memory"], report.segments.map((row) => [
        row.region + "." + row.index, row.backend, row.inputs.join(", ") + " → " + row.outputs.join(", "), row.nodes,
        row.dtype + (Object.keys(row.precisions).length ? "; the engine says " + Object.entries(row.precisions).map(([name, count]) => name + ": " + count).join(", ") : ""),
        (row.build_ms / 1000).toFixed(1) + " s", megabytes(row.size_bytes)]), [3, 5, 6]));
  }
  if (report.fallbacks.length) {
    const groups = new Map();
    for (const row of report.fallbacks) {
      const why = Object.entries(row.reasons).map(([name, reason]) => name + ": " + reason).join("; ") || "not offered to a backend";
      const known = groups.get(row.op + why) || groups.set(row.op + why, [0, row.op, why, new Set()]).get(row.op + why);
      known[0] += 1;
      if (row.source) known[3].add(row.source);
    }
    const rows = [...groups.values()].sort((one, other) => other[0] - one[0]).map(([count, op, why, sources]) => [op, why, [...sources].slice(0, 3).join(", ") + (sources.size > 3 ? ", …" : ""), count]);
    section("Left in Torch: " + plural(report.fallbacks.length, "operator"), table(["operator", "why", "where", "count"], rows, [3]));
  }
  section("Environment", table(["library", "version"], report.software_environment.map((row) => [row.software, row.version])));
}

// -- the graph ----------------------------------------------------------------------------------------------------------------

class Explorer {
  constructor(graph) {
    this.nodes = readNodes(graph);
    this.segments = new Map(report.segments.map((row) => [row.region + "." + row.index, row]));
    this.reasons = new Map(report.fallbacks.map((row) => [row.region + "." + row.node, row.reasons]));
    const names = [...new Set(report.segments.map((row) => row.backend))];
    const precision = report.precision || { kept: [], sensitivities: [] };
    this.kept = new Map(precision.kept.map((row) => [row.region + "." + row.node, row.reason]));
    this.rounding = new Map(precision.sensitivities.map((row) => [row.region + "." + row.node, row]));
    this.colours = new Map(names.map((name, place) => [name, COLOURS[place % COLOURS.length]]));
    this.selected = null;
    this.colouring = "backend";
    this.build();
    this.regroup("module");
  }

  backend(node) {
    if (node.op === "input" || node.op === "output") return "";
    if (report.kinds) return report.kinds[node.segment];
    const row = this.segments.get(node.region + "." + node.segment);
    return row ? row.backend : "Torch";
  }

  // What a node is coloured by: its backend, or the element type of its result.
  kind(node) {
    const backend = this.backend(node);
    return this.colouring === "backend" || !backend ? backend : node.type.split("[")[0];
  }

  colour(name) {
    if (name === "Torch") return TORCH;
    if (name === UNCHANGED) return "#8a94a6";
    if (!this.colours.has(name)) this.colours.set(name, COLOURS[this.colours.size % COLOURS.length]);
    return this.colours.get(name);
  }

  segmentName(node) {
    const name = this.backend(node);
    return name === "" ? undefined : name === "Torch" ? "Torch" : "segment " + node.segment + " " + name;
  }

  build() {
    this.legend = make("div", { class: "legend", id: "legend" });
    this.box = make("input", { id: "search", type: "search", placeholder: "Search operator, name, module, source", oninput: () => this.find(), onkeydown: (event) => {
      if (event.key === "Enter" && this.found.length) this.select(this.found[0], true);
    } });
    this.mode = make("select", { id: "mode", onchange: () => this.regroup(this.mode.value) },
      make("option", { value: "module" }, "by module"), make("option", { value: "segment" }, "by segment"));
    const button = (id, text, act) => make("button", { id, type: "button", onclick: act }, text);
    this.found = [];
    this.results = make("div", { id: "results" });
    this.tree = make("div", { class: "tree", id: "tree" });
    this.details = make("div", { class: "pane", id: "details" });
    this.layer = svg("g", {});
    this.canvas = svg("svg", { id: "canvas", role: "img", "aria-label": "the graph of the model" }, this.layer);
    const colouring = make("select", { id: "colouring", onchange: () => { this.colouring = colouring.value; this.drawLegend(); this.draw(false); } },
      make("option", { value: "backend" }, report.kinds ? "colour: change" : "colour: backend"), make("option", { value: "type" }, "colour: type"));
    const tools = make("div", { class: "tools" }, this.mode, colouring,
      button("open-all", "open all", () => { this.view.setAll(true); this.draw(true); }),
      button("close-all", "close all", () => { this.view.setAll(false); this.draw(true); }));
    const zooms = make("div", { class: "zooms" }, button("fit", "fit", () => this.fit()), button("zoom-in", "+", () => this.zoom(1.3)), button("zoom-out", "−", () => this.zoom(1 / 1.3)));
    section("Graph: " + plural(this.nodes.length, "node"), this.legend, make("div", { class: "explorer" },
      make("div", { class: "pane" }, this.box, tools, this.results, this.tree), make("div", { class: "stage" }, this.canvas, zooms), this.details));
    this.canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const frame = this.canvas.getBoundingClientRect();
      this.zoom(Math.exp(-event.deltaY / 400), event.clientX - frame.left, event.clientY - frame.top);
    }, { passive: false });
    let drag = null;
    this.canvas.addEventListener("pointerdown", (event) => { drag = { x: event.clientX, y: event.clientY, at: { ...this.at }, moved: false }; });
    addEventListener("pointermove", (event) => {
      if (!drag) return;
      drag.moved = drag.moved || Math.hypot(event.clientX - drag.x, event.clientY - drag.y) > 4;
      if (drag.moved) this.move({ scale: this.at.scale, x: drag.at.x + event.clientX - drag.x, y: drag.at.y + event.clientY - drag.y });
    });
    addEventListener("pointerup", () => { this.dragged = drag !== null && drag.moved; drag = null; });
    this.canvas.addEventListener("click", (event) => {
      const box = event.target.closest(".box");
      if (box && !this.dragged) this.select(this.boxes[Number(box.dataset.place)].item, false);
    });
    this.canvas.addEventListener("dblclick", (event) => {
      const box = event.target.closest(".box"), item = box && this.boxes[Number(box.dataset.place)].item;
      if (item && item.isGroup) this.toggle(item);
    });
  }

  // Each name shows the first of its nodes when it is clicked, then the next.
  drawLegend() {
    const found = new Map();
    for (const node of this.nodes) {
      const name = this.kind(node);
      if (!name || node.op === "getitem") continue;
      if (!found.has(name)) found.set(name, []);
      found.get(name).push(node);
    }
    this.legend.replaceChildren(...[...found].map(([name, nodes]) => {
      const next = () => this.select(nodes[(nodes.indexOf(this.selected) + 1) % nodes.length], true);
      return make("button", { type: "button", title: "show the next one", onclick: next }, make("span", { class: "swatch", style: "background:" + this.colour(name) }),
        name + (name === "Torch" ? ", left there: " : ": ") + nodes.length);
    }));
  }

  regroup(mode) {
    this.drawLegend();
    this.view = new GraphView(this.nodes, mode, (node) => this.segmentName(node));
    this.selected = null;
    this.draw(true);
    this.show();
  }

  toggle(group) { group.open = !group.open; this.draw(false); this.show(); }

  draw(doFit) {
    const { boxes, edges, width, height } = this.view.layout();
    this.boxes = boxes;
    this.size = { width, height };
    const paths = edges.map(({ from, to, ranks }) => {
      const a = boxes[from], b = boxes[to], y1 = a.y + BOX.height / 2, y2 = b.y - BOX.height / 2;
      const aside = ranks > 1 ? (b.x - a.x > 0 ? -1 : 1) * (BOX.width / 2 + Math.min(10 * ranks, 160)) : 0;
      const path = svg("path", { d: ranks > 1
        ? `M${a.x + Math.sign(aside) * BOX.width / 2},${a.y} C${a.x + aside},${a.y + 30} ${b.x + aside},${b.y - 30} ${b.x + Math.sign(aside) * BOX.width / 2},${b.y}`
        : `M${a.x},${y1} C${a.x},${y1 + 16} ${b.x},${y2 - 16} ${b.x},${y2}` });
      path.edge = [boxes[from].item, boxes[to].item];
      return path;
    });
    this.paths = paths;
    this.drawn = boxes.map((box, place) => this.drawBox(box, place));
    this.layer.replaceChildren(...paths, ...this.drawn);
    this.drawTree();
    this.mark();
    if (doFit) this.fit();
  }

  drawBox({ item, x, y }, place) {
    const left = x - BOX.width / 2, top = y - BOX.height / 2, shares = this.shares(item);
    const nodes = item.isGroup ? this.nodes.slice(item.first, item.last + 1) : [item], isTorch = nodes.some((node) => this.backend(node) === "Torch");
    const title = item.isGroup ? "▸ " + item.path : item.op.replace(/^aten\./, "").replace(/\.default$/, "");
    const note = item.isGroup ? plural(item.count, "node") : item.type || item.name;
    const cut = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);
    const made = svg("g", { class: "box" + (item.isGroup ? " group" : "") + (isTorch ? " torch" : ""), "data-place": place },
      svg("rect", { class: "frame", x: left, y: top, width: BOX.width, height: BOX.height, rx: 5 }));
    let at = left;
    for (const [name, share] of shares) {
      made.append(svg("rect", { x: at, y: top + BOX.height - 5, width: BOX.width * share, height: 5, fill: this.colour(name) }));
      at += BOX.width * share;
    }
    for (const [dy, kind, text] of [[15, "", cut(title, 27)], [30, "soft", cut(note, 32)]]) {
      const written = svg("text", { x: left + 8, y: top + dy, class: kind });
      written.textContent = text;
      made.append(written);
    }
    return made;
  }

  shares(item) {
    const counts = new Map(), nodes = item.isGroup ? this.nodes.slice(item.first, item.last + 1) : [item];
    for (const node of nodes) {
      const name = this.kind(node);
      if (name) counts.set(name, (counts.get(name) || 0) + 1);
    }
    const total = [...counts.values()].reduce((sum, count) => sum + count, 0);
    return [...counts].map(([name, count]) => [name, count / total]);
  }

  drawTree() {
    const branch = (group) => group.children.filter((item) => item.isGroup).map((item) => make("div", { class: "inner" },
      make("button", { type: "button", onclick: () => this.toggle(item) }, item.open ? "▾" : "▸"),
      make("button", { type: "button", onclick: () => this.select(item, true) }, item.label + " ", make("small", {}, String(item.count))),
      ...(item.open ? branch(item) : [])));
    this.tree.replaceChildren(...branch(this.view.root));
  }

  find() {
    this.found = this.view.search(this.box.value, 50);
    this.results.replaceChildren(...this.found.map((node) => make("button", { class: "link", type: "button", onclick: () => this.select(node, true) }, node.name)));
    if (this.box.value.trim() && !this.found.length) this.results.append(make("small", {}, "nothing found"));
  }

  select(item, doCentre) {
    this.selected = item;
    if (!item.isGroup && !this.boxes.some((box) => box.item === item)) { this.view.reveal(item); this.draw(false); }
    this.mark();
    this.show();
    const box = this.boxes.find((found) => found.item === item);
    if (box && doCentre) {
      const frame = this.canvas.getBoundingClientRect(), scale = Math.max(this.at.scale, 0.8);
      this.move({ scale, x: frame.width / 2 - box.x * scale, y: frame.height / 2 - box.y * scale });
    }
  }

  mark() {
    this.drawn.forEach((box, place) => box.classList.toggle("selected", this.boxes[place].item === this.selected));
    for (const path of this.paths) path.classList.toggle("near", this.selected !== null && path.edge.includes(this.selected));
  }

  show() {
    const item = this.selected, rows = [], add = (name, value) => { if (value && (!Array.isArray(value) || value.length)) rows.push(make("dt", {}, name), make("dd", {}, ...[value].flat())); };
    if (item === null) { this.details.replaceChildren(make("p", { class: "soft" }, "Click a node for what is known of it. Double click opens a group; the wheel zooms, dragging moves."), ...this.drawLeft()); return; }
    if (item.isGroup) {
      const counts = new Map();
      for (const node of this.nodes.slice(item.first, item.last + 1)) counts.set(node.op, (counts.get(node.op) || 0) + 1);
      add("nodes", String(item.count));
      add(this.colouring === "type" ? "types" : report.kinds ? "nodes" : "runs in", this.shares(item).map(([name, share]) => name + " " + Math.round(100 * share) + " %").join(", "));
      add("operators", [...counts].sort((one, other) => other[1] - one[1]).slice(0, 30).map(([op, count]) => make("div", {}, count + " × " + op)));
      this.details.replaceChildren(make("h3", {}, item.path), make("div", { class: "tools" }, make("button", { type: "button", id: "toggle", onclick: () => this.toggle(item) }, item.open ? "close" : "open")), make("dl", {}, ...rows));
      return;
    }
    const link = (place) => make("button", { class: "link", type: "button", onclick: () => this.select(this.nodes[place], true) }, this.nodes[place].name);
    const segment = this.segments.get(item.region + "." + item.segment), reasons = this.reasons.get(item.region + "." + item.name);
    add("operator", item.op);
    add("type", item.type);
    add("weights", item.weights);
    add("module", item.path);
    add("source", item.source);
    if (report.kinds) add("this pass", this.backend(item) === UNCHANGED ? "left it as it was" : "made or changed it");
    else if (segment) add("runs in", segment.backend + ", segment " + segment.region + "." + segment.index + ", computes in " + segment.dtype);
    else if (this.backend(item) === "Torch") add("runs in", make("span", { class: "bad" }, "Torch"));
    if (reasons) add("why", Object.entries(reasons).map(([name, why]) => make("div", {}, name + ": " + why)));
    add("in float32", this.kept.get(item.region + "." + item.name));
    const rounding = this.rounding.get(item.region + "." + item.name);
    if (rounding) add("rounding", "own error " + small(rounding.local) + ", error of the outputs " + small(rounding.contribution));
    if (item.op === "output") add("error", report.outputs.map((row) => make("div", {}, row.name + ": rel norm " + small(row.rel_norm))));
    add("reads", item.inputs.map(link));
    add("read by", item.users.map(link));
    add("part of", this.view.groupsOf(item).map((group) => make("button", { class: "link", type: "button", onclick: () => { this.selected = group; this.toggle(group); } }, "close " + group.path)));
    this.details.replaceChildren(make("h3", {}, item.name), make("dl", {}, ...rows));
  }

  // The first thing to look for: what no engine runs, or what a pass changed.
  drawLeft() {
    const nodes = this.nodes.filter((node) => node.op !== "getitem" && this.backend(node) === (report.kinds ? report.kinds[1] : "Torch")), most = 12;
    if (!nodes.length) return [];
    const links = nodes.slice(0, most).map((node) => make("button", { class: "link", type: "button", onclick: () => this.select(node, true) }, node.name));
    return [make("h3", {}, (report.kinds ? "New or changed: " : "Left in Torch: ") + nodes.length), ...links, nodes.length > most ? make("small", {}, "and more: the legend leads from one to the next") : ""];
  }

  fit() {
    const frame = this.canvas.getBoundingClientRect();
    // Whole where that can be read; else as wide as there is room, from the top.
    const wide = frame.width / this.size.width, high = frame.height / this.size.height;
    const scale = Math.max(Math.min(wide, high) >= 0.6 ? Math.min(wide, high, 1.1) : Math.min(wide, 0.9), 0.02);
    this.move({ scale, x: (frame.width - this.size.width * scale) / 2, y: 8 });
  }

  zoom(factor, x, y) {
    const frame = this.canvas.getBoundingClientRect(), scale = Math.min(Math.max(this.at.scale * factor, 0.01), 4), by = scale / this.at.scale;
    x = x === undefined ? frame.width / 2 : x;
    y = y === undefined ? frame.height / 2 : y;
    this.move({ scale, x: x - (x - this.at.x) * by, y: y - (y - this.at.y) * by });
  }

  move(at) {
    this.at = at;
    this.layer.setAttribute("transform", `translate(${at.x} ${at.y}) scale(${at.scale})`);
  }
}

if (report.title) page.append(make("section", { class: "head" }, make("h1", {}, report.title)));
else { drawHead(); drawRemarks(); drawLatency(); drawAccuracy(); }
const explorer = report.graph && report.graph.nodes.length ? new Explorer(report.graph) : null;
if (!report.title) { drawPasses(); drawPrecision(); drawTables(); }
document.documentElement.dataset.readyMs = String(Math.round(performance.now()));
