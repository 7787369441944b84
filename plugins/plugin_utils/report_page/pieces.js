// Copyright: Contributors to the edgesec.nanomq collection
// GNU General Public License v3.0+ (see LICENSE)
// What the pages are made of.

const SOON_DAYS = 30;

const badge = (grade) => h("span.grade" + (grade ? "." + grade : ""), grade || "\u2013");
const severity = (name, word = name) => h(`span.sev.${name}`, word);
const tag = (text, kind = "tag") => h(`span.${kind}`, text);
const ruleLink = (id, ...more) =>
  ruleOf.has(id) ? h("a", { href: "#rule/" + encode(id) }, id, ...more) : h("span", id);
const hostLink = (name, rule = "") => {
  const host = hostOf.get(name);
  return host ? h("a", { href: `#host/${host.route}${rule && "/" + encode(rule)}` }, bdi(name)) : bdi(name);
};
const names = (entries) =>
  h(
    "ul.names",
    entries.map((entry) => h("li", entry)),
  );
const references = (rule) =>
  h(
    "ul.refs",
    rule.references.map((entry) => h("li", `${entry.standard} ${entry.id}${entry.title ? ", " + entry.title : ""}`)),
  );

function stateOf(finding) {
  const name = SEVERITIES[finding.severity];
  if (finding.state === "open") return severity(name, capital(name));
  return h(`span.sev.${name}.${finding.state}`, finding.state === "waived" ? "Waived" : "Not observed");
}

function say(rule) {
  const part = (word, value) => (value ? [h("dt", word), h("dd", value)] : []);
  return h(
    "dl.say",
    part("Why", rule.why),
    part("Remedy", rule.remedy),
    part("Source", rule.source),
    rule.references.length ? part("References", references(rule)) : [],
  );
}

function evidence(finding) {
  return h(
    `ul.evidence.${SEVERITIES[finding.severity]}`,
    { "aria-label": "Evidence", tabindex: finding.evidence.length > 8 ? 0 : null },
    finding.evidence.length ? finding.evidence.map((item) => h("li", bdi(item))) : h("li", "No evidence was given."),
  );
}

function expiry(until) {
  const days = Math.floor((Date.parse(until) - Date.parse(data.run.finished.slice(0, 10))) / 864e5);
  if (!/^\d{4}-\d\d-\d\d$/.test(until) || isNaN(days)) return [until ? h("span", "until ", until) : "no end"];
  const mark =
    days < 0
      ? tag(`expired ${count(-days, "day")} ago`, "tag.alert")
      : days <= SOON_DAYS
        ? tag(days ? `expires in ${count(days, "day")}` : "expires today", "tag.warn")
        : null;
  return ["until ", h("time", until), " ", mark];
}

// brief: for paper, where the rule is explained once, elsewhere
function article(finding, host, here, brief = false) {
  const { rule } = finding,
    weight = SEVERITIES[finding.severity];
  return h(
    "article.finding" + (here ? ".here" : ""),
    { id: here ? "here" : null },
    h(
      "div.side",
      stateOf(finding),
      finding.state === "open" ? null : h("span.label", `${weight} severity`),
      h("a.mono", { href: "#rule/" + encode(rule.id) }, rule.id),
      host.fresh.has(rule.id) ? tag("new since last run") : null,
    ),
    h(
      "div",
      h("h3", rule.title),
      evidence(finding),
      finding.waived ? h("p.group", h("b", "Waived: "), bdi(finding.waived), " (", expiry(finding.until), ")") : null,
      brief ? h("p", rule.remedy) : say(rule),
    ),
  );
}
