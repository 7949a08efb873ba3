// The page: makes elements of the drawing, folds and unfolds, searches, highlights.
// Names come from the model: they are only ever set as text.
"use strict";

(() => {
  const { pictures, headings, changes } = JSON.parse(document.getElementById("data").textContent);
  const MAX_FOUND = 40, LEAST_ZOOM = 0.1, READABLE = 0.6, MOST_ZOOM = 3;
  const by = (id) => document.getElementById(id);
  const state = { tie: null, zoom: 0 };
  const panes = pictures.map((data, i) => ({ data, heading: headings[i], open: new Set(data.opened) }));

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  function drawing(tree) {
    if (typeof tree === "string") return document.createTextNode(tree);
    const [tag, attributes, ...children] = tree;
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children.map(drawing));
    return made;
  }

  function chipIcon(data, number) {
    return drawing(["svg", { width: 17, height: 16, "aria-hidden": "true" }, Draw.chip(data, number, 0, 8)]);
  }

  // Draw one pane anew: the layout of what is unfolded now.
  function redraw(pane) {
    const { data } = pane;
    pane.view = Layout.arrange(data, pane.open, chosen(data));
    const { width, height } = pane.view;
    pane.svg = drawing(["svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": pane.heading || "graph" },
      Draw.graphElement(data, pane.view)]);
    for (const unit of pane.svg.querySelectorAll(".unit")) {
      const label = unitLabel(pane, unit.dataset.key);
      unit.setAttribute("tabindex", "0");
      unit.setAttribute("role", "button");
      unit.setAttribute("aria-label", label);
      if (/^[gf]/.test(unit.dataset.key)) unit.setAttribute("aria-expanded", String(unit.dataset.key[0] === "f"));
    }
    pane.scroll.replaceChildren(pane.svg);
    scale(pane);
    light(pane);
  }

  function scale(pane) {
    const { width, height } = pane.view;
    // As large as fits, but readable; what is unfolded later keeps the size.
    state.zoom ||= Math.min(1, Math.max(READABLE, (pane.scroll.clientWidth - 8) / width));
    pane.svg.setAttribute("width", Math.round(width * state.zoom));
    pane.svg.setAttribute("height", Math.round(height * state.zoom));
  }

  function chosen(data) {
    return state.tie === null ? -1 : data.parameters.findIndex((parameter) => parameter.mark === state.tie);
  }

  // Bring out what was searched for, or one tie with its readers.
  function light(pane) {
    const { data, svg } = pane;
    const units = Visible.standIns(data, pane.open);
    const query = by("search").value.trim().toLowerCase();
    const lit = new Set();
    const tie = chosen(data);
    if (tie >= 0) data.parameters[tie].uses.forEach((use) => lit.add(units[use.box]));
    else if (query) matches(data, query).forEach((match) => match.boxes.forEach((box) => lit.add(units[box])));
    const active = state.tie !== null || query !== "";
    svg.classList.toggle("dimmed", active);
    for (const unit of svg.querySelectorAll(".unit")) {
      const own = unit.dataset.parameter !== undefined && storeHas(pane, unit.dataset.key, tie, query);
      unit.classList.toggle("lit", lit.has(unit.dataset.key) || own);
    }
    for (const link of svg.querySelectorAll(".link")) {
      link.classList.toggle("lit", link.dataset.parameters.split(" ").includes(String(tie)));
    }
  }

  function storeHas(pane, key, tie, query) {
    const store = pane.view.stores.find((each) => each.key === key);
    if (tie >= 0) return store.parameters.includes(tie);
    return query !== "" && store.parameters.some((p) => pane.data.parameters[p].names.some((name) => name.toLowerCase().includes(query)));
  }

  function matches(data, query) {
    const found = [];
    data.boxes.forEach((box, i) => {
      if (`${box.name}\n${box.kind}`.toLowerCase().includes(query)) found.push({ text: box.name, side: box.kind, boxes: [i] });
    });
    data.parameters.forEach((parameter, number) => {
      const name = parameter.names.find((each) => each.toLowerCase().includes(query));
      if (name !== undefined) found.push({ text: name, side: parameter.what, boxes: parameter.uses.map((use) => use.box), number });
    });
    return found;
  }

  function clearSearch() {
    by("search").value = "";
    by("found").hidden = true;
    by("found").replaceChildren();
  }

  function search() {
    const query = by("search").value.trim().toLowerCase();
    state.tie = null;
    markTies();
    panes.forEach(light);
    const list = by("found");
    list.hidden = query === "";
    if (!query) return list.replaceChildren();
    const found = panes.flatMap((pane) => matches(pane.data, query).map((match) => ({ ...match, pane })));
    const shown = found.slice(0, MAX_FOUND).map(({ text, side, boxes, pane }) => {
      const button = element("button", { type: "button" }, Visible.shown(text), element("span", { class: "note" }, side));
      button.addEventListener("click", () => reveal(pane, boxes[0]));
      return element("li", {}, button);
    });
    if (found.length === 0) shown.push(element("li", { class: "note" }, "nothing found"));
    if (found.length > MAX_FOUND) shown.push(element("li", { class: "note" }, `… and ${found.length - MAX_FOUND} more`));
    list.replaceChildren(...shown);
  }

  // Unfold what is around a box, and bring it into view.
  function reveal(pane, box) {
    if (box === undefined) return;
    for (let at = pane.data.boxes[box].group; at >= 0; at = pane.data.groups[at].group) pane.open.add(at);
    redraw(pane);
    focus(pane, `b${box}`);
    details(pane, `b${box}`);
  }

  function focus(pane, key) {
    const unit = pane.svg.querySelector(`[data-key="${key}"]`);
    if (!unit) return;
    unit.focus({ preventScroll: true });
    // Firefox scrolls to the picture and not to a group in it; to a shape it goes.
    unit.querySelector(".hit, .body, .stored").scrollIntoView({ block: "center", inline: "center" });
  }

  function act(pane, key) {
    const number = Number(key.slice(1));
    if (key[0] === "g") {
      pane.open.add(number);
      redraw(pane);
      focus(pane, `f${number}`);
    } else if (key[0] === "f") {
      pane.open.delete(number);
      redraw(pane);
      focus(pane, Visible.standIns(pane.data, pane.open).find((unit) => unit === `g${number}`) ?? "");
    } else if (key[0] === "p") {
      pick(pane.data.parameters[number].mark);
      focus(pane, key);
    }
    details(pane, key);
  }

  function unitLabel(pane, key) {
    const number = Number(key.slice(1));
    const { data } = pane;
    if (key[0] === "b") return `${data.boxes[number].name} ${data.boxes[number].kind}`;
    if (key[0] === "p") return `parameter ${data.parameters[number].names.join(" = ")}`;
    return `${key[0] === "g" ? "unfold" : "fold"} ${data.groups[number].title}`;
  }

  function line(term, text) {
    return [element("dt", {}, term), element("dd", {}, text)];
  }

  function details(pane, key) {
    const { data } = pane;
    const number = Number(key.slice(1));
    const list = element("dl");
    let head = "";
    if (key[0] === "b") {
      const box = data.boxes[number];
      head = box.name;
      list.append(...line("kind", box.kind));
      box.rows.forEach((row) => {
        const names = row.parameters.map((p) => data.parameters[p].names[0]).join(", ");
        list.append(...line(row.role, `${row.what}, ${row.size}, stored as ${Visible.shown(names)}${row.view ? ` (${row.view})` : ""}`));
      });
      if (box.takes.length) list.append(...line("takes", box.takes.join(", ")));
      if (box.gives.length) list.append(...line("gives", box.gives.join(", ")));
    } else if (key[0] === "p") {
      const store = pane.view.stores.find((each) => each.key === key) ?? { parameters: [number] };
      head = store.parameters.length > 1 ? `${store.parameters.length} parameters` : "";
      store.parameters.slice(0, 20).forEach((p) => list.append(...parameterLines(data, p)));
    } else {
      const group = data.groups[number];
      head = group.title;
      if (group.times) list.append(...line("repeated", `${group.times} times`));
      group.notes.forEach((note) => list.append(...line("holds", note)));
    }
    by("details").replaceChildren(element("h3", {}, head), list);
  }

  function parameterLines(data, number) {
    const parameter = data.parameters[number];
    return [
      ...line("names", parameter.names.map(Visible.shown).join(" = ")),
      ...line("stored", `${parameter.what}, ${parameter.size}`),
      ...line("evidence", parameter.evidence),
      ...line("read by", parameter.uses.slice(0, 30).map((use) => {
        const box = data.boxes[use.box];
        return `${box.name}.${use.role}${use.view ? ` (${use.view})` : ""}`;
      }).join(", ") || "nobody"),
    ];
  }

  function pick(mark) {
    state.tie = state.tie === mark || mark < 0 ? null : mark;
    clearSearch();
    markTies();
    panes.forEach(redraw);
  }

  function markTies() {
    for (const button of by("ties").querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.mark) === state.tie));
    }
  }

  function listTies() {
    const seen = new Set();
    for (const { data } of panes) {
      data.parameters.map((parameter, number) => ({ parameter, number })).filter(({ parameter }) => parameter.mark >= 0)
        .sort((a, b) => a.parameter.mark - b.parameter.mark).forEach(({ parameter, number }) => {
          if (seen.has(parameter.mark)) return;
          seen.add(parameter.mark);
          const save = parameter.saved ? `, saves ${Visible.bytes(parameter.saved)}` : "";
          const button = element("button", { type: "button", "data-mark": parameter.mark, "aria-pressed": "false" }, chipIcon(data, number),
            element("span", { class: "name" }, parameter.names.map(Visible.shown).join(" = ")),
            element("span", { class: "note" }, `${parameter.what}, ${parameter.size}, ${parameter.uses.length} reads${save}`));
          button.addEventListener("click", () => {
            pick(parameter.mark);
            by("details").replaceChildren(element("dl", {}, ...parameterLines(data, number)));
          });
          by("ties").append(element("li", {}, button));
        });
      data.duplicates.forEach((text) => by("ties").append(element("li", { class: "note" }, `stored twice: ${text}`)));
    }
    by("tiestitle").textContent = panes.length > 1 ? "Shared before or after" : tieCount(panes[0].data);
  }

  function tieCount(data) {
    const count = data.parameters.filter((parameter) => parameter.tied).length;
    return count === 0 ? "no ties" : count === 1 ? "1 tie" : `${count} ties`;
  }

  function build() {
    const last = panes[panes.length - 1].data;
    by("title").textContent = last.title || "What is shared";
    by("lead").textContent = panes.map(({ data, heading }) => `${heading ? `${heading}: ` : ""}${tieCount(data)}, ${data.ledger}`).join("; ");
    by("changes").append(...changes.map((change) => element("li", {}, change)));
    for (const pane of panes) {
      pane.scroll = element("div", { class: "scroll" });
      const section = element("section", {});
      if (pane.heading) section.append(element("h2", {}, `${pane.heading}: ${tieCount(pane.data)}`));
      section.append(pane.scroll);
      by("panes").append(section);
      for (const kind of ["click", "keydown", "pointerover", "focusin"]) pane.scroll.addEventListener(kind, (event) => onUnit(pane, event));
      pane.scroll.addEventListener("wheel", (event) => {
        if (!event.ctrlKey) return;
        event.preventDefault();
        zoomBy(event.deltaY < 0 ? 1.15 : 1 / 1.15);
      }, { passive: false });
    }
    listTies();
    panes.forEach(redraw);
  }

  function onUnit(pane, event) {
    const unit = event.target.closest?.(".unit");
    if (event.type === "click" && !unit) {
      by("details").replaceChildren();
      if (state.tie !== null) pick(-1);
    }
    if (!unit) return;
    const { key } = unit.dataset;
    if (event.type === "click" || (event.type === "keydown" && (event.key === "Enter" || event.key === " "))) {
      event.preventDefault();
      act(pane, key);
    } else if (event.type === "focusin" || (event.type === "pointerover" && event.pointerType === "mouse")) {
      details(pane, key);
    } else if (event.type === "keydown" && event.key.startsWith("Arrow")) {
      event.preventDefault();
      neighbour(pane, key, event.key)?.focus();
    }
  }

  // The nearest box in the direction of an arrow key.
  function neighbour(pane, key, arrow) {
    const middle = (unit) => {
      const { left, top, width, height } = unit.getBoundingClientRect();
      return { x: left + width / 2, y: top + height / 2, unit };
    };
    const all = [...pane.svg.querySelectorAll(".unit")].map(middle);
    const here = all.find(({ unit }) => unit.dataset.key === key);
    const upright = arrow === "ArrowUp" || arrow === "ArrowDown";
    const ahead = arrow === "ArrowDown" || arrow === "ArrowRight" ? 1 : -1;
    const cost = (there) => {
      const dx = there.x - here.x, dy = there.y - here.y;
      const along = (upright ? dy : dx) * ahead;
      return along > 4 ? along + 2 * Math.abs(upright ? dx : dy) : Infinity;
    };
    return all.map((there) => [cost(there), there.unit]).filter(([value]) => value < Infinity).sort((a, b) => a[0] - b[0])[0]?.[1];
  }

  function zoomBy(factor) {
    state.zoom = Math.min(MOST_ZOOM, Math.max(LEAST_ZOOM, state.zoom * factor));
    panes.forEach(scale);
  }

  function fit() {
    const fits = panes.map(({ scroll, view }) => Math.min((scroll.clientWidth - 8) / view.width, (scroll.clientHeight - 8) / view.height));
    state.zoom = Math.min(1, Math.max(LEAST_ZOOM, ...fits));
    panes.forEach(scale);
  }

  by("search").addEventListener("input", search);
  by("search").addEventListener("keydown", (event) => {
    if (event.key === "Enter") by("found").querySelector("button")?.click();
  });
  by("larger").addEventListener("click", () => zoomBy(1.25));
  by("smaller").addEventListener("click", () => zoomBy(0.8));
  by("fit").addEventListener("click", fit);
  by("foldall").addEventListener("click", () => {
    panes.forEach((pane) => (pane.open = new Set(pane.data.opened)));
    panes.forEach(redraw);
  });
  document.addEventListener("keydown", (event) => {
    if (event.target instanceof HTMLInputElement && event.key !== "Escape") return;
    if (event.key === "/") {
      event.preventDefault();
      by("search").focus();
    } else if (event.key === "Escape") {
      pick(-1);
    } else if (event.key === "+") zoomBy(1.25);
    else if (event.key === "-") zoomBy(0.8);
    else if (event.key === "0") fit();
  });
  build();
})();
