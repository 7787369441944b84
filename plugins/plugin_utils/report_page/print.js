// Copyright: Contributors to the edgesec.nanomq collection
// GNU General Public License v3.0+ (see LICENSE)
// On paper a host's or a rule's page is as it is. The fleet becomes a report: a page a host, or a summary of many.

const MOST_SHEETS = 60; // hosts with a page of their own
const MOST_PRINTED_ROWS = 500;

function sheets() {
  const bad = [...hosts].sort(worst).filter((host) => host.counts.some(Boolean) || host.unseen);
  const lists = [];
  const broken = [...rules].sort(bySeverity).filter((rule) => rule.open.length + rule.unseen.length);
  if (broken.length) {
    lists.push(
      h(
        "section.sheet",
        h("h2", "Rules that are broken, or could not be observed"),
        broken.map((rule) =>
          h(
            "article.finding",
            h(
              "div.side",
              severity(rule.severity, capital(rule.severity)),
              h("span.mono", rule.id),
              rule.open.length ? h("span.label", `open on ${count(rule.open.length, "host")}`) : null,
              rule.unseen.length ? h("span.label", `not observed on ${count(rule.unseen.length, "host")}`) : null,
            ),
            h("div", h("h3", rule.title), say(rule)),
          ),
        ),
      ),
    );
  }
  if (missing.length) {
    lists.push(
      h(
        "section.sheet",
        h("h2", "Hosts not audited"),
        lines(
          ["Host", "Reason"],
          missing.slice(0, MOST_PRINTED_ROWS).map((host) => [bdi(host.name), bdi(host.reason)]),
        ),
        rest(missing.length),
      ),
    );
  }
  if (bad.length <= MOST_SHEETS) {
    return [
      ...lists,
      ...bad.map((host) =>
        h(
          "section.sheet.new",
          h("div.title", badge(host.grade), h("h1", bdi(host.name))),
          host.findings
            .filter((finding) => finding.state !== "waived")
            .map((finding) => article(finding, host, false, true)),
        ),
      ),
    ];
  }
  lists.push(
    h(
      "section.sheet",
      h("h2", "Hosts with open findings"),
      lines(
        ["Grade", "Host", "Version", "Critical", "High", "Medium", "Low", "Not observed"],
        bad
          .slice(0, MOST_PRINTED_ROWS)
          .map((host) => [
            badge(host.grade),
            bdi(host.name),
            bdi(host.version),
            host.counts[3],
            host.counts[2],
            host.counts[1],
            host.counts[0],
            host.unseen,
          ]),
      ),
      rest(bad.length),
      h("p.muted", `The evidence of more than ${MOST_SHEETS} hosts is not printed here: print the page of a host.`),
    ),
  );
  return lists;
}
const rest = (number) =>
  number > MOST_PRINTED_ROWS ? h("p", `And ${count(number - MOST_PRINTED_ROWS, "more host")}.`) : null;
const lines = (head, rows) =>
  h(
    "table.list",
    h(
      "thead",
      h(
        "tr",
        head.map((text) => h("th", { scope: "col" }, text)),
      ),
    ),
    h(
      "tbody",
      rows.map((row) =>
        h(
          "tr",
          row.map((cell) => h(typeof cell === "number" ? "td.num" : "td", cell)),
        ),
      ),
    ),
  );
function printing(on) {
  const whole = on && $("page").hidden;
  document.documentElement.classList.toggle("printing", whole);
  if (!on) $("print").replaceChildren();
  else if (whole && !$("print").firstChild) $("print").append(...sheets());
  if (whole) $("fleet").hidden = false;
  else if (!on) $("fleet").hidden = view !== "hosts";
}
window.addEventListener("beforeprint", () => printing(true));
window.addEventListener("afterprint", () => printing(false));
matchMedia("print").addEventListener("change", (event) => printing(event.matches));
