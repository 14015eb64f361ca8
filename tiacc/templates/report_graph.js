"use strict";
// The graph of a model: its groups, which of them are open, and where each thing is drawn. It needs no document.
//
// Nodes come in an order in which they can run. A group is an interval of that order, so that what groups read of each other has no
// cycles, whichever are open.

const MOST_SHOWN = 60, CHUNK = 40, BOX = { width: 196, height: 42, across: 22, down: 30 };

function readNodes(graph) {
  const nodes = graph.nodes.map((line, id) => {
    const numbers = line.split(" ").map(Number), text = (place) => graph.strings[numbers[place]];
    return {
      id, op: text(0), name: text(1), type: text(2), path: text(3), source: text(4), weights: text(5),
      region: numbers[6], segment: numbers[7], inputs: numbers.slice(8), users: [],
    };
  });
  for (const node of nodes) for (const input of node.inputs) nodes[input].users.push(node.id);
  return nodes;
}

class GraphView {
  // mode: "module" or "segment"
  constructor(nodes, mode, segmentName) {
    this.nodes = nodes;
    this.groups = [];
    this.segmentName = segmentName;
    const several = nodes.length > 0 && nodes[nodes.length - 1].region > 0;
    const holders = new Set();
    for (const node of nodes) for (let at = node.path.indexOf("."); at > 0; at = node.path.indexOf(".", at + 1)) holders.add(node.path.slice(0, at));
    const keys = nodes.map((node) => {
      // A module that holds others is a group; one operator's own module is not.
      const names = node.path ? node.path.split(".") : [], modules = holders.has(node.path) ? names : names.slice(0, -1);
      const own = mode === "segment" ? [segmentName(node)] : modules;
      return several ? ["region " + node.region, ...own] : own;
    });
    this.root = this.group("model", this.build(0, nodes.length, 0, keys));
    this.root.open = true;
    this.openSome();
  }

  group(label, children, path) {
    const first = children.length ? this.first(children[0]) : 0;
    const last = children.length ? this.last(children[children.length - 1]) : -1;
    const made = { isGroup: true, id: this.groups.length, label, path: path || label, children, first, last, count: last - first + 1, open: false, parent: null };
    for (const child of children) if (child.isGroup) child.parent = made;
    this.groups.push(made);
    return made;
  }

  first(item) { return item.isGroup ? item.first : item.id; }
  last(item) { return item.isGroup ? item.last : item.id; }

  build(begin, end, depth, keys) {
    const found = [];
    for (let at = begin; at < end;) {
      const key = keys[at][depth];
      let next = at + 1;
      if (key === undefined) { found.push(this.nodes[at]); at = next; continue; }
      while (next < end && keys[next][depth] === key) next += 1;
      if (next - at === 1) found.push(this.nodes[at]);
      else {
        const children = this.build(at, next, depth + 1, keys);
        if (children.length === 1 && children[0].isGroup) { children[0].label = key + "." + children[0].label; found.push(children[0]); }
        else found.push(this.group(key, children, keys[at].slice(0, depth + 1).join(".")));
      }
      at = next;
    }
    return this.chunked(found);
  }

  chunked(items) {
    while (items.length > MOST_SHOWN) {
      const made = [];
      for (let at = 0; at < items.length; at += CHUNK) {
        const some = items.slice(at, at + CHUNK);
        made.push(some.length === 1 ? some[0] : this.group(this.first(some[0]) + "–" + this.last(some[some.length - 1]), some));
      }
      items = made;
    }
    return items;
  }

  // Open groups, the largest first, as long as what is shown stays readable.
  openSome() {
    let shown = this.root.children.length;
    const waiting = this.root.children.filter((item) => item.isGroup);
    while (waiting.length) {
      waiting.sort((one, other) => one.count - other.count);
      const group = waiting.pop();
      if (shown + group.children.length - 1 > MOST_SHOWN) continue;
      group.open = true;
      shown += group.children.length - 1;
      waiting.push(...group.children.filter((item) => item.isGroup));
    }
  }

  setAll(open) { for (const group of this.groups) group.open = open || group === this.root; }

  groupsOf(node) {
    const found = [];
    let group = this.root;
    while (group) {
      const inner = group.children.find((item) => item.isGroup && item.first <= node.id && node.id <= item.last);
      if (inner) found.push(inner);
      group = inner;
    }
    return found;
  }

  reveal(node) { for (const group of this.groupsOf(node)) group.open = true; }

  shown() {
    const found = [], visit = (group) => {
      for (const item of group.children) if (item.isGroup && item.open) visit(item); else found.push(item);
    };
    visit(this.root);
    return found;
  }

  // Return {boxes: [{item, x, y}], edges: [{from, to}], width, height}; x and y are of the middle of a box.
  layout() {
    const items = this.shown(), owner = new Int32Array(this.nodes.length);
    items.forEach((item, index) => owner.fill(index, this.first(item), this.last(item) + 1));
    const before = items.map(() => new Set());
    for (const node of this.nodes) for (const input of node.inputs) if (owner[input] !== owner[node.id]) before[owner[node.id]].add(owner[input]);
    const rank = new Int32Array(items.length), rows = [];
    items.forEach((item, index) => {
      for (const other of before[index]) rank[index] = Math.max(rank[index], rank[other] + 1);
      (rows[rank[index]] = rows[rank[index]] || []).push(index);
    });
    const x = new Float64Array(items.length), step = BOX.width + BOX.across;
    for (const row of rows) {
      for (const index of row) {
        let sum = 0;
        for (const other of before[index]) sum += x[other];
        x[index] = before[index].size ? sum / before[index].size : 0;
      }
      row.sort((one, other) => x[one] - x[other] || one - other);
      const middle = row.reduce((sum, index) => sum + x[index], 0) / row.length;
      for (let at = 1; at < row.length; at += 1) x[row[at]] = Math.max(x[row[at]], x[row[at - 1]] + step);
      const shift = middle - row.reduce((sum, index) => sum + x[index], 0) / row.length;
      for (const index of row) x[index] += shift;
    }
    let left = 0, right = 0;
    for (const value of x) { left = Math.min(left, value); right = Math.max(right, value); }
    const boxes = items.map((item, index) => ({
      item, x: x[index] - left + step / 2, y: (rank[index] + 0.5) * (BOX.height + BOX.down),
    }));
    const edges = before.flatMap((others, index) => [...others].map((other) => ({ from: other, to: index, ranks: rank[index] - rank[other] })));
    return { boxes, edges, width: right - left + step, height: rows.length * (BOX.height + BOX.down) };
  }

  search(text, most) {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean), found = [];
    if (!words.length) return found;
    for (const node of this.nodes) {
      const all = (node.op + " " + node.name + " " + node.path + " " + node.source + " " + node.type).toLowerCase();
      if (words.every((word) => all.includes(word))) found.push(node);
      if (found.length >= most) break;
    }
    return found;
  }
}

if (typeof module !== "undefined") module.exports = { GraphView, readNodes, MOST_SHOWN, BOX };
