// What is shown, as JSON and as a picture, made here and saved by the browser.

import { layerName, nats } from "./words.js";

function save(content, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(content), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

export function asJson(shown) {
  const text = JSON.stringify(shown, null, 2);
  save(new Blob([text], { type: "application/json" }), "devil-pipe.json");
}

const INK = "#1d1c1a", PALE = "#77736b", OWN = "#0b6b74", MARK = "#e0218a";
const font = (size, weight = "") => `${weight} ${size}px system-ui, "Noto Sans", "Liberation Sans", sans-serif`.trim();

class Sheet {
  constructor(width) {
    this.width = width;
    this.steps = [];
    this.y = 32;
    this.measure = document.createElement("canvas").getContext("2d");
  }

  text(words, { x = 32, size = 15, weight = "", colour = INK, width = this.width - x - 32, gap = 6 } = {}) {
    this.measure.font = font(size, weight);
    let line = "";
    const lines = [];
    for (const word of words.split(/\s+/)) {
      if (line && this.measure.measureText(`${line} ${word}`).width > width) {
        lines.push(line);
        line = word;
      } else {
        line = line ? `${line} ${word}` : word;
      }
    }
    for (const one of [...lines, line]) {
      const y = this.y + size;
      this.steps.push((pen) => Object.assign(pen, { font: font(size, weight), fillStyle: colour }) && pen.fillText(one, x, y));
      this.y += size * 1.35;
    }
    this.y += gap;
  }

  drawn(source, x, y, width, height) {
    this.steps.push((pen) => pen.drawImage(source, x, y, width, height));
  }

  finish() {
    const canvas = Object.assign(document.createElement("canvas"), { width: this.width, height: Math.ceil(this.y + 24) });
    const pen = canvas.getContext("2d");
    Object.assign(pen, { fillStyle: "#ffffff" }).fillRect(0, 0, canvas.width, canvas.height);
    for (const step of this.steps) step(pen);
    return canvas;
  }
}

function pictured(sheet, shown, image) {
  const scale = Math.min(440 / image.naturalWidth, 440 / image.naturalHeight);
  const [width, height] = [image.naturalWidth * scale, image.naturalHeight * scale];
  const top = sheet.y;
  sheet.drawn(image, 32, top, width, height);
  if (shown.at) {
    const x = 32 + (shown.at[0] / shown.picture.width) * width;
    const y = top + (shown.at[1] / shown.picture.height) * height;
    for (const [thick, colour] of [[5, "#ffffff"], [2.5, MARK]]) {
      sheet.steps.push((pen) => {
        pen.beginPath();
        pen.arc(x, y, 9, 0, 2 * Math.PI);
        Object.assign(pen, { lineWidth: thick, strokeStyle: colour }).stroke();
      });
    }
  }
  return [32 + width + 32, top + height];
}

function worded(sheet, x, place, rows) {
  sheet.text(place, { x, size: 13, weight: "600", colour: OWN });
  for (const row of rows) {
    const weak = row.weak ? ", weak" : "";
    const margin = row.margin ? ` (${nats(row.margin.nats)} nats${weak})` : "";
    const side = row.side ? `${row.side}, ` : "";
    sheet.text(`${side}${layerName(row.layer)}: ${row.text}${margin}`, { x, colour: row.weak ? PALE : INK });
  }
  sheet.y += 10;
}

export async function asPng(shown, image, grids) {
  const sheet = new Sheet(1120);
  sheet.text(shown.picture.title, { size: 20, weight: "600", gap: 12 });
  const [x, bottom] = pictured(sheet, shown, image);
  for (const part of shown.descriptions) worded(sheet, x, part.place, part.rows);
  sheet.y = Math.max(sheet.y, bottom) + 24;
  for (const grid of grids) {
    sheet.text(grid.title, { size: 13, weight: "600", colour: OWN });
    const size = Math.min(220, (sheet.width - 64 - 90) / grid.queries.length - 12);
    const begun = sheet.y;
    grid.queries.forEach((query, number) => {
      sheet.y = begun;
      sheet.text(query, { x: 122 + number * (size + 12), width: size, weight: "600" });
    });
    for (const { layer, canvases } of grid.rows) {
      const [first] = canvases;
      const height = first ? (size * first.height) / first.width : 0;
      const top = sheet.y;
      sheet.text(layerName(layer), { width: 84, size: 13, gap: 0 });
      canvases.forEach((canvas, number) => sheet.drawn(canvas, 122 + number * (size + 12), top, size, height));
      sheet.y = top + height + 12;
    }
    sheet.text(`Colours: −${shown.scale} to +${shown.scale} nats above the language model's own guess, for all maps.`, {
      size: 13, colour: PALE, gap: 16,
    });
  }
  for (const side of shown.translators) {
    const about = `${side.name}: ${side.backbone} explained through ${side.language_model}. ${side.data_note}`;
    sheet.text(about, { size: 12, colour: PALE });
  }
  const content = await new Promise((done) => sheet.finish().toBlob(done, "image/png"));
  save(content, "devil-pipe.png");
}
