// Tables that are sorted by clicking a header.

function table(id, { columns, rows }, title) {
  const body = element("tbody");
  const headers = columns.map(({ title, numeric, help }, index) => {
    const button = element("button", { type: "button", title: help || null, onclick: () => sortBy(index) }, title);
    return element("th", { scope: "col", class: numeric ? "numeric" : null, "aria-sort": "none" }, button);
  });
  const lines = rows.map((cells) => ({
    cells,
    line: element("tr", {}, ...cells.map((cell, index) => tableCell(cell, columns[index].numeric))),
  }));
  body.append(...lines.map(({ line }) => line));

  function sortBy(index) {
    const direction = headers[index].getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    headers.forEach((header, other) => header.setAttribute("aria-sort", other === index ? direction : "none"));
    const sign = direction === "ascending" ? 1 : -1;
    const sorted = [...lines].sort((one, two) => compare(one.cells[index].sort, two.cells[index].sort, sign));
    body.append(...sorted.map(({ line }) => line));
  }

  const box = element(
    "div",
    { class: "table-box", tabindex: "0", role: "region", "aria-label": title },
    element("table", { id }, element("thead", {}, element("tr", {}, ...headers)), body),
  );
  new ResizeObserver(() => box.classList.toggle("scrolls", box.scrollWidth > box.clientWidth + 1)).observe(box);
  return element("div", {}, box, element("p", { class: "scroll-cue", "aria-hidden": "true" }, "\u2190 The table scrolls sideways \u2192"));
}

function tableCell(cell, isNumeric) {
  let content = cell.text;
  if (cell.link) content = element("a", { href: cell.link }, ...breakable(cell.text));
  if (cell.status) content = status(cell.status);
  return element("td", { class: isNumeric ? "numeric" : null, title: cell.note || null }, content);
}

// A name that may be broken behind its underscores.
function breakable(text) {
  return text.split(/(?<=_)/).flatMap((part, index) => (index ? [element("wbr"), part] : [part]));
}

// Missing values come last in either direction, and numbers before text.
function compare(one, two, sign) {
  if (one === null || two === null) return (one === null) - (two === null);
  if (typeof one !== typeof two) return typeof one === "number" ? -1 : 1;
  if (typeof one === "number") return sign * (one - two);
  return sign * one.localeCompare(two, undefined, { numeric: true });
}
