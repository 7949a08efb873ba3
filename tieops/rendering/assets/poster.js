// A picture with its caption, for a file that nobody can click: what is shared, in words.
"use strict";

const Poster = (() => {
  const MAX_TIES = 8, MAX_CHIPS = 6, MAX_CHANGES = 10, MARGIN = 24, GAP = 40, LEAST = 560;

  // One line for what one box tells: a drawn parameter, or what a folded block shares inside.
  function tieLines(data, view) {
    const lines = view.stores.filter((store) => data.parameters[store.parameters[0]].tied).map((store) => {
      const parameters = store.parameters.map((p) => data.parameters[p]);
      const [first] = parameters;
      const readers = readersOf(data, first);
      const single = parameters.length === 1;
      return {
        parameters: store.parameters, head: single ? first.names.map(Visible.shown).join(" = ") : `${parameters.length} parameters`,
        note: `${single ? `${first.what}, ` : ""}${Visible.bytes(store.nbytes)} stored once${savings(parameters)}`,
        readers: single ? `read by ${readers.slice(0, 30).join(", ")}` : `such as ${first.names[0]}, read by ${readers.slice(0, 30).join(", ")}`,
      };
    });
    for (const unit of view.units) {
      if (!unit.inside?.length) continue;
      const parameters = unit.inside.map((p) => data.parameters[p]);
      const size = Visible.bytes(parameters.reduce((sum, p) => sum + p.nbytes, 0));
      const what = parameters.length === 1 ? "1 parameter" : `${parameters.length} parameters`;
      lines.push({
        parameters: unit.inside, head: `${what}, shared inside ${unit.title}${unit.side ? ` ${unit.side}` : ""}`,
        note: `${size} stored once${savings(parameters)}`, readers: `such as ${parameters[0].names[0]}, read ${parameters[0].uses.length} times`,
      });
    }
    return lines;
  }

  function readersOf(data, parameter) {
    const views = new Map();
    for (const use of parameter.uses) {
      const box = data.boxes[use.box];
      const name = box.form === "output" ? `output ${box.name}` : `${box.name}.${use.role}`;
      views.set(name, [...(views.get(name) ?? []), use.view]);
    }
    return [...views].map(([name, all]) => name + (all.length > 1 ? ` (in ${all.length} parts)` : all[0] ? ` (${all[0]})` : ""));
  }

  function savings(parameters) {
    const saved = parameters.reduce((sum, parameter) => sum + parameter.saved, 0);
    return saved ? `, saves ${Visible.bytes(saved)}` : "";
  }

  // The caption of one model: its name, one sentence, its ties.
  function caption(data, view, width, heading) {
    const lines = tieLines(data, view);
    const count = data.parameters.filter((parameter) => parameter.tied).length;
    const elements = [];
    let y = 16;
    const title = [heading, data.title].filter(Boolean).join(": ");
    if (title) {
      elements.push(Draw.text(0, y, Visible.elide(title, width, 18), "poster"));
      y += 24;
    }
    const sentence = count === 0 ? "No ties: every layer has parameters of its own."
      : `${count === 1 ? "1 tie: one stored parameter" : `${count} ties: stored parameters`} with several readers or names.`;
    elements.push(Draw.text(0, y, `${sentence} ${data.ledger}.`, "lead"));
    y += 24;
    for (const { parameters, head, note, readers } of lines.slice(0, MAX_TIES)) {
      const chips = parameters.slice(0, MAX_CHIPS);
      chips.forEach((p, i) => elements.push(Draw.chip(data, p, i * 20, y - 4)));
      const left = chips.length * 20 + 6;
      elements.push(["text", { x: left, y, class: "row" }, ["tspan", { class: "title" }, Visible.elide(head, width * 0.55, 13, false)],
        ["tspan", { class: "note", dx: 10 }, note]],
        Draw.text(left, y + 16, Visible.elide(readers, width - left, 11, false), "note"));
      y += 38;
    }
    if (lines.length > MAX_TIES) {
      elements.push(Draw.text(0, y, `… and ${lines.length - MAX_TIES} more`, "note"));
      y += 20;
    }
    for (const duplicate of data.duplicates.slice(0, 4)) {
      elements.push(Draw.text(0, y, Visible.elide(`Stored twice: ${duplicate}`, width, 11, false), "note"));
      y += 18;
    }
    return { elements, height: y };
  }

  function panel(data, heading) {
    const view = Layout.arrange(data, new Set(data.opened));
    const width = Math.max(LEAST, view.width);
    const words = caption(data, view, width, heading);
    const graph = Draw.graphElement(data, view);
    graph[1].transform = `translate(${Draw.round((width - view.width) / 2)},${Draw.round(words.height + 6)})`;
    return { width, height: words.height + 6 + view.height, elements: [...words.elements, graph] };
  }

  function draw({ pictures, headings, changes }) {
    const panels = pictures.map((data, i) => panel(data, headings[i]));
    const width = panels.reduce((sum, each) => sum + each.width, 0) + GAP * (panels.length - 1) + 2 * MARGIN;
    const elements = [];
    let top = MARGIN;
    if (changes.length) {
      elements.push(Draw.text(MARGIN, top + 16, "What changed", "poster"));
      top += 40;
      for (const change of changes.slice(0, MAX_CHANGES)) {
        elements.push(Draw.text(MARGIN, top, Visible.elide(change, width - 2 * MARGIN, 13, false), "change"));
        top += 20;
      }
      if (changes.length > MAX_CHANGES) {
        elements.push(Draw.text(MARGIN, top, `… and ${changes.length - MAX_CHANGES} more`, "change"));
        top += 20;
      }
      top += 12;
    }
    let left = MARGIN;
    panels.forEach((each, i) => {
      elements.push(["g", { transform: `translate(${Draw.round(left)},${Draw.round(top)})` }, ...each.elements]);
      left += each.width + GAP;
      if (i + 1 < panels.length) {
        elements.push(["path", { class: "divide", d: `M${Draw.round(left - GAP / 2)},${Draw.round(top)}v${Draw.round(Math.max(...panels.map((p) => p.height)))}` }]);
      }
    });
    const height = top + Math.max(...panels.map((each) => each.height)) + MARGIN;
    return ["svg", { xmlns: "http://www.w3.org/2000/svg", width: Draw.round(width), height: Draw.round(height),
      viewBox: `0 0 ${Draw.round(width)} ${Draw.round(height)}`, class: "tieops" },
      ["rect", { class: "paper", width: "100%", height: "100%" }], ...elements];
  }

  return { draw };
})();
