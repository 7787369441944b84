// Copyright: Contributors to the edgesec.nanomq collection
// GNU General Public License v3.0+ (see LICENSE)
// The document, unpacked: see pack() in report_html.py.

const OBSERVED = 1; // as report_html.py has it

const data = JSON.parse($("data").textContent);
const strings = data.strings,
  summary = data.summary;
const rules = data.rules.map(([id, rule], index) => ({
  index,
  id,
  severity: rule.severity || "low",
  layer: rule.layer || "",
  title: rule.title || id,
  why: rule.why || "",
  remedy: rule.remedy || "",
  source: rule.source || "",
  references: rule.references || [],
  open: [],
  unseen: [],
  waived: [],
  passed: 0,
}));
const ruleOf = new Map(rules.map((rule) => [rule.id, rule]));
const findings = data.findings.map(([rule, severity, flags, waived, until, evidence]) => ({
  rule: rules[rule],
  severity,
  waived: strings[waived],
  until: strings[until],
  evidence: evidence.map((index) => strings[index]),
  state: strings[waived] ? "waived" : flags & OBSERVED ? "open" : "unseen",
}));
const byWeight = (a, b) => b.severity - a.severity || compare(a.rule.id, b.rule.id);
const hosts = data.hosts.map(([name, state, reason, grade, version, found, passed], index) => {
  const host = {
    index,
    name: strings[name],
    audited: strings[state] === "audited",
    reason: strings[reason],
    grade,
    version: version === null ? "" : strings[version],
    passed: data.passed[passed],
    fresh: new Set(),
    resolved: [],
    findings: found.map((at) => findings[at]).sort(byWeight),
    counts: [0, 0, 0, 0],
    unseen: 0,
    waived: 0,
  };
  host.route = encode(host.name);
  for (const finding of host.findings) {
    if (finding.state === "open") host.counts[finding.severity]++;
    else host[finding.state]++;
    finding.rule[finding.state].push([host, finding]);
  }
  for (const rule of host.passed) rules[rule].passed++;
  return host;
});
const hostAt = new Map(hosts.map((host) => [host.route, host])),
  hostOf = new Map(hosts.map((host) => [host.name, host]));
const difference = data.difference && {
  since: data.difference.since,
  new: data.difference.new.map(([host, rule]) => [strings[host], strings[rule]]),
  resolved: data.difference.resolved.map(([host, rule]) => [strings[host], strings[rule]]),
  added: data.difference.hosts_added.map((name) => strings[name]),
  gone: data.difference.hosts_gone.map((name) => strings[name]),
};
for (const [name, rule] of difference ? difference.new : []) hostOf.get(name)?.fresh.add(rule);
for (const [name, rule] of difference ? difference.resolved : []) hostOf.get(name)?.resolved.push(rule);
const missing = hosts.filter((host) => !host.audited);
// As if a host that nobody could look at were of grade C: worse than some, and it keeps the fleet from a better one.
const rank = (host) => (host.audited ? GRADES.indexOf(host.grade) * 2 : 5);
const worst = (a, b) =>
  rank(a) - rank(b) ||
  b.counts[3] - a.counts[3] ||
  b.counts[2] - a.counts[2] ||
  b.unseen - a.unseen ||
  b.counts[1] - a.counts[1] ||
  b.counts[0] - a.counts[0] ||
  a.index - b.index;
