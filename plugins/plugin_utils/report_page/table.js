// Copyright: Contributors to the edgesec.nanomq collection
// GNU General Public License v3.0+ (see LICENSE)
// Tables that sort.

const ROWS_AT_ONCE = 150;

// A table whose columns sort: [{key, label, value(item), cell(item), head, number, of}]. Rows are made as the reader
// comes to them: all at once, those of a big fleet would keep the page from opening.
function table(kind, caption, columns, onsort) {
  const head = columns.map((column) => {
    const button = h("button", { type: "button", onclick: () => sort(column) }, column.label);
    return h(`th.c-${column.key}${column.number ? ".num" : ""}`, { scope: "col", role: "columnheader" }, button);
  });
  const body = h("tbody", { role: "rowgroup" }),
    rows = new Map(),
    more = h("button.more", { type: "button", onclick: () => extend(true) });
  const inner = h(
    `table.list.${kind}`,
    { role: "table" },
    h("caption.out", caption),
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, head)),
    body,
  );
  const node = h("div", inner, more);
  let order = null,
    down = false,
    items = [];
  function row(item) {
    const tr = document.createElement("tr");
    tr.setAttribute("role", "row");
    for (const column of columns) {
      const value = column.cell(item),
        cell = document.createElement(column.head ? "th" : "td");
      cell.setAttribute("role", column.head ? "rowheader" : "cell");
      cell.className = `c-${column.key}`;
      if (column.number) {
        cell.className = `num ${column.of || ""}${value ? "" : " zero"}`;
        cell.setAttribute("data-of", column.label.toLowerCase());
        if (value !== null) cell.textContent = value.toLocaleString("en");
      } else if (typeof value === "string") spell(cell, value);
      else if (value) cell.append(...[value].flat());
      tr.append(cell);
    }
    return tr;
  }
  function show(list) {
    items = order ? [...list].sort((a, b) => (down ? -1 : 1) * compare(order.value(a), order.value(b))) : list;
    body.replaceChildren();
    inner.setAttribute("aria-rowcount", items.length + 1);
    extend();
  }
  function extend(focus = false) {
    const done = body.childElementCount;
    body.append(
      ...items
        .slice(done, done + ROWS_AT_ONCE)
        .map((item) => rows.get(item) || (rows.set(item, row(item)), rows.get(item))),
    );
    const left = items.length - body.childElementCount;
    more.textContent = `Show more (${left.toLocaleString("en")} left)`;
    more.hidden = left === 0;
    if (focus) body.children[done]?.querySelector("a")?.focus();
  }
  new IntersectionObserver(
    (entries) => {
      if (entries.at(-1).isIntersecting) extend();
    },
    { rootMargin: "1200px" },
  ).observe(more);
  function sort(column) {
    down = order === column ? !down : Boolean(column.number);
    order = column;
    head.forEach((th, index) =>
      columns[index] === order
        ? th.setAttribute("aria-sort", down ? "descending" : "ascending")
        : th.removeAttribute("aria-sort"),
    );
    onsort ? onsort() : show(items);
  }
  body.addEventListener("keydown", (event) => {
    const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
    const next = step && event.target.closest("tr")[step]?.querySelector("a");
    if (next) {
      event.preventDefault();
      next.focus();
    }
  });
  return { node, show, items: () => items };
}

const tally = (level) => ({
  key: SEVERITIES[level],
  label: capital(SEVERITIES[level]),
  number: true,
  of: SEVERITIES[level],
  value: (host) => host.counts[level],
  cell: (host) => (host.audited ? host.counts[level] : null),
});

function changes(host) {
  if (host.fresh.size + host.resolved.length === 0) return null;
  return [
    host.fresh.size ? `+${host.fresh.size} new` : "",
    host.resolved.length ? `\u2212${host.resolved.length} resolved` : "",
  ]
    .filter(Boolean)
    .join(", ");
}

const hostTable = table(
  "hosts",
  "Hosts",
  [
    { key: "grade", label: "Grade", value: rank, cell: (host) => badge(host.grade) },
    {
      key: "name",
      label: "Host",
      head: true,
      value: (host) => host.name,
      cell: (host) => (host.audited ? hostLink(host.name) : [hostLink(host.name), tag("not audited")]),
    },
    { key: "version", label: "Version", value: (host) => host.version, cell: (host) => host.version },
    tally(3),
    tally(2),
    tally(1),
    tally(0),
    {
      key: "unseen",
      label: "Not observed",
      number: true,
      value: (host) => host.unseen,
      cell: (host) => (host.audited ? host.unseen : null),
    },
    {
      key: "waived",
      label: "Waived",
      number: true,
      value: (host) => host.waived,
      cell: (host) => (host.audited ? host.waived : null),
    },
    ...(difference
      ? [{ key: "change", label: "Since last run", value: (host) => -host.fresh.size, cell: changes }]
      : []),
  ],
  () => apply(),
);
