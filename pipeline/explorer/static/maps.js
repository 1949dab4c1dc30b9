// Heat maps: numbers from the server, coloured here over the greyed picture on one fixed scale.

import { layerName, make, nats } from "./words.js";

const WIDTH = 320;

// The picture in grey, once for all maps.
export function greyed(image) {
  const scale = Math.min(1, WIDTH / image.naturalWidth, WIDTH / image.naturalHeight);
  const canvas = make("canvas", {
    width: Math.max(1, Math.round(image.naturalWidth * scale)),
    height: Math.max(1, Math.round(image.naturalHeight * scale)),
  });
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  const pixels = pen.getImageData(0, 0, canvas.width, canvas.height);
  for (let at = 0; at < pixels.data.length; at += 4) {
    const [red, green, blue] = pixels.data.subarray(at, at + 3);
    pixels.data.fill(0.299 * red + 0.587 * green + 0.114 * blue, at, at + 3);
  }
  return pixels;
}

// Bilinear between the centres of locations, and flat beyond the outermost.
export function sample(values, across, down) {
  const place = (share, count) => {
    const at = Math.min(Math.max(share * count - 0.5, 0), count - 1);
    const first = Math.min(Math.floor(at), Math.max(count - 2, 0));
    return [first, Math.min(first + 1, count - 1), at - first];
  };
  const [top, bottom, lower] = place(down, values.length);
  const [left, right, further] = place(across, values[0].length);
  const row = (line) => values[line][left] * (1 - further) + values[line][right] * further;
  return row(top) * (1 - lower) + row(bottom) * lower;
}

export function draw(canvas, grey, values, scale, colours) {
  const { width, height } = grey;
  canvas.width = width;
  canvas.height = height;
  const mixed = new ImageData(new Uint8ClampedArray(grey.data), width, height);
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      const value = Math.min(Math.max(sample(values, (x + 0.5) / width, (y + 0.5) / height) / scale, -1), 1);
      const colour = colours[Math.round(((value + 1) / 2) * (colours.length - 1))];
      const weight = 0.15 + 0.6 * Math.abs(value);
      const at = 4 * (y * width + x);
      for (let part = 0; part < 3; part += 1) {
        mixed.data[at + part] = (1 - weight) * mixed.data[at + part] + weight * colour[part];
      }
    }
  }
  canvas.getContext("2d").putImageData(mixed, 0, 0);
}

const drawn = new WeakMap();  // a map's figure, drawn once for each scale

function card(found, grey, look) {
  if (!found) return make("div", { class: "map" }, make("span", { class: "wait", ariaLabel: "computing" }));
  const known = drawn.get(found);
  if (known?.scale === look.scale) return known.figure;
  const figure = painted(found, grey, look);
  drawn.set(found, { scale: look.scale, figure });
  return figure;
}

function painted(found, grey, { scale, colours }) {
  const flat = found.values.flat();
  const most = Math.max(...flat);
  const line = `highest ${nats(most)} · prior ${nats(found.prior)}`;
  const canvas = make("canvas", { role: "img" });
  canvas.ariaLabel = `${found.query}, ${layerName(found.layer)}: ${line} nats`;
  canvas.dataset.highest = most;
  draw(canvas, grey, found.values, scale, colours);
  const note = make("figcaption", {}, line);
  canvas.addEventListener("pointermove", (event) => {
    const frame = canvas.getBoundingClientRect();
    const across = (event.clientX - frame.left) / frame.width;
    const here = sample(found.values, across, (event.clientY - frame.top) / frame.height);
    note.textContent = `here ${nats(here)} nats`;
  });
  canvas.addEventListener("pointerleave", () => (note.textContent = line));
  return make("figure", { class: "map" }, canvas, note);
}

// One grid for each side: a row for each layer, a column for each query. `answers`: layer → list of maps, null while asked.
export function grid(side, named, queries, answers, grey, look) {
  const head = make("tr", {}, make("td"), ...queries.map((query) => make("th", { scope: "col" }, query)));
  const body = make("tbody");
  for (const [layer, found] of answers) {
    const cells = queries.map((_, number) => make("td", {}, card(found?.[number], grey, look)));
    body.append(make("tr", {}, make("th", { scope: "row", class: layer ? "" : "all" }, layerName(layer)), ...cells));
  }
  const caption = named ? [make("caption", {}, side.name, make("small", {}, ` ${side.backbone}`))] : [];
  return make("table", { class: "grid" }, ...caption, make("thead", {}, head), body);
}

export function legend(bar, colours) {
  bar.width = colours.length;
  const pixels = new ImageData(colours.length, 1);
  colours.forEach((colour, at) => pixels.data.set([...colour, 255], 4 * at));
  bar.getContext("2d").putImageData(pixels, 0, 0);
}
