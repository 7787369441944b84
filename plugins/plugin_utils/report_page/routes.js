// Copyright: Contributors to the edgesec.nanomq collection
// GNU General Public License v3.0+ (see LICENSE)
// Addresses (#host/edge-1), focus and keys.

const PAGES = { rules: rulesPage, changes: changesPage, waivers: waiversPage, "not-audited": missingPage };
let view = "hosts",
  lastList = "hosts";
const scrolled = new Map();
const waivers = new Set(
  findings.filter((one) => one.state === "waived").map((one) => JSON.stringify([one.rule.id, one.waived, one.until])),
).size;
const TABS = [
  ["hosts", "Hosts", hosts.length],
  ["heat-map", "Heat map", null],
  ["rules", "Rules", rules.length],
  ["changes", "Changes", difference && difference.new.length + difference.resolved.length],
  ["waivers", "Waivers", waivers],
  ["not-audited", "Not audited", missing.length],
];
const tabs = TABS.map(([name, label, number]) =>
  h("a", { href: "#" + name }, label, number === null ? null : [" ", h("small", number)]),
);
const UNDER = { host: "hosts", rule: "rules" };

function navigation() {
  TABS.forEach(([name], index) => {
    if (name === "hosts" || name === "heat-map") tabs[index].setAttribute("href", `#${name}${query()}`);
    if (name === (UNDER[view] || view)) tabs[index].setAttribute("aria-current", "page");
    else tabs[index].removeAttribute("aria-current");
  });
}

function go(first = false) {
  const [path, search = ""] = location.hash.slice(1).split("?"),
    [name, which = "", rule = ""] = path.split("/"),
    before = view;
  scrolled.set(view, window.scrollY);
  const host = name === "host" && (hostAt.get(which) || hostOf.get(unescaped(which)));
  const one = name === "rule" && ruleOf.get(unescaped(which));
  const list = name === "heat-map" ? "heat-map" : "hosts";
  let title = "Hosts",
    nodes = null;
  if (host) {
    nodes = hostPage(host, unescaped(rule));
    title = plain(host.name);
  } else if (one) {
    nodes = rulePage(one);
    title = one.id;
  } else if (Object.hasOwn(PAGES, name)) nodes = PAGES[name]();
  view = nodes ? name : list;
  if (nodes) {
    $("page").replaceChildren(...nodes.flat().filter(Boolean));
    if (!host && !one) title = nodes[0].textContent;
  } else {
    lastList = view;
    setFilter(Object.fromEntries(new URLSearchParams(search)));
  }
  $("page").hidden = !nodes;
  $("fleet").hidden = view !== "hosts";
  $("heat").hidden = view !== "heat-map";
  if (!nodes) {
    $(view === "hosts" ? "hosts-filter" : "heat-filter").append(filterBox);
    if (view === "heat-map") title = "Heat map";
    apply();
  }
  navigation();
  document.title = `${title} \u00b7 ${plain(data.run.title)}`;
  if (first) return;
  const here = $("here"),
    goal = here || document.querySelector("main > :not([hidden]) h1");
  window.scrollTo(0, nodes ? 0 : scrolled.get(view) || 0);
  if (!nodes && view === before && search) filterBox.scrollIntoView();
  if (here) {
    here.tabIndex = -1;
    here.scrollIntoView({ block: "center" });
  }
  goal?.focus({ preventScroll: true });
}

function unescaped(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input, select, textarea");
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/" && !typing) {
    event.preventDefault();
    if (!["hosts", "heat-map"].includes(view)) {
      location.hash = "#" + lastList + query();
      setTimeout(() => controls.text.focus(), 50);
    }
    controls.text.focus();
  } else if (event.key === "Escape") {
    if (typing && event.target.form === filterBar) {
      if (event.target.value) {
        event.target.value = "";
        filterBar.dispatchEvent(new Event("input"));
      } else event.target.blur();
      event.preventDefault();
    } else if (UNDER[view]) location.hash = view === "rule" ? "#rules" : "#" + lastList + query();
  }
});
$("skip").addEventListener("click", (event) => {
  event.preventDefault();
  $("main").tabIndex = -1;
  $("main").focus();
});
