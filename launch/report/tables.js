"use strict";
// A table that sorts by its heads and filters by a text: page.table(columns, rows, options).
//
// columns: {title, number: right-aligned and sorted as numbers, value(row): what sorts and filters, cell(row): what is shown,
// better: "max" | "min" where sorting begins with the best}.

page.table = (columns, rows, { label, filter = rows.length > 8, limit = 100, rowClass } = {}) => {
  const state = { column: null, descending: false, text: "", all: false };
  const body = page.element("tbody");
  const count = page.element("span", { class: "count", "aria-live": "polite" });
  const more = page.element("button", { type: "button", class: "more", click: () => { state.all = true; draw(); } });
  const heads = columns.map((column, index) => head(column, index));

  function head(column, index) {
    const button = page.element("button", { type: "button", click: () => sort(index) }, column.title);
    return page.element("th", { scope: "col", class: column.number ? "number" : null, "aria-sort": "none" }, button);
  }

  function sort(index) {
    const column = columns[index];
    const first = column.number && column.better !== "min";
    state.descending = state.column === index ? !state.descending : Boolean(first);
    state.column = index;
    heads.forEach((cell, other) => cell.setAttribute("aria-sort", other !== index ? "none" : state.descending ? "descending" : "ascending"));
    draw();
  }

  function visible() {
    const words = state.text.toLowerCase().split(/\s+/).filter(Boolean);
    const matching = rows.filter((row) => {
      const text = columns.map((column) => String(column.value(row) ?? "")).join(" ").toLowerCase();
      return words.every((word) => text.includes(word));
    });
    return state.column === null ? matching : matching.sort(comparison(columns[state.column], state.descending));
  }

  function draw() {
    const matching = visible();
    const shown = state.all ? matching : matching.slice(0, limit);
    body.replaceChildren(...shown.map((row) =>
      page.element("tr", { class: rowClass ? rowClass(row) : null },
        columns.map((column) => page.element("td", { class: column.number ? "number" : null }, column.cell ? column.cell(row) : String(column.value(row) ?? "–"))))));
    count.textContent = matching.length === rows.length ? `${page.count(rows.length)} rows` : `${page.count(matching.length)} of ${page.count(rows.length)} rows`;
    more.hidden = shown.length === matching.length;
    more.textContent = `Show all ${page.count(matching.length)} rows`;
  }

  const input = page.element("input", {
    type: "search", placeholder: "Filter", "aria-label": `Filter ${label}`, input: (event) => { state.text = event.target.value; draw(); },
  });
  draw();
  return page.element("div", { class: "table" },
    filter ? page.element("div", { class: "tools" }, input, count) : null,
    page.element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
      page.element("table", {}, page.element("thead", {}, page.element("tr", {}, heads)), body)),
    more);
};

// What is undefined comes last in both directions.
function comparison(column, descending) {
  const sign = descending ? -1 : 1;
  return (first, second) => {
    const [a, b] = [column.value(first), column.value(second)];
    const [lacksA, lacksB] = [a === null || a === undefined, b === null || b === undefined];
    if (lacksA || lacksB) return Number(lacksA) - Number(lacksB);
    return sign * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true }));
  };
}
