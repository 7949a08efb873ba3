// A placed picture as a tree of SVG elements: [tag, attributes, ...children]; a string is text.
// Pure: a page makes elements of it, Python writes it to a file.
"use strict";

const Draw = (() => {
  // Okabe and Ito's colours, which colour-blind people tell apart; a letter goes with each.
  const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#9a8700"];
  const DARK_ON = new Set(["#e69f00", "#56b4e9", "#cc79a7"]);
  const PAD = 12;

  const colour = (mark) => COLOURS[mark % COLOURS.length];
  const NEUTRAL = "#6b7889";
  // A box of several parameters has no colour of its own: their signs are in it.
  const strokeOf = (data, { parameters }) => {
    const { mark } = data.parameters[parameters[0]];
    return parameters.length > 1 || mark < 0 ? NEUTRAL : colour(mark);
  };
  const round = (n) => Math.round(n * 10) / 10;

  const SIZES = { title: 13, heading: 12, plain: 12, times: 15 };

  function text(x, y, words, kind, anchor) {
    const attributes = { x: round(x), y: round(y), class: kind };
    if (anchor) attributes["text-anchor"] = anchor;
    if (/[\u2e80-\uffff]/.test(words)) {
      // How wide these are is told by fonts that may be missing: what stands in for them may not clip.
      attributes.textLength = round(Visible.measure(words, SIZES[kind] || 11));
      attributes.lengthAdjust = "spacingAndGlyphs";
    }
    return ["text", attributes, words];
  }

  function rect(x, y, width, height, kind, radius = 6) {
    return ["rect", { x: round(x), y: round(y), width: round(width), height: round(height), rx: radius, class: kind }];
  }

  // The sign of one parameter: its letter on its colour, wherever it is read.
  function chip(data, number, x, y) {
    const { mark } = data.parameters[number];
    if (mark < 0) return rect(x + 3, y - 4.5, 9, 9, "own", 2);
    const name = Visible.letter(mark);
    const fill = colour(mark);
    return ["g", { class: "chip", "data-parameter": number },
      ["rect", { x: round(x), y: round(y - 8), width: 17, height: 16, rx: 4, fill }],
      ["text", { x: round(x + 8.5), y: round(y + 4), "text-anchor": "middle",
        class: `letter ${DARK_ON.has(fill) ? "dark" : "light"} ${name.length > 1 ? "small" : ""}` }, name]];
  }

  // Through all points, corners rounded.
  function path(points) {
    const [first, ...rest] = points;
    let d = `M${round(first.x)},${round(first.y)}`;
    rest.forEach((point, i) => {
      const next = rest[i + 1];
      if (!next) {
        d += `L${round(point.x)},${round(point.y)}`;
        return;
      }
      const before = i ? rest[i - 1] : first;
      const a = toward(point, before), b = toward(point, next);
      d += `L${round(a.x)},${round(a.y)}Q${round(point.x)},${round(point.y)} ${round(b.x)},${round(b.y)}`;
    });
    return d;
  }

  function toward(from, to) {
    const length = Math.hypot(to.x - from.x, to.y - from.y) || 1;
    const step = Math.min(12, length / 2) / length;
    return { x: from.x + (to.x - from.x) * step, y: from.y + (to.y - from.y) * step };
  }

  // The same route without its last bit, so that a thick line does not stick out beside its tip.
  function blunt(points, cut) {
    const end = points[points.length - 1], before = points[points.length - 2];
    const length = Math.hypot(end.x - before.x, end.y - before.y) || 1;
    const part = Math.min(cut, length * 0.9) / length;
    return [...points.slice(0, -1), { x: end.x + (before.x - end.x) * part, y: end.y + (before.y - end.y) * part }];
  }

  function arrow(points, size, kind, fill) {
    const end = points[points.length - 1], before = points[points.length - 2];
    const length = Math.hypot(end.x - before.x, end.y - before.y) || 1;
    const ux = (end.x - before.x) / length, uy = (end.y - before.y) / length;
    const at = (back, side) => `${round(end.x - ux * back - uy * side)},${round(end.y - uy * back + ux * side)}`;
    const attributes = { points: `${at(0, 0)} ${at(size * 1.5, size * 0.75)} ${at(size * 1.5, -size * 0.75)}`, class: kind };
    if (fill) attributes.fill = fill;
    return ["polygon", attributes];
  }

  function sign(x, y, folded) {
    const d = `M${round(x - 4)},${round(y)}h8` + (folded ? `M${round(x)},${round(y - 4)}v8` : "");
    return ["g", { class: "sign" }, rect(x - 7, y - 7, 14, 14, "signbox", 3), ["path", { d }]];
  }

  function tag(unit) {
    if (!unit.status) return [];
    const width = unit.tag - 6;
    const x = unit.x + unit.width - width - 6, y = unit.y - 8;
    return [["g", { class: `tag ${unit.status}` }, rect(x, y, width, 16, "tagbox", 8), text(x + width / 2, y + 11.5, unit.status, "tagtext", "middle")]];
  }

  function unitElement(data, unit) {
    const { x, y, width, height } = unit;
    const classes = ["unit", unit.form, unit.status, unit.rows.some((row) => row.parameters.some((p) => data.parameters[p].mark >= 0)) ? "tied" : ""];
    const attributes = { class: classes.filter(Boolean).join(" "), "data-key": unit.key };
    const inside = [];
    if (unit.form === "repeat") {
      inside.push(rect(x + 8, y + 8, width, height, "sheet"), rect(x + 4, y + 4, width, height, "sheet"));
    }
    if (unit.form === "store") return storeElement(data, unit, attributes);
    const pill = unit.form === "input" || unit.form === "output" ? height / 2 : unit.form === "operator" ? 13 : 6;
    inside.push(rect(x, y, width, height, "body", pill));
    if (unit.form === "operator") {
      inside.push(text(x + width / 2, y + 19, unit.title, "plain", "middle"));
    } else {
      inside.push(text(x + PAD, y + 20, unit.title, "title"));
    }
    if (unit.group !== undefined) {
      inside.push(sign(x + width - 16, y + 15, true));
      if (unit.side) inside.push(text(x + width - 30, y + 20, unit.side, "times", "end"));
      unit.notes.forEach((note, i) => inside.push(text(x + PAD, y + 38 + i * 17, note, "note")));
      const line = y + 30 + unit.notes.length * 17 + 10;
      unit.chips.forEach((p, i) => inside.push(chip(data, p, x + PAD + i * 22, line)));
      if (unit.chips.length) inside.push(text(x + PAD + unit.chips.length * 22 + 2, line + 4, unit.more, "note"));
    } else if (unit.side) {
      inside.push(text(x + width - PAD, y + 20, unit.side, "kind", "end"));
    }
    unit.rows.forEach((row, i) => {
      const middle = y + 38 + i * 19;
      if (row.parameters.length) inside.push(chip(data, row.parameters[0], x + PAD - 2, middle));
      inside.push(text(x + PAD + 22, middle + 4, row.text, "row"), text(x + width - PAD, middle + 4, row.size, "size", "end"));
    });
    return ["g", attributes, ...inside, ...tag(unit)];
  }

  function storeElement(data, unit, attributes) {
    const { x, y, width, height } = unit;
    const body = rect(x, y, width, height, "stored", 14);
    body[1].stroke = strokeOf(data, unit.store);
    const start = x + PAD + unit.chips.length * 22;
    attributes["data-parameter"] = unit.store.parameters[0];
    return ["g", attributes, body,
      ...unit.chips.map((p, i) => chip(data, p, x + PAD + i * 22, y + 16)),
      text(start + 2, y + 20.5, unit.title + (unit.more ? ` ${unit.more}` : ""), "title"),
      text(x + PAD, y + 38, unit.note, "note"), ...tag(unit)];
  }

  function linkElement(data, link) {
    const stroke = strokeOf(data, link.store);
    const attributes = { class: "link", "data-parameters": link.store.parameters.join(" ") };
    if (link.text === undefined) {
      return ["g", attributes, ["path", { d: path(link.points), stroke, "stroke-width": round(link.thick) }]];
    }
    const corner = { x: round(link.x - link.width / 2), y: round(link.y - link.height / 2) };
    return ["g", { ...attributes, "data-unit": link.unit },
      ["path", { d: path(blunt(link.points, 6 + link.thick)), stroke, "stroke-width": round(link.thick) }],
      arrow(link.points, 5 + link.thick * 1.2, "tip", stroke),
      ["rect", { ...corner, width: round(link.width), height: link.height, rx: 9, class: "labelbox", stroke }],
      text(link.x, link.y + 4, link.text, "label", "middle")];
  }

  function flowElement(flow) {
    const tip = /^[bg]/.test(flow.end) ? [arrow(flow.points, 5, "tip")] : [];
    return ["g", { class: "flow" }, ["path", { d: path(flow.points) }], ...tip];
  }

  function frameElements(frame) {
    const { x, y, width, height, text: words, titleWidth } = frame;
    return {
      body: ["g", { class: `frame ${frame.depth % 2 ? "even" : "odd"}` }, rect(x, y, width, height, "body", 8)],
      header: ["g", { class: `unit header ${frame.depth % 2 ? "even" : "odd"}`, "data-key": frame.key },
        rect(x + 4, y + 4, titleWidth, 22, "hit", 6), sign(x + 16, y + 15, false), text(x + 30, y + 19, words, "heading")],
    };
  }

  function graphElement(data, view) {
    const frames = view.frames.map(frameElements);
    return ["g", { class: "graph" }, ...frames.map((frame) => frame.body), ...view.flows.map(flowElement),
      ...view.links.map((link) => linkElement(data, link)), ...frames.map((frame) => frame.header),
      ...view.units.map((unit) => unitElement(data, unit))];
  }

  return { graphElement, chip, text, rect, colour, round };
})();
