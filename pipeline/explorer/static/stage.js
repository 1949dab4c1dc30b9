// The picture that is asked: a click, or the arrow keys and Enter, choose a place in its own pixels.

const element = (id) => document.getElementById(id);

export class Stage {
  constructor(chosen) {
    this.button = element("stage");
    this.image = element("picture");
    this.chosen = chosen;
    this.size = null;
    this.step = 1;
    this.button.addEventListener("click", (event) => this.#click(event));
    this.button.addEventListener("keydown", (event) => this.#key(event));
    this.button.addEventListener("blur", () => (element("ring").hidden = true));
  }

  show(picture, source, cells) {
    this.size = picture;
    this.step = Math.max(picture.width, picture.height) / cells;
    this.cursor = null;
    this.image.alt = picture.title;
    this.image.width = picture.width;
    this.image.height = picture.height;
    this.button.style.setProperty("--ratio", picture.width / picture.height);
    this.image.src = source;
    this.button.disabled = false;
    this.mark(null);
    this.cell(null);
    return this.image.decode().catch(() => {});
  }

  mark(at) {
    element("mark").hidden = !at;
    if (at) this.#put(element("mark"), at);
    if (at) this.cursor = at;
  }

  // The part of the picture that a location stands for: left, top, right, bottom in its pixels.
  cell(box) {
    const cell = element("cell");
    cell.hidden = !box;
    if (!box) return;
    const { width, height } = this.size;
    this.#put(cell, box);
    cell.style.width = `${(100 * (box[2] - box[0])) / width}%`;
    cell.style.height = `${(100 * (box[3] - box[1])) / height}%`;
  }

  #put(what, [x, y]) {
    what.style.left = `${(100 * x) / this.size.width}%`;
    what.style.top = `${(100 * y) / this.size.height}%`;
  }

  #click(event) {
    if (event.detail === 0) {  // by a key
      this.chosen(this.cursor ?? this.#within(this.size.width / 2, this.size.height / 2));
      return;
    }
    const frame = this.image.getBoundingClientRect();
    const { width, height } = this.size;
    const x = ((event.clientX - frame.left) / frame.width) * width;
    const y = ((event.clientY - frame.top) / frame.height) * height;
    this.chosen(this.#within(x, y));
  }

  #key(event) {
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const way = ways[event.key];
    if (!way) return;
    event.preventDefault();
    const far = this.step * (event.shiftKey ? 4 : 1);
    const [x, y] = this.cursor ?? [this.size.width / 2, this.size.height / 2];
    this.cursor = this.#within(x + way[0] * far, y + way[1] * far);
    element("ring").hidden = false;
    this.#put(element("ring"), this.cursor);
  }

  #within(x, y) {
    const inside = (value, most) => Math.round(Math.min(Math.max(value, 0), most - 1));
    return [inside(x, this.size.width), inside(y, this.size.height)];
  }
}

// A picture dropped anywhere on the page, pasted, or opened by the button.
export function takeFiles(taken) {
  element("file").addEventListener("change", (event) => {
    const [file] = event.target.files;
    event.target.value = "";
    if (file) taken(file);
  });
  const box = element("drop");
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    box.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) box.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    box.classList.remove("over");
    const [file] = event.dataTransfer.files;
    if (file) taken(file);
  });
  document.addEventListener("paste", (event) => {
    const [file] = event.clipboardData.files;
    if (file) taken(file);
  });
}
