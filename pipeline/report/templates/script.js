"use strict";
// The page is whole without this: it adds a choice of theme and columns that sort.
(() => {
  const THEMES = ["auto", "light", "dark"];
  const KEY = "devil-pipe-theme";

  function remembered() {
    try {
      const theme = localStorage.getItem(KEY);
      return THEMES.includes(theme) ? theme : "auto";
    } catch {
      return "auto"; // a browser may keep nothing for pages from a folder
    }
  }

  function apply(theme) {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    try {
      localStorage.setItem(KEY, theme);
    } catch {
      // it holds for this visit
    }
  }

  function themeButton(button) {
    let theme = remembered();
    const show = () => { button.textContent = `Theme: ${theme}`; };
    button.hidden = false;
    show();
    button.addEventListener("click", () => {
      theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
      apply(theme);
      show();
    });
  }

  // A number where the cell holds one, else its words; null where it holds nothing, which always comes last.
  function valueOf(row, column) {
    const cell = row.cells[column];
    const data = cell.querySelector("data");
    if (data) return Number(data.value);
    if (cell.querySelector(".none")) return null;
    return cell.dataset.sort ?? cell.textContent.trim();
  }

  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), "en", { numeric: true });
  }

  function ordered(rows, column, direction) {
    const pairs = rows.map((row) => [valueOf(row, column), row]);
    pairs.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      return direction * compare(a, b);
    });
    return pairs.map(([, row]) => row);
  }

  function sortable(table) {
    const body = table.tBodies[0];
    const original = [...body.rows];
    const headers = [...table.tHead.rows[0].cells];
    headers.forEach((header, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      header.append(button);
      // The best first: the largest number, the smallest where less is better; words from A.
      const numeric = original.some((row) => typeof valueOf(row, column) === "number");
      const cycle = numeric && !("lower" in header.dataset)
        ? ["descending", "ascending", null] : ["ascending", "descending", null];
      button.addEventListener("click", () => {
        const next = cycle[(cycle.indexOf(header.getAttribute("aria-sort")) + 1) % cycle.length];
        headers.forEach((other) => other.removeAttribute("aria-sort"));
        if (next) header.setAttribute("aria-sort", next);
        const rows = next ? ordered(original, column, next === "ascending" ? 1 : -1) : original;
        body.append(...rows);
      });
    });
  }

  apply(remembered());
  document.addEventListener("DOMContentLoaded", () => {
    themeButton(document.getElementById("theme"));
    document.querySelectorAll("table.sortable").forEach(sortable);
  });
})();
