"use strict";

// A click on a column's head sorts by it, another click turns the order; NaN comes last either way.
function compare(kind, sign) {
  return (one, other) => {
    if (kind !== "number") return sign * one.localeCompare(other, "en", { numeric: true });
    const [a, b] = [Number(one), Number(other)];
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
    return sign * (a - b);
  };
}

function sortBy(head) {
  const table = head.closest("table");
  const body = table.tBodies[0];
  const ascending = head.getAttribute("aria-sort") !== "ascending";
  for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const order = compare(head.dataset.kind, ascending ? 1 : -1);
  const value = (row) => row.cells[head.cellIndex].dataset.value;
  body.append(...[...body.rows].sort((one, other) => order(value(one), value(other))));
}

for (const button of document.querySelectorAll("table.sortable th button")) {
  button.addEventListener("click", () => sortBy(button.closest("th")));
}
