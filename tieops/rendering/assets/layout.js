// Where everything is: dagre lays out each frame by itself, the innermost first, and a frame is one box
// of the frame around it. So nothing that is outside of a frame can come to lie in it.
"use strict";

const Layout = (() => {
  const { measure, elide } = Visible;
  const HEADER = 30, PADDING = 14; // of a frame
  const TOP = "top", BOTTOM = "bottom"; // stand above and below all else of a frame

  // A level is what one frame holds: its boxes, and the stretches of edges between them. An edge that
  // enters or leaves a frame comes through a port on the frame's upper or lower side.
  function levelsOf(data, { units, frames, flows, stores }) {
    const levels = new Map([[-1, { boxes: [], edges: new Map(), ports: new Map() }]]);
    for (const group of frames.keys()) levels.set(group, { boxes: [], edges: new Map(), ports: new Map() });
    for (const box of [...units.values(), ...frames.values()]) levels.get(box.parent).boxes.push(box);

    function edge(level, start, end, kind, extra) {
      const key = `${kind} ${start} ${end}`;
      const { edges, ports } = levels.get(level);
      if (!edges.has(key)) edges.set(key, { key, start, end, ...extra });
      for (const side of [start, end]) {
        if (/^[io]:/.test(side)) ports.set(side, side[0]);
      }
      return key;
    }

    function connect(start, end, kind, extra, label) {
      const above = Visible.around(data, units.get(start).parent), below = Visible.around(data, units.get(end).parent);
      const common = above.find((group) => below.includes(group)) ?? -1;
      const out = above.slice(0, above.includes(common) ? above.indexOf(common) : above.length).reverse();
      const into = below.slice(0, below.includes(common) ? below.indexOf(common) : below.length).reverse();
      const name = (chain, i, unit) => (i < chain.length ? `f${chain[i]}` : unit);
      const last = into.length === 0 ? label : {};
      const key = edge(common, name(out, 0, start), name(into, 0, end), kind, { ...extra, ...last });
      let outer = key;
      out.forEach((group, i) => (outer = edge(group, name(out, i + 1, start), `o:${outer}`, kind, extra)));
      outer = key;
      into.forEach((group, i) => {
        const ends = i === into.length - 1 ? label : {};
        outer = edge(group, `i:${outer}`, name(into, i + 1, end), kind, { ...extra, ...ends });
      });
    }

    for (const flow of flows) connect(flow.start, flow.end, "flow", {}, {});
    const largest = Math.max(1, ...stores.map((store) => store.nbytes));
    for (const store of stores) {
      const thick = 1.5 + 3.5 * Math.sqrt(store.nbytes / largest);
      for (const link of store.links) {
        connect(store.key, link.unit, store.key, { store, thick }, { unit: link.unit, text: elide(link.label, 160, 11, false) });
      }
    }
    return levels;
  }

  // Lay out one level; its boxes get places relative to the level's own corner.
  function layOut(levels, group) {
    const level = levels.get(group);
    for (const box of level.boxes) {
      if (box.frame !== undefined) Object.assign(box, layOut(levels, box.frame));
    }
    const graph = new dagre.graphlib.Graph({ multigraph: true });
    graph.setGraph({ rankdir: "TB", nodesep: 26, edgesep: 14, ranksep: 34, acyclicer: "greedy" });
    for (const box of level.boxes) {
      graph.setNode(box.key, { width: box.width, height: box.height + (box.form === "repeat" ? 8 : 0) });
    }
    for (const port of level.ports.keys()) graph.setNode(port, { width: 1, height: 1 });
    for (const edge of level.edges.values()) {
      // Whole numbers: dagre's network simplex need not end on others.
      const label = edge.text === undefined ? {} : { width: measure(edge.text, 11) + 12, height: 18, labelpos: "c" };
      graph.setEdge(edge.start, edge.end, { ...label, weight: edge.store ? 1 : 4 }, edge.key);
    }
    holdPorts(graph, level);
    dagre.layout(graph);
    return placed(graph, level, group);
  }

  // Ports belong on the frame's sides, however far inside they lead.
  function holdPorts(graph, { ports, boxes }) {
    const sides = [...ports.values()];
    if (sides.includes("i")) {
      graph.setNode(TOP, { width: 1, height: 1 });
      for (const [port, side] of ports) if (side === "i") graph.setEdge(TOP, port, { weight: 100 }, port);
      for (const { key } of boxes) if (!graph.inEdges(key).length) graph.setEdge(TOP, key, { weight: 0, minlen: 2 }, key);
    }
    if (sides.includes("o")) {
      graph.setNode(BOTTOM, { width: 1, height: 1 });
      for (const [port, side] of ports) if (side === "o") graph.setEdge(port, BOTTOM, { weight: 100 }, port);
      for (const { key } of boxes) if (!graph.outEdges(key).length) graph.setEdge(key, BOTTOM, { weight: 0, minlen: 2 }, key);
    }
  }

  function placed(graph, level, group) {
    const ranks = new Map(), at = new Map();
    for (const box of level.boxes) {
      const { x, y, rank, height } = graph.node(box.key);
      Object.assign(box, { x: x - box.width / 2, y: y - height / 2, rank });
      at.set(box.key, box);
      const { top, bottom } = ranks.get(rank) ?? { top: y, bottom: y };
      ranks.set(rank, { top: Math.min(top, y - height / 2), bottom: Math.max(bottom, y + height / 2) });
    }
    const extent = extentOf(graph, level);
    const header = group >= 0 ? HEADER : PADDING;
    const width = Math.max(extent.right - extent.left, (level.title ?? 0)) + 2 * PADDING;
    const height = extent.bottom - extent.top + header + PADDING;
    for (const port of level.ports.keys()) {
      const side = level.ports.get(port) === "i";
      at.set(port, { port: side ? "i" : "o", x: graph.node(port).x, y: side ? extent.top - header : extent.bottom + PADDING });
    }
    for (const edge of level.edges.values()) {
      const { points, x, y, width: room, height: tall } = graph.edge(edge.start, edge.end, edge.key);
      Object.assign(edge, { points: docked(points, at.get(edge.start), at.get(edge.end), ranks, edge.key), x, y, width: room, height: tall });
    }
    const shift = { x: PADDING - extent.left, y: header - extent.top };
    for (const box of level.boxes) move(box, shift);
    for (const edge of level.edges.values()) {
      move(edge, shift);
      edge.points = edge.points.map((point) => ({ x: point.x + shift.x, y: point.y + shift.y }));
    }
    for (const port of level.ports.keys()) level.ports.set(port, at.get(port).x + shift.x);
    return { width, height, portX: level.ports };
  }

  function move(thing, shift) {
    thing.x += shift.x;
    thing.y += shift.y;
  }

  function extentOf(graph, { boxes, ports, edges }) {
    let left = Infinity, right = -Infinity, top = Infinity, bottom = -Infinity;
    const take = (x, y, w, h) => {
      left = Math.min(left, x - w / 2);
      right = Math.max(right, x + w / 2);
      top = Math.min(top, y - h / 2);
      bottom = Math.max(bottom, y + h / 2);
    };
    for (const name of [...boxes.map((box) => box.key), ...ports.keys()]) {
      const { x, y, width, height } = graph.node(name);
      take(x, y, width, height);
    }
    for (const edge of edges.values()) {
      const { points, x, y, width, height } = graph.edge(edge.start, edge.end, edge.key);
      for (const point of points) take(point.x, point.y, 4, 0);
      if (edge.text !== undefined) take(x, y, width, height);
    }
    return { left, right, top, bottom };
  }

  // dagre aims edges at the middle of a box. Here they leave below it and arrive above it, and go
  // straight down until they are past the boxes beside it, which may be taller.
  function docked(points, start, end, ranks, key) {
    const route = points.slice(1, -1);
    const low = start.port ? start.y : start.y + start.height + (start.form === "repeat" ? 8 : 0);
    if (end.y < low || route.length === 0) return points;
    const first = { x: dock(start, route[0].x, `o:${key}`), y: low };
    const last = { x: dock(end, route[route.length - 1].x, `i:${key}`), y: end.y };
    const below = start.port ? low : ranks.get(start.rank).bottom + 6;
    const above = end.port ? end.y : ranks.get(end.rank).top - 12;
    const middle = route.filter((point) => point.y > below && point.y < above);
    return [first, { x: first.x, y: below }, ...middle, { x: last.x, y: above }, last]
      .filter((point, k, all) => k === 0 || point.y > all[k - 1].y);
  }

  function dock(box, x, port) {
    if (box.port) return box.x;
    if (box.portX?.has(port)) return box.x + box.portX.get(port);
    const left = box.x + 14, right = box.x + box.width - 14, middle = box.x + box.width / 2;
    if (x >= left && x <= right) return x;
    return Math.min(right, Math.max(left, middle + (x - middle) * 0.35));
  }

  // Make places absolute, outer frames first.
  function settle(levels, group, corner) {
    const { boxes, edges } = levels.get(group);
    for (const box of boxes) {
      move(box, corner);
      if (box.frame !== undefined) settle(levels, box.frame, box);
    }
    for (const edge of edges.values()) {
      move(edge, corner);
      edge.points = edge.points.map((point) => ({ x: point.x + corner.x, y: point.y + corner.y }));
    }
  }

  function arrange(data, open, chosen = -1) {
    const shown = Visible.visible(data, open, chosen);
    const levels = levelsOf(data, shown);
    for (const frame of shown.frames.values()) levels.get(frame.frame).title = frame.titleWidth;
    const { width, height } = layOut(levels, -1);
    settle(levels, -1, { x: 0, y: 0 });
    const edges = [...levels.values()].flatMap((level) => [...level.edges.values()]);
    const depth = (frame) => Visible.around(data, frame.parent).length;
    return {
      units: [...shown.units.values()], stores: shown.stores, width, height,
      frames: [...shown.frames.values()].sort((a, b) => depth(a) - depth(b)).map((frame) => Object.assign(frame, { depth: depth(frame) })),
      flows: edges.filter((edge) => !edge.store), links: edges.filter((edge) => edge.store),
    };
  }

  return { arrange };
})();
