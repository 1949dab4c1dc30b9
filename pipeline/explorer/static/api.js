// The server's questions and answers. Every refusal is an Error whose message a person can read.

async function answer(address, options) {
  let response;
  try {
    response = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is `devil-pipe explore` still running?");
  }
  const value = await response.json().catch(() => ({}));
  if (!response.ok) {
    const error = new Error(value.error || `The server answered ${response.status}.`);
    error.status = response.status;
    throw error;
  }
  return value;
}

const asJson = (value, signal) => ({
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify(value),
  signal,
});

const named = ({ kind, name }) => new URLSearchParams({ [kind]: name });

export const about = () => answer("api/about");
export const samples = (draw) => answer(`api/samples?draw=${draw}`);
export const picture = (which) => answer(`api/picture?${named(which)}`);
export const describe = (question, signal) => answer("api/describe", asJson(question, signal));
export const maps = (question, signal) => answer("api/maps", asJson(question, signal));
export const units = (from, word) => answer(`api/units?${new URLSearchParams({ from, word })}`);
export const pixels = (which, size = "shown") => `pixels?${named(which)}&size=${size}`;
export const exemplars = (key) => `api/exemplars?${new URLSearchParams({ key })}`;

export const drop = (file) =>
  answer("api/picture", { method: "POST", headers: { "Content-Type": "application/octet-stream" }, body: file });
