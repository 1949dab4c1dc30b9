// What is looked at stands in the page's address, and nowhere else: a link restores it.

export function read(search = location.search) {
  const given = new URLSearchParams(search);
  const kind = ["picture", "sample"].find((key) => given.get(key));
  const at = (given.get("at") || "").split(",").map(Number);
  return {
    which: kind ? { kind, name: given.get(kind) } : null,
    at: at.length === 2 && at.every(Number.isFinite) && given.get("at") ? at : null,
    queries: given.getAll("q").filter(Boolean),
    layers: given.get("layers") === null ? null : given.get("layers").split(",").filter(Boolean),
    scale: Number(given.get("scale")) || null,
    view: given.get("view") === "units" ? "units" : "picture",
  };
}

export function write(state) {
  const said = new URLSearchParams();
  if (state.view === "units") said.set("view", "units");
  if (state.which) said.set(state.which.kind, state.which.name);
  if (state.at) said.set("at", state.at.join(","));
  for (const query of state.queries) said.append("q", query);
  if (state.layers) said.set("layers", state.layers.join(","));
  if (state.scale) said.set("scale", state.scale);
  const text = said.toString().replaceAll("%2C", ",").replaceAll("%3A", ":");
  history.replaceState(null, "", text ? `?${text}` : location.pathname);
}
