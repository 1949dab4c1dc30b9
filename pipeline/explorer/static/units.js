// The gallery of units.

import * as api from "./api.js";
import { make } from "./words.js";

const element = (id) => document.getElementById(id);

export class Gallery {
  constructor(about, complain) {
    this.page = about.page;
    this.from = 0;
    this.word = "";
    this.complain = complain;
    element("find").addEventListener("submit", (event) => {
      event.preventDefault();
      this.word = element("word").value;
      this.show(0);
    });
    element("units-back").addEventListener("click", () => this.show(this.from - this.page));
    element("units-on").addEventListener("click", () => this.show(this.from + this.page));
  }

  async show(from = this.from) {
    try {
      const found = await api.units(Math.max(from, 0), this.word);
      this.from = found.from;
      element("units").replaceChildren(...found.units.map(shown));
      const last = Math.min(this.from + this.page, found.found);
      element("units-count").textContent = found.found
        ? `${this.from + 1} to ${last} of ${found.found.toLocaleString("en")}. Described as \`devil-pipe evaluate\` wrote it, from all layers; "blind" is the same with another unit's features.`
        : "No unit of that name or description.";
      element("units-back").disabled = this.from === 0;
      element("units-on").disabled = last >= found.found;
    } catch (error) {
      this.complain(error);
    }
  }
}

const shown = (unit) => {
  const strip = make("img", { src: api.exemplars(unit.key), loading: "lazy", alt: `${unit.exemplars} exemplars`, height: 112 });
  const line = (label, text) => make("div", {}, make("dt", {}, label), make("dd", {}, text));
  const facts = make("dl", {}, line("people", unit.annotations.join(" · ")), line("blind", unit.null));
  return make("li", { id: `unit-${unit.key}` }, make("p", { class: "said-unit" }, unit.text), make("div", { class: "strip" }, strip), make("code", {}, unit.key), facts);
};
