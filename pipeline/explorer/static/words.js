// Descriptions in rows: a layer each, a column for each translator.

export const make = (tag, given = {}, ...children) => {
  const { class: kind, ...rest } = given;
  const made = Object.assign(document.createElement(tag), rest);
  if (kind) made.className = kind;
  made.append(...children);
  return made;
};

export const layerName = (layer) => layer ?? "all layers";
export const nats = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(1)}`;

// Rows by the layers of all sides: those that both have share a row.
export function layerRows(sides) {
  const names = new Set(sides.flatMap((side) => side.layers.map((layer) => layer.name)));
  return [null, ...names];
}

// The rows of a table: for each side the layer that stands there. Sides without a common layer are paired from the
// deepest layer down, so that no column is half empty; their cells then name their layers themselves.
function pairs(rows, sides) {
  const own = sides.map((side) => rows.filter((row) => row === null || side.layers.some((layer) => layer.name === row)));
  const apart = sides.length > 1 && !own[0].some((layer) => layer !== null && own[1].includes(layer));
  if (!apart) return { apart, lines: rows.map((row) => own.map((layers) => (layers.includes(row) ? row : undefined))) };
  const deepest = own.map((layers) => [...layers.filter((layer) => layer === null), ...layers.filter((layer) => layer !== null).reverse()]);
  const longest = Math.max(...deepest.map((layers) => layers.length));
  return { apart, lines: Array.from({ length: longest }, (_, line) => deepest.map((layers) => layers[line])) };
}

function said(found, hover) {
  if (found === undefined) return make("td", { class: "none" });
  if (found === null) return make("td", { class: "waiting" }, make("span", { class: "wait", ariaLabel: "asking" }));
  const cell = make("td", { class: found.weak ? "weak" : "" }, make("span", { class: "text" }, found.text || "(nothing)"));
  if (found.margin) {
    const { nats: value, low, high, resamples } = found.margin;
    const title = `95 % of ${resamples} resamples: ${nats(low)} to ${nats(high)} nats`;
    const range = `${nats(value)} nats [${nats(low)}, ${nats(high)}]`;
    const line = make("span", { class: "margin", title }, range);
    if (found.agreement !== null) line.append(make("span", {}, ` · same words in ${Math.round(100 * found.agreement)} %`));
    if (found.weak) line.prepend(make("b", {}, "weak "));
    cell.append(line);
  } else if (found.pending) {
    cell.append(make("span", { class: "margin" }, "margin …"));
  }
  if (found.box) {
    cell.addEventListener("pointerenter", () => hover(found.box));
    cell.addEventListener("pointerleave", () => hover(null));
  }
  return cell;
}

// `answers`: for each side a Map from layer (null: all together) to a description; null while it is asked.
export function table(caption, rows, sides, answers, hover) {
  const head = sides.length > 1 ? [make("thead", {}, make("tr", {}, make("td"), ...sides.map(columnHead)))] : [];
  const body = make("tbody");
  const { apart, lines } = pairs(rows, sides);
  for (const line of lines) {
    const cells = line.map((layer, side) => said(layer === undefined ? undefined : answers[side].get(layer), hover));
    if (cells.every((cell) => cell.className === "none")) continue;
    if (apart) cells.forEach((cell, side) => line[side] === undefined || cell.prepend(make("small", { class: "layer" }, layerName(line[side]))));
    const layer = line.find((name) => name !== undefined);
    const name = apart ? [] : [make("th", { scope: "row", class: layer ? "" : "all" }, layerName(layer))];
    body.append(make("tr", {}, ...name, ...cells));
  }
  if (apart) head[0]?.rows[0].cells[0].remove();
  return make("table", { class: "said" }, make("caption", {}, caption), ...head, body);
}

const columnHead = (side) => make("th", { scope: "col" }, side.name, make("small", {}, ` ${side.backbone}`));
