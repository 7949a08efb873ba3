// What is visible of a picture while some groups are unfolded: boxes with their texts and sizes, what
// flows between them, and the shared parameters with a link to each reader.
// Pure: no page, no DOM. Python runs the same code for SVG and PNG.
"use strict";

const Visible = (() => {
  const MAX_ROWS = 9; // of one box; more are counted
  const MAX_LINKS = 60; // drawn at once; the ties that save most come first, a selected one before
  const MAX_CHIPS = 8;
  const BOLD = 1.12; // how much wider bold letters are
  const BUNDLE = 3; // parameters with the same readers are drawn as one box from this number on

  // Widths of DejaVu Sans, the widest of the usual fonts, so that no other one clips.
  const NARROW = "ijlI.,:;'|!() []{}tfr/\\-`", WIDE = "mwMW@%+=<>…→—×";
  const glyph = (c) =>
    c > "\u2e7f" ? 1.02 : NARROW.includes(c) ? 0.41 : WIDE.includes(c) ? 0.98
      : c >= "A" && c <= "Z" ? 0.75 : 0.65;

  function measure(text, size) {
    let width = 0;
    for (const c of text) width += glyph(c);
    return width * size;
  }

  // Names differ at their ends, texts at their beginnings.
  function elide(text, room, size, keepEnd = true) {
    if (measure(text, size) <= room) return text;
    const letters = Array.from(text.length > 400 ? (keepEnd ? text.slice(-400) : text.slice(0, 400)) : text);
    const dots = glyph("…") * size;
    let used = dots, kept = 0;
    while (kept < letters.length) {
      used += glyph(letters[keepEnd ? letters.length - 1 - kept : kept]) * size;
      if (used > room) break;
      kept++;
    }
    if (!keepEnd) return letters.slice(0, kept).join("") + "…";
    const end = letters.slice(letters.length - kept).join("");
    const dot = end.indexOf(".");
    return "…" + (dot > 0 && dot < kept * 0.5 ? end.slice(dot + 1) : end);
  }

  const shown = (name) => (name === "" ? "(no name)" : name);

  function letter(mark) {
    let text = "";
    for (let rest = mark; rest >= 0; rest = Math.floor(rest / 26) - 1) {
      text = String.fromCharCode(65 + (rest % 26)) + text;
    }
    return text;
  }

  // The unit that stands for each box: itself, or the outermost folded group around it.
  function standIns(data, open) {
    const closed = data.groups.map(() => -1);
    data.groups.forEach((group, i) => {
      const outer = group.group < 0 ? -1 : closed[group.group];
      closed[i] = outer >= 0 ? outer : open.has(i) ? -1 : i;
    });
    return data.boxes.map((box, i) => {
      const group = box.group < 0 ? -1 : closed[box.group];
      return group >= 0 ? `g${group}` : `b${i}`;
    });
  }

  const isSizes = (what) => /^i64\[[^,]*\]$/.test(what);

  // Data that flows between units. Edges that carry only sizes would hide the others.
  function flowsOf(data, units) {
    const flows = new Map();
    for (const edge of data.edges) {
      const start = units[edge.start], end = units[edge.end];
      if (start === end) continue;
      const key = `${start} ${end}`;
      const sizes = isSizes(edge.what);
      const flow = flows.get(key);
      if (!flow) flows.set(key, { start, end, what: edge.what, sizes });
      else if (flow.sizes && !sizes) Object.assign(flow, { what: edge.what, sizes });
    }
    const all = [...flows.values()];
    const fed = new Set(all.filter((f) => !f.sizes).map((f) => f.end));
    const kept = all.filter((f) => !f.sizes || !fed.has(f.end));
    const used = new Set(kept.flatMap((f) => [f.start, f.end]));
    for (const flow of all) {
      if (!used.has(flow.start)) {
        kept.push(flow);
        used.add(flow.start);
      }
    }
    return kept;
  }

  // Shared parameters as boxes of their own, each with a link to every unit that reads it.
  function storesOf(data, units, chosen) {
    const bundles = new Map();
    const inside = new Map(); // unit -> parameters whose readers it holds all
    data.parameters.forEach((parameter, number) => {
      const outputs = parameter.uses.some((use) => data.boxes[use.box].form === "output");
      if (parameter.mark < 0 && !outputs) return;
      const readers = new Map();
      for (const use of parameter.uses) {
        const unit = units[use.box];
        const views = readers.get(unit) ?? { views: new Set(), count: 0 };
        views.views.add(use.view || "as stored");
        views.count++;
        readers.set(unit, views);
      }
      const [first] = readers.keys();
      if (readers.size === 1 && first.startsWith("g")) {
        inside.set(first, [...(inside.get(first) ?? []), number]);
        return;
      }
      if (readers.size === 0) return;
      const links = [...readers].map(([unit, { views, count }]) => ({ unit, label: viewLabel(unit, [...views], count) }));
      const key = JSON.stringify([...links.map((l) => [l.unit, l.label]).sort(), parameter.status]);
      bundles.set(key, [...(bundles.get(key) ?? []), { number, links }]);
    });
    let stores = [];
    for (const same of bundles.values()) {
      const groups = same.length >= BUNDLE ? [same] : same.map((each) => [each]);
      for (const group of groups) {
        group.sort((a, b) => data.parameters[a.number].mark - data.parameters[b.number].mark);
        stores.push({ parameters: group.map((each) => each.number), links: group[0].links });
      }
    }
    const saved = (store) => store.parameters.reduce((sum, p) => sum + data.parameters[p].saved, 0);
    const first = (store) => (store.parameters.includes(chosen) ? 1 : 0);
    stores.sort((a, b) => first(b) - first(a) || saved(b) - saved(a) || a.parameters[0] - b.parameters[0]);
    let room = MAX_LINKS;
    stores = stores.filter((store, i) => i === 0 || (room - store.links.length >= 0 && ((room -= store.links.length), true)));
    for (const store of stores) {
      store.key = `p${store.parameters[0]}`;
      store.nbytes = store.parameters.reduce((sum, p) => sum + data.parameters[p].nbytes, 0);
    }
    return { stores, inside };
  }

  function viewLabel(unit, views, count) {
    const [first] = views;
    const what = views.length > 2 ? `in ${count} parts` : views.join(", ");
    return unit.startsWith("g") && count > 1 ? `${views.length > 2 ? "" : `${first}, `}${count} reads` : what;
  }

  // A name without the part that the frame around it tells.
  function within(data, name, group) {
    for (let at = group; at >= 0; at = data.groups[at].group) {
      const prefix = data.groups[at].title.replace(/ call \d+$/, "");
      if (prefix && name.startsWith(prefix) && /^[./]/.test(name.slice(prefix.length))) {
        return name.slice(prefix.length + 1);
      }
    }
    return name;
  }

  function boxUnit(data, i) {
    const box = data.boxes[i];
    const plain = box.form === "layer" && box.rows.length === 0;
    const title = elide(shown(plain ? box.kind : within(data, box.name, box.group)), 270, 13);
    const side = plain ? "" : elide(box.kind, 190, 11);
    const rows = box.rows.slice(0, MAX_ROWS).map((row) => {
      const statuses = new Set(row.parameters.map((p) => data.parameters[p].status).filter(Boolean));
      const note = statuses.size && !box.status.match(/new|gone/) ? `, ${[...statuses].join(", ")}` : "";
      return { text: `${elide(row.role, 170, 11)} ${elide(row.what, 170, 11)}${note}`, size: row.size, parameters: row.parameters };
    });
    if (box.rows.length > MAX_ROWS) {
      rows.push({ text: `… and ${box.rows.length - MAX_ROWS} more`, size: "", parameters: [] });
    }
    const tag = box.status ? measure(box.status, 10) + 20 : 0;
    const head = measure(title, 13) * BOLD + (side ? 18 + measure(side, 11) : 0);
    const body = Math.max(0, ...rows.map((row) => 22 + measure(row.text, 11) + 20 + measure(row.size, 11)));
    return {
      key: `b${i}`, box: i, form: plain ? "operator" : box.form, status: box.status, title, side, rows, tag,
      parent: box.group, width: Math.max(56, head, body) + 24, height: 30 + rows.length * 19 + (rows.length ? 6 : 0),
    };
  }

  function groupUnit(data, i, inside) {
    const group = data.groups[i];
    const size = group.form === "operators" ? 11 : 13;
    const title = elide(shown(within(data, group.title, group.group)), 300, size, size === 13);
    const side = group.times ? `×${group.times}` : "";
    const notes = group.notes.map((note) => elide(note, 330, 11, false));
    const parameters = (inside ?? []).sort((a, b) => data.parameters[a].mark - data.parameters[b].mark);
    const chips = parameters.slice(0, MAX_CHIPS);
    const more = parameters.length > MAX_CHIPS ? `+${parameters.length - MAX_CHIPS} shared inside` : "shared inside";
    const widths = [measure(title, size) * BOLD + (side ? 26 + measure(side, 15) : 0) + 26, ...notes.map((n) => measure(n, 11))];
    if (chips.length) widths.push(chips.length * 22 + measure(more, 11) + 8);
    return {
      key: `g${i}`, group: i, form: group.form, status: group.status, title, side, notes, chips, more,
      inside: parameters, rows: [], tag: group.status ? measure(group.status, 10) + 20 : 0, parent: group.group,
      width: Math.max(...widths) + 24, height: 30 + notes.length * 17 + (chips.length ? 22 : 0) + (notes.length ? 6 : 0),
    };
  }

  function storeUnit(data, store) {
    const parameters = store.parameters.map((p) => data.parameters[p]);
    const [first] = parameters;
    const single = parameters.length === 1;
    const reads = first.uses.length;
    const names = first.names.map((name) => elide(shown(name), 210, 13));
    const title = single ? names.slice(0, 2).join(" = ") + (names.length > 2 ? ` = … (${names.length} names)` : "")
      : `${parameters.length} parameters`;
    const size = single ? `${first.what}, ${first.size}` : bytes(store.nbytes);
    const times = reads === 1 ? "read once" : `read ${reads} times`;
    const note = `${elide(size, 230, 11, false)}, stored once, ${single ? times : `each ${times}`}`;
    const chips = store.parameters.slice(0, MAX_CHIPS);
    const more = store.parameters.length > MAX_CHIPS ? `+${store.parameters.length - MAX_CHIPS}` : "";
    const line = chips.length * 22 + measure(title + " " + more, 13) * BOLD;
    return {
      key: store.key, store, form: "store", status: first.status, title, note, chips, more, rows: [], parent: -1,
      tag: first.status ? measure(first.status, 10) + 20 : 0,
      width: Math.max(line, measure(note, 11)) + 30, height: 48,
    };
  }

  function bytes(count) {
    for (const [unit, size] of [["TB", 1e12], ["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
      const value = count / size;
      if (value >= 1) return `${value.toFixed(value >= 100 ? 0 : value >= 10 ? 1 : 2)} ${unit}`;
    }
    return `${count} B`;
  }

  // The frames around a unit, innermost first.
  function around(data, group) {
    const chain = [];
    for (let at = group; at >= 0; at = data.groups[at].group) chain.push(at);
    return chain;
  }

  function frameUnit(data, group) {
    const { title, times, group: outer } = data.groups[group];
    const text = elide(shown(within(data, title, outer)), 320, 12) + (times ? `  ×${times}` : "");
    return { key: `f${group}`, frame: group, text, titleWidth: measure(text, 12) * BOLD + 34, parent: outer };
  }

  // All that is on the screen.
  function visible(data, open, chosen = -1) {
    const keys = standIns(data, open);
    const { stores, inside } = storesOf(data, keys, chosen);
    const units = new Map();
    for (const key of keys) {
      if (units.has(key)) continue;
      const number = Number(key.slice(1));
      units.set(key, key[0] === "g" ? groupUnit(data, number, inside.get(key)) : boxUnit(data, number));
    }
    for (const store of stores) {
      const unit = storeUnit(data, store);
      const chains = store.links.map((link) => around(data, units.get(link.unit).parent));
      unit.parent = chains[0].find((group) => chains.every((chain) => chain.includes(group))) ?? -1;
      units.set(unit.key, unit);
    }
    const frames = new Map();
    for (const unit of units.values()) {
      for (const group of around(data, unit.parent)) {
        if (!frames.has(group)) frames.set(group, frameUnit(data, group));
      }
    }
    return { units, frames, flows: flowsOf(data, keys), stores };
  }

  return { visible, around, standIns, measure, elide, letter, shown, bytes, BOLD };
})();
