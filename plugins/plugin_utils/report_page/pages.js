// Copyright: Contributors to the edgesec.nanomq collection
// GNU General Public License v3.0+ (see LICENSE)
// A page for a host, a rule, the rules, the changes, the waivers, and the hosts that were not audited.

const back = (view, text) =>
  h("a", { href: `#${view}${view === "hosts" || view === "heat-map" ? query() : ""}` }, "\u2190 ", text);
const heading = (text) => h("h1", { tabindex: -1 }, text);
const part = (title, number, ...children) => h("section.part", h("h2", title, h("small", number)), ...children);

function hostPage(host, here) {
  const at = shown.indexOf(host),
    step = (other, text) => (other ? h("a", { href: "#host/" + other.route }, text, bdi(other.name)) : null);
  const by = (state) => host.findings.filter((finding) => finding.state === state);
  const list = (state, title) => {
    const some = by(state);
    return some.length
      ? part(
          title,
          some.length,
          some.map((finding) => article(finding, host, finding.rule.id === here)),
        )
      : null;
  };
  const resolved = host.resolved.filter((id) => !by("open").some((finding) => finding.rule.id === id));
  return [
    h(
      "p.crumbs",
      back(lastList, lastList === "heat-map" ? "Heat map" : "Hosts"),
      h("span.push", step(at >= 0 && shown[at - 1], "Previous: ")),
      h("span", step(at >= 0 && shown[at + 1], "Next: ")),
    ),
    h(
      "div.title",
      badge(host.grade),
      h(
        "div",
        heading(host.name),
        h(
          "p",
          host.audited
            ? [`Grade ${host.grade}`, host.version ? [", NanoMQ ", bdi(host.version)] : ", version not known"].flat(2)
            : "Not audited",
        ),
      ),
    ),
    host.audited
      ? h(
          "p.facts",
          [3, 2, 1, 0]
            .filter((level) => host.counts[level])
            .map((level) => severity(SEVERITIES[level], `${host.counts[level]} ${SEVERITIES[level]}`)),
          host.unseen ? h("span.sev.unseen", `${host.unseen} not observed`) : null,
          host.waived ? h("span.sev.waived", `${host.waived} waived`) : null,
          severity("passed", `${host.passed.length} passed`),
        )
      : part("Why it was not audited", "", h("ul.evidence", h("li", bdi(host.reason || "No reason was given.")))),
    list("open", "Open"),
    list("unseen", "Not observed"),
    list("waived", "Waived"),
    host.audited && host.findings.length === 0 ? h("p.none", "Every rule holds.") : null,
    resolved.length
      ? part(
          "Resolved since the last run",
          resolved.length,
          names(resolved.map((id) => ruleLink(id, " ", ruleOf.get(id)?.title))),
        )
      : null,
    host.passed.length
      ? h(
          "section.part",
          h(
            "details",
            h("summary", "Passed ", h("small", host.passed.length)),
            names(host.passed.map((index) => ruleLink(rules[index].id, " ", rules[index].title))),
          ),
        )
      : null,
  ];
}

// Hosts that gave the same evidence, together.
function groups(pairs) {
  const found = new Map();
  for (const [host, finding] of pairs)
    found.has(finding) ? found.get(finding).push(host) : found.set(finding, [host]);
  return [...found]
    .sort((a, b) => b[1].length - a[1].length)
    .map(([finding, list]) => {
      const links = list.map((host) => hostLink(host.name, finding.rule.id));
      const waiver = finding.waived
        ? h("p", h("b", "Waived: "), bdi(finding.waived), " (", expiry(finding.until), ")")
        : null;
      if (links.length === 1) return h("div.single", h("p.names", links), h("div", evidence(finding), waiver));
      return h("div.group", evidence(finding), waiver, h("p.label", count(list.length, "host")), names(links));
    });
}

function rulePage(rule) {
  const list = (state, title) =>
    rule[state].length ? part(title, count(rule[state].length, "host"), groups(rule[state])) : null;
  return [
    h("p.crumbs", back("rules", "Rules")),
    h(
      "div.title",
      h(
        "div",
        heading(rule.title),
        h(
          "p.facts",
          severity(rule.severity, capital(rule.severity)),
          h("span.mono", rule.id),
          h("span", rule.layer.replace("_", " ")),
          severity("passed", `${count(rule.passed, "host")} passed`),
        ),
      ),
    ),
    h("section.part", say(rule)),
    list("open", "Open"),
    list("unseen", "Not observed"),
    list("waived", "Waived"),
    rule.open.length + rule.unseen.length + rule.waived.length ? null : h("p.none", "No host breaks this rule."),
  ];
}

const ruleTable = table("rules", "Rules", [
  {
    key: "severity",
    label: "Severity",
    value: (rule) => -SEVERITIES.indexOf(rule.severity),
    cell: (rule) => severity(rule.severity),
  },
  { key: "id", label: "Rule", value: (rule) => rule.id, cell: (rule) => h("span.mono", rule.id) },
  {
    key: "title",
    label: "What is wrong",
    head: true,
    value: (rule) => rule.title,
    cell: (rule) => h("a", { href: "#rule/" + encode(rule.id) }, rule.title),
  },
  { key: "layer", label: "Layer", value: (rule) => rule.layer, cell: (rule) => rule.layer.replace("_", " ") },
  ...[
    ["open", "Open"],
    ["unseen", "Not observed"],
    ["waived", "Waived"],
  ].map(([key, label]) => ({
    key,
    label,
    number: true,
    value: (rule) => rule[key].length,
    cell: (rule) => rule[key].length,
  })),
  { key: "passed", label: "Passed", number: true, value: (rule) => rule.passed, cell: (rule) => rule.passed },
]);
const bySeverity = (a, b) =>
  SEVERITIES.indexOf(b.severity) - SEVERITIES.indexOf(a.severity) ||
  b.open.length - a.open.length ||
  compare(a.id, b.id);
const rulesPage = () => {
  ruleTable.show([...rules].sort(bySeverity));
  const broken = rules.filter((rule) => rule.open.length).length;
  return [
    heading("Rules"),
    h("p.muted", `${broken} of ${count(rules.length, "rule")} are broken on some host.`),
    h("div.part", ruleTable.node),
  ];
};

function changesPage() {
  if (!difference) return [heading("Changes"), h("p.none", "There was no earlier run to compare with.")];
  const list = (title, pairs) => {
    const byRule = new Map();
    for (const [host, rule] of pairs) byRule.has(rule) ? byRule.get(rule).push(host) : byRule.set(rule, [host]);
    const sorted = [...byRule].sort((a, b) => bySeverity(ruleOf.get(a[0]) || rules[0], ruleOf.get(b[0]) || rules[0]));
    return part(
      title,
      pairs.length,
      pairs.length
        ? sorted.map(([id, some]) =>
            h(
              "div.group",
              h(
                "p",
                ruleOf.has(id) ? severity(ruleOf.get(id).severity) : null,
                " ",
                ruleLink(id),
                " ",
                ruleOf.get(id)?.title || "",
              ),
              names(some.map((name) => hostLink(name, id))),
            ),
          )
        : h("p.none", "None."),
    );
  };
  const plainList = (title, some) =>
    part(title, some.length, some.length ? names(some.map((name) => hostLink(name))) : h("p.none", "None."));
  return [
    heading("Changes since the last run"),
    h("p.muted", `Compared with the run of ${moment(difference.since)}.`),
    h("div.columns", list("New", difference.new), list("Resolved", difference.resolved)),
    h("div.columns", plainList("Hosts added", difference.added), plainList("Hosts gone", difference.gone)),
  ];
}

function waiversPage() {
  const found = new Map();
  for (const host of hosts) {
    for (const finding of host.findings.filter((one) => one.state === "waived")) {
      const key = JSON.stringify([finding.rule.id, finding.waived, finding.until]);
      found.has(key) ? found.get(key).hosts.push(host) : found.set(key, { finding, hosts: [host] });
    }
  }
  const list = [...found.values()].sort(
    (a, b) => compare(a.finding.until, b.finding.until) || byWeight(a.finding, b.finding),
  );
  const bad = rules.filter((rule) => rule.id.startsWith("NMQ-WVR-") && rule.open.length);
  return [
    heading("Waivers"),
    h("p.muted", "What somebody decided to live with, and until when; the next to end comes first."),
    h(
      "section.part",
      list.length
        ? list.map(({ finding, hosts: some }) =>
            h(
              "div.waiver",
              h(
                "div",
                h("p", h("span.mono", ruleLink(finding.rule.id))),
                stateSeverity(finding),
                h("p", expiry(finding.until)),
              ),
              h(
                "div",
                h("h2", finding.rule.title),
                h("p", bdi(finding.waived)),
                h(
                  "details",
                  h("summary", count(some.length, "host")),
                  names(some.map((host) => hostLink(host.name, finding.rule.id))),
                ),
              ),
            ),
          )
        : h("p.none", "Nothing is waived."),
    ),
    bad.length
      ? part(
          "Waivers that do not count",
          "",
          bad.map((rule) =>
            h(
              "div.group",
              h("p", severity(rule.severity), " ", ruleLink(rule.id), " ", rule.title),
              groups(rule.open),
            ),
          ),
        )
      : null,
  ];
}
const stateSeverity = (finding) => severity(SEVERITIES[finding.severity]);

function missingPage() {
  const list = table("missing", "Hosts not audited", [
    { key: "name", label: "Host", head: true, value: (host) => host.name, cell: (host) => hostLink(host.name) },
    {
      key: "reason",
      label: "Reason",
      value: (host) => host.reason,
      cell: (host) => h("span.mono", bdi(host.reason || "No reason was given.")),
    },
  ]);
  list.show(missing);
  return [
    heading("Hosts not audited"),
    h("p.muted", "Nothing is known about these. While there is one, the fleet's grade is C at best."),
    missing.length ? h("div.part", list.node) : h("p.none", "Every host was audited."),
  ];
}
