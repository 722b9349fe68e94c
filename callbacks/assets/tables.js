// Tables sort by a click on a head, the best first; what has no value comes last either way. Boxes choose the scores
// that are shown, and one filter goes for tables and objects.
"use strict";
(() => {
  const valueOf = (row, index) => row.cells[index].dataset.value;

  function sort(head) {
    const table = head.closest("table");
    const index = head.cellIndex;
    const isNumber = head.classList.contains("number");
    const before = head.getAttribute("aria-sort");
    const opposite = { ascending: "descending", descending: "ascending" };
    const order = before === "none" ? head.dataset.first : opposite[before];
    const sign = order === "ascending" ? 1 : -1;
    const compare = isNumber
      ? (a, b) => Number(a) - Number(b)
      : (a, b) => a.localeCompare(b, "en", { numeric: true });
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => {
      const [x, y] = [valueOf(a, index), valueOf(b, index)];
      if (!x || !y) return Boolean(y) - Boolean(x);
      return sign * compare(x, y);
    });
    table.tBodies[0].append(...rows);
    for (const other of head.parentNode.cells) other.setAttribute("aria-sort", other === head ? order : "none");
  }

  function show(table, score, isShown) {
    for (const cell of table.querySelectorAll("[data-score]")) {
      if (cell.dataset.score === score) cell.hidden = !isShown;
    }
    const heads = [...table.querySelectorAll("thead tr:last-child th[data-score]")];
    const groups = table.querySelectorAll("th[data-group]");
    groups.forEach((group, k) => {
      const own = heads.slice((k * heads.length) / groups.length, ((k + 1) * heads.length) / groups.length);
      group.colSpan = Math.max(1, own.filter((head) => !head.hidden).length);
    });
  }

  for (const button of document.querySelectorAll("table.sortable th button")) {
    button.addEventListener("click", () => sort(button.closest("th")));
  }
  for (const choice of document.querySelectorAll(".choice")) {
    const table = document.querySelector(`table.${choice.dataset.table}`);
    choice.addEventListener("change", ({ target }) => {
      show(table, target.value, target.checked);
      const boxes = [...choice.querySelectorAll("input")];
      const count = boxes.filter((box) => box.checked).length;
      choice.querySelector("summary").textContent = `Scores shown (${count} of ${boxes.length})`;
    });
  }
  document.getElementById("filter")?.addEventListener("input", ({ target }) => {
    const words = target.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const one of document.querySelectorAll("[data-words]")) {
      one.hidden = !words.every((word) => one.dataset.words.includes(word));
    }
  });
})();
