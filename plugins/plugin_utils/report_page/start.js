// Copyright: Contributors to the edgesec.nanomq collection
// GNU General Public License v3.0+ (see LICENSE)
// Put it all in place.

$("main").append(
  h(
    "div",
    { id: "fleet" },
    glance(),
    h("div", { id: "hosts-filter" }),
    hostTable.node,
    h("p.none", { id: "none", hidden: true }, "No host matches."),
  ),
  h(
    "div",
    { id: "heat", hidden: true },
    h("h1.out", { tabindex: -1 }, "Heat map of hosts and rules"),
    h("div", { id: "heat-filter" }),
    map.node,
  ),
  h("div", { id: "page", hidden: true }),
  h("div", { id: "print" }),
);
$("nav").append(
  h(
    "ul",
    tabs.map((node) => h("li", node)),
  ),
);
$("nav").hidden = false;
document.querySelector(".when time").textContent = moment(data.run.finished);
document.body.append(
  h(
    "footer",
    h(
      "p",
      h("kbd", "/"),
      " filter, ",
      h("kbd", "Esc"),
      " back, ",
      h("kbd", "\u2191"),
      " ",
      h("kbd", "\u2193"),
      " from row to row.",
    ),
  ),
);
window.addEventListener("hashchange", () => go());
go(true);
$("static").remove();
requestAnimationFrame(() => setTimeout(() => performance.mark("ready")));
