// The page: what is looked at, what was answered, and what is still to be asked, one question at a time.

import * as address from "./address.js";
import * as api from "./api.js";
import * as keep from "./keep.js";
import { greyed, grid, legend } from "./maps.js";
import { Stage, takeFiles } from "./stage.js";
import { layerName, layerRows, make, table } from "./words.js";
import { Gallery } from "./units.js";

const element = (id) => document.getElementById(id);
const ALL = "all";  // how an address names all layers together

let shared;  // what the server says of itself
let gallery = null;
let picture = null;
let grey = null;
let state = { which: null, at: null, queries: [], layers: null, scale: null, view: "picture" };
let answers = null;
let asking = new AbortController();
let draw = 0;
const stage = new Stage((at) => look(at));

const fresh = () => shared.sides.map(() => new Map());
const scale = () => (shared.scales.includes(state.scale) ? state.scale : shared.scale);
const key = (layer) => layer ?? ALL;
const shows = (layer) => state.layers === null || state.layers.includes(key(layer));
const layersOf = (side) => [null, ...side.layers.map((layer) => layer.name)].filter(shows);

function complain(error) {
  if (error.name === "AbortError") return;
  element("notice").textContent = error.message;
  element("notice").hidden = false;
}

const calm = () => (element("notice").hidden = true);

// The next question that has no answer yet. Words first, then how far to trust those that were asked for last, then
// maps from the deepest layer on, then the rest.
function next() {
  const [first, ...others] = state.at ? ["here", "whole"] : ["whole"];
  for (const [part, margin] of [[first, false], ...others.map((other) => [other, false]), [first, true]]) {
    const job = nextWords(part, margin);
    if (job) return job;
  }
  return nextMap() ?? others.map((part) => nextWords(part, true)).find(Boolean) ?? null;
}

function nextWords(part, margin) {
  for (const [side, about] of shared.sides.entries()) {
    const due = (found) => !found || (margin && found.pending);
    const layers = layersOf(about).filter((layer) => due(answers[part][side].get(layer)));
    if (layers.length) return { kind: "describe", part, side, at: part === "here" ? state.at : null, layers, margin };
  }
  return null;
}

function nextMap() {
  for (const layer of [...layerRows(shared.sides).slice(1).reverse(), null].filter(shows)) {
    for (const [side, about] of shared.sides.entries()) {
      if (!layersOf(about).includes(layer)) continue;
      const known = answers.maps[side].get(layer) ?? {};
      const queries = state.queries.filter((query) => !(query in known));
      if (queries.length) return { kind: "maps", side, layer, queries };
    }
  }
  return null;
}

async function ask(job, signal) {
  const question = { side: job.side, ...state.which };
  if (job.kind === "maps") {
    const { maps } = await api.maps({ ...question, layer: job.layer, queries: job.queries }, signal);
    const known = answers.maps[job.side].get(job.layer) ?? {};
    answers.maps[job.side].set(job.layer, { ...known, ...Object.fromEntries(maps.map((one) => [one.query, one])) });
    return;
  }
  const asked = { ...question, layers: job.layers, at: job.at, margin: job.margin };
  const { descriptions } = await api.describe(asked, signal);
  for (const found of descriptions) answers[job.part][job.side].set(found.layer, { ...found, pending: !job.margin });
}

// Ask what is missing. A new wish drops the question under way; the server leaves out what nobody waits for.
async function pump() {
  asking.abort();
  asking = new AbortController();
  const { signal } = asking;
  render();
  try {
    for (let job = next(); job && picture; job = next()) {
      const what = job.kind === "maps" ? `computing maps, ${layerName(job.layer)}` : job.margin ? "weighing the words" : "reading";
      element("status").textContent = `${what} …`;
      await ask(job, signal);
      if (signal.aborted) return;
      render();
    }
    element("status").textContent = "";
  } catch (error) {
    if (signal.aborted) return;
    element("status").textContent = "";
    complain(error);
    render({ stopped: true });
  }
}

function render({ stopped = false } = {}) {
  if (!picture) return;
  const rows = layerRows(shared.sides).filter(shows);
  const waiting = (part) =>
    answers[part].map((found, side) => {
      const due = stopped ? [] : layersOf(shared.sides[side]).map((layer) => [layer, null]);
      return new Map([...due, ...[...found].filter(([layer]) => shows(layer))]);
    });
  const hover = (box) => stage.cell(box);
  const here = state.at ? [table(`At ${state.at.join(", ")}`, rows, shared.sides, waiting("here"), hover)] : [];
  element("descriptions").replaceChildren(...here, table("Whole picture", rows, shared.sides, waiting("whole"), hover));
  element("descriptions").className = shared.sides.length > 1 ? "wide" : "";
  element("hint").hidden = Boolean(state.at);
  element("margin-note").hidden = false;
  stage.mark(state.at);
  renderMaps();
  for (const id of ["copy", "save-json", "save-png", "whole"]) element(id).disabled = false;
  element("whole").disabled = !state.at;
}

function renderMaps() {
  const any = state.queries.length > 0;
  element("legend").hidden = element("maps-note").hidden = !any;
  const tables = any ? shared.sides.map((side, number) => grid(side, shared.sides.length > 1, state.queries, mapsOf(number), grey, { scale: scale(), colours: shared.colours })) : [];
  element("maps").replaceChildren(...tables);
}

// Layer → a map for each query, in the order of the page; null where it is still to come.
function mapsOf(side) {
  const layers = [...layersOf(shared.sides[side])].reverse();
  return layers.map((layer) => [layer, state.queries.map((query) => answers.maps[side].get(layer)?.[query] ?? null)]);
}

async function choose(which, { at = null } = {}) {
  try {
    const found = await api.picture(which);
    await open({ which, found, at });
  } catch (error) {
    complain(error);
  }
}

async function open({ which, found, at = null }) {
  calm();
  asking.abort();
  picture = found;
  state = { ...state, which, at };
  answers = { here: fresh(), whole: fresh(), maps: fresh() };
  address.write(state);
  element("title").textContent = picture.title;
  const finest = Math.max(...shared.sides.flatMap((side) => side.layers.map((layer) => Math.max(layer.height, layer.width))));
  await stage.show(picture, api.pixels(which), finest);
  grey = greyed(element("picture"));
  document.querySelectorAll("#samples button").forEach((one) => one.setAttribute("aria-pressed", one.value === which.name));
  element("ask").querySelector("button").disabled = false;
  await pump();
}

function look(at) {
  calm();
  state = { ...state, at };
  answers.here = fresh();
  address.write(state);
  pump();
}

function take(file) {
  const { bytes } = shared.limits;
  if (file.size > bytes) {
    complain(new Error(`${file.name} has ${(file.size / 1e6).toFixed(1)} MB; at most ${bytes / 1e6} MB are taken.`));
    return;
  }
  element("status").textContent = `taking ${file.name} …`;
  api.drop(file).then(
    (found) => open({ which: { kind: found.kind, name: found.name }, found: { ...found, title: file.name } }),
    (error) => {
      element("status").textContent = "";
      complain(new Error(`${file.name}: ${error.message}`));
    },
  );
}

const split = (text) => [...new Set(text.split(/[,\n]/).map((part) => part.trim()).filter(Boolean))];

function askWhere(event) {
  event.preventDefault();
  const queries = split(element("queries").value);
  const most = shared.limits.queries;
  calm();
  if (queries.length > most) complain(new Error(`At most ${most} queries at a time; the first ${most} are taken.`));
  state = { ...state, queries: queries.slice(0, most) };
  address.write(state);
  pump();
}

async function offer() {
  const found = await api.samples(draw);
  const groups = new Map(found.map((one) => [one.group, found.filter((other) => other.group === one.group)]));
  element("samples").replaceChildren(
    ...[...groups].map(([group, some]) => make("div", { class: "group" }, make("h3", {}, group), make("div", { class: "strip" }, ...some.map(thumb)))),
  );
  element("redraw").hidden = groups.size < 2;
  return found;
}

function thumb(sample) {
  const which = { kind: "sample", name: sample.name };
  const image = make("img", { src: api.pixels(which, "thumb"), alt: sample.title, loading: "lazy", width: 72, height: 72 });
  const button = make("button", { type: "button", class: "thumb", value: sample.name, title: sample.title }, image);
  button.setAttribute("aria-pressed", state.which?.name === sample.name);
  button.addEventListener("click", () => choose(which));
  return button;
}

function offerLayers() {
  for (const layer of layerRows(shared.sides)) {
    const box = make("input", { type: "checkbox", checked: shows(layer), value: key(layer) });
    box.addEventListener("change", () => {
      const chosen = [...element("layers").querySelectorAll("input:checked")].map((one) => one.value);
      const every = chosen.length === layerRows(shared.sides).length;
      state = { ...state, layers: every ? null : chosen };
      address.write(state);
      if (picture) pump();
    });
    element("layers").append(make("label", {}, box, layerName(layer)));
  }
}

function show(view) {
  state = { ...state, view };
  element("picture-view").hidden = view === "units";
  element("units-view").hidden = view !== "units";
  element("view-picture").setAttribute("aria-pressed", view === "picture");
  element("view-units").setAttribute("aria-pressed", view === "units");
  if (view === "units") gallery.show();
  address.write(state);
}

function shown() {
  const rows = (part) => shared.sides.flatMap((side, number) =>
    layersOf(side).map((layer) => answers[part][number].get(layer)).filter(Boolean)
      .map(({ pending, ...found }) => ({ ...(shared.sides.length > 1 ? { side: side.name } : {}), ...found })));
  const descriptions = [{ place: "Whole picture", at: null, rows: rows("whole") }];
  if (state.at) descriptions.unshift({ place: `At ${state.at.join(", ")}`, at: state.at, rows: rows("here") });
  const maps = shared.sides.flatMap((side, number) =>
    mapsOf(number).flatMap(([, found]) => found.filter(Boolean).map((one) => ({ side: side.name, ...one }))));
  const translators = shared.sides.map(({ layers, ...side }) => side);
  return { link: location.href, picture, at: state.at, translators, descriptions, scale: scale(), maps };
}

function savePng() {
  const grids = [...element("maps").querySelectorAll("table")].map((one, side) => ({
    title: `Where is … (${shared.sides[side].name}, ${shared.sides[side].backbone})`,
    queries: state.queries,
    rows: [...one.tBodies[0].rows].map((row, number) => ({ layer: mapsOf(side)[number][0], canvases: [...row.querySelectorAll("canvas")] })),
  }));
  keep.asPng(shown(), element("picture"), grids).catch(complain);
}

async function copy() {
  try {
    await navigator.clipboard.writeText(location.href);
    element("status").textContent = state.which?.kind === "picture" ? "copied; a dropped picture is here while this server runs" : "copied";
  } catch {
    complain(new Error(`The browser did not let the page copy. The link: ${location.href}`));
  }
}

function aboutLines(sides) {
  const notes = new Set(sides.map((side) => side.data_note).filter(Boolean));
  const named = (side) => (sides.length > 1 ? [make("b", {}, side.name), " "] : []);
  const lines = sides.map((side) => [...named(side), `${side.backbone} explained through ${side.language_model}. `]);
  return [...lines, [...notes].join(" ")].map((line) => make("span", { class: "side" }, ...[line].flat()));
}

async function begin() {
  shared = await api.about();
  state = address.read();
  element("about").replaceChildren(...aboutLines(shared.sides));
  legend(element("colours"), shared.colours);
  element("scale").append(...shared.scales.map((nats) => make("option", { value: nats, selected: nats === scale() }, `${nats}`)));
  element("scale").addEventListener("change", () => {
    state = { ...state, scale: Number(element("scale").value) };
    address.write(state);
    if (picture) renderMaps();
  });
  element("queries").value = state.queries.join(", ");
  offerLayers();
  takeFiles(take);
  if (shared.units) {
    gallery = new Gallery(shared.units, complain);
    element("views").hidden = false;
  }
  element("ask").addEventListener("submit", askWhere);
  element("queries").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey) askWhere(event);
  });
  element("whole").addEventListener("click", () => look(null));
  element("redraw").addEventListener("click", () => (draw += 1, offer().catch(complain)));
  element("view-picture").addEventListener("click", () => show("picture"));
  element("view-units").addEventListener("click", () => show("units"));
  element("copy").addEventListener("click", copy);
  element("save-json").addEventListener("click", () => keep.asJson(shown()));
  element("save-png").addEventListener("click", savePng);
  show(gallery ? state.view : "picture");
  const offered = await offer();
  const which = state.which ?? (offered.length ? { kind: "sample", name: offered[0].name } : null);
  if (which) await choose(which, { at: state.at });
}

begin().catch(complain);
