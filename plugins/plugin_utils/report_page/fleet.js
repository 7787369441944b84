// Copyright: Contributors to the edgesec.nanomq collection
// GNU General Public License v3.0+ (see LICENSE)
// The fleet at a glance.

function glance() {
  const line = [
    `${summary.audited.toLocaleString("en")} of ${count(summary.hosts, "host")} audited`,
    `${count(summary.passed, "check")} passed`,
  ];
  const link = (values, node) => h("a", { href: "#hosts?" + new URLSearchParams(values) }, node);
  const numbers = [3, 2, 1, 0].map((level) => {
    const name = SEVERITIES[level];
    return [
      summary.findings[name],
      link(level ? { severity: level, state: "open" } : { state: "open" }, severity(name)),
    ];
  });
  numbers.push([summary.not_observed, link({ state: "unseen" }, h("span.sev.unseen", "not observed"))]);
  numbers.push([summary.waived, h("a", { href: "#waivers" }, h("span.sev.waived", "waived"))]);
  const most = Math.max(...Object.values(summary.grades), summary.not_audited, 1);
  const bar = (grade, number, node) => {
    const fill = h("i." + (grade || "none"));
    fill.style.width = number ? `max(2px, ${(100 * number) / most}%)` : "0";
    return h("li", node, h("div.bar", { "aria-hidden": "true" }, fill), h("b", number));
  };
  return [
    h(
      "div.glance",
      badge(summary.grade),
      h(
        "div",
        h("h1", { tabindex: -1 }, h("span.out", `Fleet grade ${summary.grade || "unknown"}. `), data.headline),
        h("p", line.join(" \u00b7 ")),
      ),
    ),
    h(
      "div.panels",
      h(
        "section",
        h("h2", "Open findings"),
        h(
          "ul.rows",
          numbers.map(([number, node]) => h("li", h("b", number), node)),
        ),
      ),
      h(
        "section",
        h("h2", "Hosts by grade"),
        h(
          "ul.bars",
          GRADES.map((grade) =>
            bar(
              grade,
              summary.grades[grade] || 0,
              h("a", { href: "#hosts?grade=" + grade, "aria-label": `Grade ${grade}` }, badge(grade)),
            ),
          ),
          summary.not_audited
            ? bar("", summary.not_audited, h("a", { href: "#not-audited", "aria-label": "Not audited" }, badge(null)))
            : null,
        ),
      ),
      h("section", h("h2", "Since the last run"), since()),
    ),
  ];
}

function since() {
  if (!difference) return h("p.muted", "There was no earlier run to compare with.");
  const row = (number, one, more = one) => h("li", h("b", number), h("span", number === 1 ? one : more));
  return h(
    "div",
    h(
      "ul.rows",
      row(difference.new.length, "new finding", "new findings"),
      row(difference.resolved.length, "resolved"),
      row(difference.added.length, "host added", "hosts added"),
      row(difference.gone.length, "host gone", "hosts gone"),
    ),
    h("p.label", h("a", { href: "#changes" }, "All changes"), ` since ${moment(difference.since)}`),
  );
}
