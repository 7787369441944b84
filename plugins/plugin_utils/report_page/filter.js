// Copyright: Contributors to the edgesec.nanomq collection
// GNU General Public License v3.0+ (see LICENSE)
// The filter: which hosts are shown, and which of their findings match.

const FIELDS = ["text", "host", "severity", "state", "rule", "grade"];
const STATES = {
  open: "open",
  unseen: "not observed",
  waived: "waived",
  new: "new since last run",
  clean: "nothing open",
  missing: "not audited",
};
const filter = Object.fromEntries(FIELDS.map((name) => [name, ""]));
let shown = [],
  matches = () => true,
  narrowed = false;

const option = (value, text) => h("option", { value }, text);
const field = (name, label, control, wide = "") =>
  h("label" + wide, h("span", label), Object.assign(control, { id: "f-" + name, name }));
const controls = {
  text: h("input", { type: "search", autocomplete: "off", spellcheck: "false" }),
  host: h("input", { type: "search", autocomplete: "off", spellcheck: "false" }),
  severity: h(
    "select",
    option("", "any"),
    option("3", "critical"),
    option("2", "high and above"),
    option("1", "medium and above"),
  ),
  state: h(
    "select",
    option("", "any"),
    Object.entries(STATES).map(([value, text]) => option(value, text)),
  ),
  rule: h("input", { type: "search", list: "rule-ids", autocomplete: "off", spellcheck: "false" }),
  grade: h(
    "select",
    option("", "any"),
    [...GRADES].reverse().map((grade) => option(grade, grade)),
  ),
};
const found = h("span", { role: "status" });
// On a phone the other fields wait behind this.
const moreFields = h(
  "button.fields",
  {
    type: "button",
    "aria-expanded": "false",
    onclick: () => {
      const open = filterBar.classList.toggle("open");
      moreFields.setAttribute("aria-expanded", String(open));
    },
  },
  "More filters",
);
const filterBar = h(
  "form.filter",
  {
    role: "search",
    "aria-label": "Filter hosts",
    onsubmit: (event) => event.preventDefault(),
    oninput: () => {
      FIELDS.forEach((name) => {
        filter[name] = controls[name].value;
      });
      apply(true);
    },
  },
  field("text", "Any text (press /)", controls.text, ".wide"),
  moreFields,
  field("host", "Host name", controls.host),
  field("rule", "Rule", controls.rule),
  field("severity", "Severity", controls.severity),
  field("state", "State", controls.state),
  field("grade", "Grade", controls.grade),
  h(
    "button",
    {
      type: "reset",
      onclick: () => {
        setFilter({});
        apply(true);
      },
    },
    "Clear",
  ),
  h(
    "datalist",
    { id: "rule-ids" },
    rules.map((rule) => h("option", { value: rule.id }, rule.title)),
  ),
);
const filterBox = h("div", filterBar, h("p.found", found));

function setFilter(values) {
  for (const name of FIELDS) filter[name] = controls[name].value = values[name] || "";
}
const query = () => {
  const used = FIELDS.filter((name) => filter[name]).map((name) => [name, filter[name]]);
  return used.length ? "?" + new URLSearchParams(used) : "";
};

// Every distinct string and finding is asked once, however many hosts have it.
function compile() {
  const text = filter.text.trim().toLowerCase(),
    name = filter.host.trim().toLowerCase(),
    rule = filter.rule.trim().toLowerCase();
  const level = Number(filter.severity || 0),
    state = ["clean", "missing"].includes(filter.state) ? "" : filter.state;
  const ofFinding = Boolean(filter.severity || state || rule);
  const has = (value) => value.toLowerCase().includes(text);
  const told = new Map(),
    tells = (value) => told.get(value) ?? (told.set(value, has(value)), told.get(value));
  const rulesHit = new Set(
    rules.filter((one) => !rule || one.id.toLowerCase().includes(rule) || one.title.toLowerCase().includes(rule)),
  );
  const ruleTells = new Set(rules.filter((one) => text && (has(one.id) || has(one.title))));
  const hit = new Set(
    findings.filter(
      (finding) =>
        rulesHit.has(finding.rule) &&
        finding.severity >= level &&
        (!state || state === "new" || finding.state === state) &&
        (!text || ruleTells.has(finding.rule) || finding.evidence.some(tells) || tells(finding.waived)),
    ),
  );
  const fits = (host, finding) => hit.has(finding) && (state !== "new" || host.fresh.has(finding.rule.id));
  narrowed = ofFinding || Boolean(text);
  matches = narrowed ? fits : () => true;
  return (host) =>
    (!name || host.name.toLowerCase().includes(name)) &&
    (!filter.grade || host.grade === filter.grade) &&
    (filter.state !== "missing" || !host.audited) &&
    (filter.state !== "clean" || (host.audited && !host.unseen && host.counts.every((number) => number === 0))) &&
    (!narrowed ||
      host.findings.some((finding) => fits(host, finding)) ||
      (Boolean(text) && !ofFinding && (has(host.name) || has(host.version) || has(host.reason))));
}

function apply(typed = false) {
  const started = performance.now();
  hostTable.show([...hosts].sort(worst).filter(compile()));
  shown = hostTable.items();
  found.textContent =
    shown.length === hosts.length
      ? count(hosts.length, "host")
      : `${shown.length.toLocaleString("en")} of ${count(hosts.length, "host")}`;
  $("none").hidden = shown.length > 0;
  hostTable.node.hidden = shown.length === 0;
  if (typed) history.replaceState(null, "", `#${view}${query()}`);
  navigation();
  if (view === "heat-map") map.draw(true);
  performance.measure("filter", { start: started });
}
