"use strict";
(() => {
  const root = document.documentElement;
  const tools = document.getElementById("tools");
  tools.hidden = false;
  tools.open = window.matchMedia("(min-width: 60rem)").matches;

  const buttons = (name) => document.querySelectorAll(`button[data-set="${name}"]`);
  for (const button of document.querySelectorAll("button[data-set]")) {
    button.addEventListener("click", () => {
      root.dataset[button.dataset.set] = button.dataset.value;
      for (const other of buttons(button.dataset.set)) {
        other.setAttribute("aria-pressed", String(other === button));
      }
    });
  }
  for (const button of document.querySelectorAll("button[data-toggle]")) {
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(on));
      root.dataset[button.dataset.toggle] = on ? "on" : "off";
    });
  }
  // Tables whose heads sort their rows; without a script they are plain heads.
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const numeric = column > 0;
        const descending = head.ariaSort === "none" ? numeric && head.dataset.first !== "ascending" : head.ariaSort === "ascending";
        const key = (row) => numeric ? Number(row.cells[column].dataset.value) : row.cells[column].textContent.trim();
        const compare = numeric ? (a, b) => key(a) - key(b) : (a, b) => key(a).localeCompare(key(b));
        body.append(...[...body.rows].sort((a, b) => (descending ? -1 : 1) * compare(a, b)));
        for (const other of heads) other.ariaSort = "none";
        head.ariaSort = descending ? "descending" : "ascending";
      });
    });
  }
})();
