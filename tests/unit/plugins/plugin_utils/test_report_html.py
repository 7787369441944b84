# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The page of an audit's report: what hosts say stays text, nothing is lost, and nothing is asked of any network."""

from __future__ import annotations

import base64
import collections
import copy
import hashlib
import html.parser
import json
import re
import unicodedata
from typing import Any

import fleet
import pytest
from ansible_collections.edgesec.nanomq.plugins.plugin_utils import report_html
from hypothesis import given
from hypothesis import strategies as st

# With lone surrogates, which a file name or a client id may hold
ANYTHING = st.text(st.characters(exclude_categories=())) | st.sampled_from(fleet.HOSTILE)
# Two of them side by side are one character to every reader of JSON
TEXTS = ANYTHING.map(lambda text: json.loads(json.dumps(text)))
RULES = st.sampled_from(sorted(fleet.rules()))


class Page(html.parser.HTMLParser):
    """Elements with their attributes, text by element, as a browser would take them apart."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[int, str] = collections.defaultdict(str)
        self.comments: list[str] = []
        self.ended = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.ended = False

    def handle_endtag(self, tag: str) -> None:
        self.ended = True

    def handle_data(self, data: str) -> None:
        if not self.ended:
            self.texts[len(self.elements) - 1] += data

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def scripts(self) -> list[tuple[dict[str, str | None], str]]:
        return [(attrs, self.texts[index]) for index, (tag, attrs) in enumerate(self.elements) if tag == "script"]

    def text_of(self, wanted: str) -> str:
        return next(self.texts[index] for index, (tag, _attrs) in enumerate(self.elements) if tag == wanted)

    def data(self) -> dict[str, Any]:
        return json.loads(next(text for attrs, text in self.scripts() if attrs.get("type") == "application/json"))


def unpack(packed: dict[str, Any]) -> dict[str, Any]:
    """The document that was packed."""
    strings, rules = packed["strings"], [identifier for identifier, _rule in packed["rules"]]
    findings = [
        {
            "id": rules[rule],
            "severity": report_html.SEVERITIES[severity],
            "observed": bool(flags & report_html.OBSERVED),
            "blocking": bool(flags & report_html.BLOCKING),
            "waived": strings[waived],
            "waived_until": strings[until],
            "evidence": [strings[index] for index in evidence],
        }
        for rule, severity, flags, waived, until, evidence in packed["findings"]
    ]
    hosts = [
        {
            "name": strings[name],
            "state": strings[state],
            "reason": strings[reason],
            "grade": grade,
            "version": None if version is None else strings[version],
            "findings": [findings[index] for index in found],
            "passed": [rules[index] for index in packed["passed"][passed]],
        }
        for name, state, reason, grade, version, found, passed in packed["hosts"]
    ]
    difference = packed["difference"]
    if difference:
        pairs = {
            key: [{"host": strings[host], "rule": strings[rule]} for host, rule in difference[key]]
            for key in ("new", "resolved")
        }
        names = {key: [strings[name] for name in difference[key]] for key in ("hosts_added", "hosts_gone")}
        difference = {"since": difference["since"], **pairs, **names}
    same = {key: packed[key] for key in ("format", "format_version", "run", "summary")}
    return {**same, "rules": dict(packed["rules"]), "hosts": hosts, "difference": difference}


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    def host(name: str) -> dict[str, Any]:
        if draw(st.booleans()):
            return fleet.not_audited(name, draw(TEXTS))
        findings = [
            fleet.finding(
                rule,
                draw(st.lists(TEXTS, max_size=3)),
                observed=draw(st.booleans()),
                waived=draw(st.just("") | TEXTS),
                waived_until=draw(TEXTS),
            )
            for rule in draw(st.lists(RULES, unique=True, max_size=4))
        ]
        return fleet.host(name, findings, draw(TEXTS))

    document = fleet.document([host(name) for name in draw(st.lists(TEXTS, unique=True, max_size=4))])
    document["run"]["title"] = draw(TEXTS)
    if draw(st.booleans()):
        pairs = st.lists(st.fixed_dictionaries({"host": TEXTS, "rule": TEXTS}), max_size=3)
        names = st.lists(TEXTS, max_size=3)
        document["difference"] = {
            "since": draw(TEXTS),
            "new": draw(pairs),
            "resolved": draw(pairs),
            "hosts_added": draw(names),
            "hosts_gone": draw(names),
        }
    return document


def map_texts(value: Any, change: Any) -> Any:
    """A document with the texts that come from hosts changed; what is empty means something and stays."""
    if isinstance(value, dict):
        return {key: item if key in ("rules", "format") else map_texts(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [map_texts(item, change) for item in value]
    known = ("audited", "not_audited", *"ABCDF", *report_html.SEVERITIES)
    return (
        change(value)
        if isinstance(value, str) and value and value not in known and value not in fleet.rules()
        else value
    )


# --- nothing is lost --------------------------------------------------------------------------------------------------


@given(documents())
def test_data_is_the_document(document: dict[str, Any]) -> None:
    assert unpack(Page(report_html.render(document)).data()) == document


@pytest.mark.parametrize("document", [fleet.fleet(1), fleet.fleet(150), fleet.hostile(), fleet.document([])])
def test_data_is_the_document_of_a_fleet(document: dict[str, Any]) -> None:
    untouched = copy.deepcopy(document)

    assert unpack(Page(report_html.render(document)).data()) == document
    assert document == untouched


def test_rule_that_the_catalogue_lacks_is_kept() -> None:
    document = fleet.fleet(1)
    document["hosts"][0]["findings"][0]["id"] = "NMQ-NEW-001"
    document["hosts"][0]["passed"][0] = "NMQ-NEW-002"

    packed = Page(report_html.render(document)).data()
    assert unpack(packed)["hosts"] == document["hosts"]
    assert dict(packed["rules"])["NMQ-NEW-001"] == {"severity": document["hosts"][0]["findings"][0]["severity"]}


def test_big_fleet_is_small() -> None:
    page = report_html.render(fleet.fleet(2000)).encode()

    assert len(page) < 4e6
    data = Page(page.decode()).data()
    assert len(set(data["strings"])) == len(data["strings"])


def test_fleet_as_it_was_shipped_is_small_though_every_host_is_its_own() -> None:
    hosts = [
        fleet.host(
            f"edge-{number}",
            [fleet.finding(rule, [f"{text} {number}" for text in fleet.EVIDENCE[rule]]) for rule in fleet.SHIPPED],
        )
        for number in range(2000)
    ]
    assert len(report_html.render(fleet.document(hosts)).encode()) < 4e6


# --- what hosts say is text -------------------------------------------------------------------------------------------


@given(documents())
def test_no_element_comes_from_data(document: dict[str, Any]) -> None:
    page, harmless = Page(report_html.render(document)), Page(report_html.render(map_texts(document, lambda text: "x")))

    def elements(of: Page) -> list[Any]:
        return [(tag, attrs) for tag, attrs in of.elements if attrs != {"class": "ctl"} and tag != "meta"]

    assert page.comments == []
    assert sorted(map(repr, elements(page))) == sorted(map(repr, elements(harmless)))
    assert [text for attrs, text in page.scripts() if not attrs.get("type")] == [
        text for attrs, text in harmless.scripts() if not attrs.get("type")
    ]


@given(documents())
def test_page_can_be_written_and_holds_no_control(document: dict[str, Any]) -> None:
    page = report_html.render(document)

    page.encode("utf-8")
    odd = {character for character in page if unicodedata.category(character)[0] == "C"} - {"\n"}
    assert odd == set()
    assert not re.search("[\u2028\u2029]", page)


@given(TEXTS)
def test_visible_text_shows_everything(text: str) -> None:
    seen = html.unescape(re.sub("</?span[^>]*>", "", report_html.visible(text)))

    assert not any(unicodedata.category(character)[0] in "CZ" and character != " " for character in seen)
    assert "<" not in re.sub(r'<span class="ctl">\\u[0-9a-f{}]+</span>', "", report_html.visible(text))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\u202eb", r"a\u202eb"),
        ("\x00\x1b\x7f\x85", r"\u0000\u001b\u007f\u0085"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\u{e0041}"),
        ("a\u00a0b c", r"a\u00a0b c"),
        ("\u3164\u034f\ufe0f", r"\u3164\u034f\ufe0f"),
        ("pl\u00e4in \u96ea \U0001f600", "pl\u00e4in \u96ea \U0001f600"),
    ],
)
def test_hidden_characters_are_spelt_out(text: str, shown: str) -> None:
    assert re.sub("</?span[^>]*>", "", report_html.visible(text)) == shown


@pytest.mark.parametrize("text", fleet.HOSTILE)
def test_hostile_names_are_readable_without_a_script(text: str) -> None:
    document = fleet.document([fleet.host(text, [fleet.finding("NMQ-NET-001", ["x"])])])
    static = report_html.render(document).split('<div id="static">')[1].split("</div>")[0]

    assert str(report_html.visible(text)) in static


@pytest.mark.parametrize("text", ["</script>", "<!--<script>", "]]>", "&lt;", "\u2028\u2029\x00"])
def test_embedded_json_ends_no_element(text: str) -> None:
    embedded = report_html.embed({text: [text]})

    assert re.fullmatch("[ -~]*", embedded)
    assert not set("<>&") & set(embedded)
    assert json.loads(embedded) == {text: [text]}


# --- nothing from anywhere else ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", [fleet.fleet(5), fleet.hostile()])
def test_page_names_no_other_place(document: dict[str, Any]) -> None:
    page = Page(report_html.render(document))

    addresses = {"href", "src", "srcset", "action", "formaction", "poster", "data", "ping", "background", "style"}
    named = [attrs[name] for _tag, attrs in page.elements for name in addresses & set(attrs)]
    assert named == ["#main"]
    assert not {"link", "iframe", "img", "object", "embed", "base", "form"} & {tag for tag, _attrs in page.elements}
    ours = page.text_of("style") + "".join(text for attrs, text in page.scripts() if not attrs.get("type"))
    assert not re.search(r"(?i)https?:|url\(|@import|@font-face|fetch\(|XMLHttp|WebSocket|sendBeacon|import\(", ours)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(|DOMParser", ours)


def test_policy_admits_what_is_in_the_page_and_nothing_else() -> None:
    page = Page(report_html.render(fleet.hostile()))
    policy = next(
        attrs["content"] for _tag, attrs in page.elements if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    directives = {name: values for name, *values in (part.split() for part in (policy or "").split(";"))}

    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    assert directives == {
        "default-src": ["'none'"],
        "style-src": [digest(page.text_of("style"))],
        "script-src": [digest(text) for attrs, text in page.scripts() if not attrs.get("type")],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
        "require-trusted-types-for": ["'script'"],
        "trusted-types": ["'none'"],
    }


# --- what it says without a script ------------------------------------------------------------------------------------


def headline(*hosts: dict[str, Any]) -> str:
    return report_html.headline(fleet.document(list(hosts)))


def host(name: str, *rules: str, **more: Any) -> dict[str, Any]:
    return fleet.host(name, [fleet.finding(rule, ["x"], **more) for rule in rules])


def test_headline_says_what_the_grade_is_about() -> None:
    clean, missing = host("a"), fleet.not_audited("z", "unreachable")

    assert headline() == headline(missing) == "No host was audited, so nothing is known about this fleet."
    assert headline(clean) == "Every rule holds, or is waived."
    assert (
        headline(clean, host("b", "NMQ-NET-001", waived="because")) == "Every rule holds on every host, or is waived."
    )
    assert headline(clean, missing) == "1 host was not audited: the grade can be no better than C."
    assert headline(clean, host("b", "NMQ-NET-001")) == "Critical findings are open on 1 of 2 audited hosts."
    assert headline(clean, host("b", "NMQ-NET-005")) == "Low findings are open on 1 of 2 audited hosts."
    assert headline(host("b", "NMQ-NET-006")) == "High findings are open."
    assert headline(host("b", "NMQ-NET-001", "NMQ-TLS-001", observed=False), clean, missing) == (
        "Rules of critical severity could not be observed on 1 of 2 audited hosts."
    )


def test_worst_hosts_come_first_and_no_more_than_fit() -> None:
    hosts = [host(f"h-{number:03d}", "NMQ-NET-002") for number in range(150)]
    hosts += [host("worst", "NMQ-NET-001", "NMQ-NET-002"), host("medium", "NMQ-NET-003")]
    hosts += [host("unseen", "NMQ-NET-001", observed=False), host("waived", "NMQ-NET-001", waived="because")]
    hosts += [fleet.not_audited(f"z-{number:03d}", "unreachable") for number in range(150)]
    static = report_html.render(fleet.document(hosts)).split('<div id="static">')[1].split('type="application/json"')[0]
    names = re.findall('<th scope="row">((?:h|z)-[0-9]+|worst|medium|unseen|waived)</th>', static)

    assert names[:3] == ["worst", "unseen", "h-000"]
    assert "medium" not in names
    assert "waived" not in names
    assert len(names) == 2 * report_html.MOST_ROWS
    assert "NMQ-NET-001 (not observed)" in static
    assert "And 52 more hosts." in static
    assert "And 50 more hosts." in static
