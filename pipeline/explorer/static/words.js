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
  for (const layer of rows) {
    const cells = answers.map((found) => said(found.get(layer), hover));
    if (cells.every((cell) => cell.className === "none")) continue;
    body.append(make("tr", {}, make("th", { scope: "row", class: layer ? "" : "all" }, layerName(layer)), ...cells));
  }
  return make("table", { class: "said" }, make("caption", {}, caption), ...head, body);
}

const columnHead = (side) => make("th", { scope: "col" }, side.name, make("small", {}, ` ${side.backbone}`));
