# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Roles of a front end: what a pattern lets by is read again by a reader of its own, and must mean what was allowed."""

from __future__ import annotations

import itertools
import random
import re
import subprocess
import urllib.parse

import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils import _access as access
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

OWN = {"own": ("GET /a", "PUT /a/*", "POST /*/b", "DELETE /a.b/~c/*/*")}
EVERY = access.roles(OWN)
HAZARDS = sorted({call for calls in access.HAZARDS.values() for call in calls})


def lets_by(calls, request: str) -> bool:
    """As nginx asks: a search, without any option."""
    return re.search(access.calls_pattern(calls), request) is not None


def read(request: str) -> tuple[str, list[bytes]]:
    """(method, decoded segments below the prefix) of a request, as strictly as anybody could read it."""
    method, target = request.split(" ")
    path = target.split("?")[0]
    assert path.startswith("/api/v4/")
    steps = path[len("/api/v4/") :].removesuffix("/").split("/")
    decoded = [urllib.parse.unquote_to_bytes(step) for step in steps]
    for step in decoded:
        assert step not in (b"", b".", b"..")
        assert not set(step) & set(b"/%\\;?#\0\r\n")
    return method, decoded


def is_call(request: tuple[str, list[bytes]], call: str) -> bool:
    method, path = call.split(" ")
    wanted = path[1:].split("/")
    return (
        request[0] == method
        and len(request[1]) == len(wanted)
        and all(want == "*" or want.encode() == step for want, step in zip(wanted, request[1]))
    )


def judge(role: str, request: str) -> None:
    """What was let by is one of the role's calls, and without a role's own doing no hazard."""
    meant = read(request)
    assert any(is_call(meant, call) for call in EVERY[role])
    if role != "own":
        assert not [hazard for hazard in HAZARDS if is_call(meant, hazard)]


# --- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", EVERY)
def test_what_a_pattern_lets_by_is_a_call_of_the_role(role):
    @settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.from_regex(access.calls_pattern(EVERY[role])))
    def check(request):
        judge(role, request)

    check()


ENCODED = st.sampled_from(["%2f", "%2F", "%2e", "%25", "%00", "%0a", "%", "%2", "%c3%a9", "%20"])
PLAIN = st.sampled_from(["/", "//", "/.", "/..", "\\", ";", "?", "&", "#", " ", "\n", "\r", "\0", "\x7f", "*", "é"])
PIECES = st.one_of(ENCODED, PLAIN, st.sampled_from(["a", "A", "api", "reload", "/configuration"]))


@pytest.mark.parametrize("role", EVERY)
def test_what_is_put_into_a_good_request_is_refused_or_harmless(role):
    good = st.sampled_from(EVERY[role]).map(lambda call: call.replace(" ", " /api/v4").replace("*", "x1"))

    @settings(max_examples=300, deadline=None)
    @given(good, st.lists(st.tuples(st.integers(0, 60), PIECES), min_size=1, max_size=3))
    def check(request, insertions):
        for place, piece in insertions:
            request = request[:place] + piece + request[place:]
        if lets_by(EVERY[role], request):
            judge(role, request)

    check()


SEGMENT = st.text("abzABZ019_.~:@+=,-", min_size=1, max_size=8).filter(lambda text: text not in (".", ".."))


@given(st.data(), st.sampled_from(sorted(EVERY)))
def test_every_call_of_a_role_is_let_by(data, role):
    call = data.draw(st.sampled_from(EVERY[role]))
    request = re.sub(r"\*", lambda _star: data.draw(SEGMENT), call).replace(" ", " /api/v4")
    query = data.draw(st.sampled_from(["", "/", "?", "?a=b&c=d", "/?limit=10", "?x=%20%c3%a9"]))
    assert lets_by(EVERY[role], request + query)


@pytest.mark.parametrize(
    "target",
    [
        "/api/v4//clients/x",
        "/api/v4/clients//x",
        "/api/v4/clients/x//",
        "//api/v4/clients/x",
        "/api/v4/./clients/x",
        "/api/v4/clients/.",
        "/api/v4/clients/..",
        "/api/v4/clients/../",
        "/api/v4/clients/..?x",
        "/api/v4/clients/../configuration",
        "/api/v4/clients/%2e%2e",
        "/api/v4/clients/%2E",
        "/api/v4/clients/x%2fy",
        "/api/v4/clients/x%2Fy",
        "/api/v4%2fclients/x",
        "/api/v4/clients/x%25",
        "/api/v4/clients/x%252fy",
        "/api/v4/clients/x\\y",
        "/api/v4/clients/x%5cy",
        "/api/v4/clients/x;y",
        "/api/v4/clients/x%3by",
        "/api/v4/clients;v=1/x",
        "/api/v4/clients/x%00",
        "/api/v4/clients/x%0d%0ay",
        "/api/v4/clients/x%0a",
        "/api/v4/clients/x%",
        "/api/v4/clients/x%8",
        "/api/v4/clients/x#y",
        "/api/v4/clients/x y",
        "/api/v4/clients/x ",
        "/api/v4/clients/x\n",
        "/api/v4/clients/x?a\n",
        "/api/v4/clients/x\t",
        "/api/v4/clients/é",
        "/api/v4/clients/x?a/b",
        "/api/v4/clients/x?a%2fb",
        "/api/v4/clients/x?a?b",
        "/api/v4/clients/x/y",
        "/api/v4/clients/username",
        "/api/v4/clients/username/",
        "/API/v4/clients/x",
        "/api/V4/clients/x",
        "/api/v4/Clients/x",
        "/api/v4/clientsx",
        "/api/v4/%63lients/x",
        "/api/v4clients/x",
        "/api/v4/",
        "/api/v4",
        "/",
        "*",
        "",
        "http://localhost/api/v4/clients/x",
        "/x/api/v4/clients/x",
        "api/v4/clients/x",
    ],
)
def test_what_two_readers_could_read_differently_is_refused(target):
    assert lets_by(["GET /clients/*"], "GET /api/v4/clients/x")
    if target.rstrip("/") != "/api/v4/clients/username":  # which is a client of that name
        assert not lets_by(["GET /clients/*"], f"GET {target}")
    assert not lets_by(["GET /clients/username/*"], f"GET {target}")


@pytest.mark.parametrize(
    "method", ["get", "Get", "HEAD", "POST", "OPTIONS", "XGET", "GETX", "GET GET", " GET", "", "-"]
)
def test_another_method_is_refused(method):
    assert not lets_by(["GET /clients/*"], f"{method} /api/v4/clients/x")


def test_a_literal_dot_of_a_call_is_no_wildcard():
    assert lets_by(["GET /a.b"], "GET /api/v4/a.b")
    assert not lets_by(["GET /a.b"], "GET /api/v4/aXb")


def test_a_role_without_calls_lets_nothing_by():
    for request in ("GET ", "GET /", "GET ?", "GET /?", "GET /api/v4", "GET /api/v4/", "GET /api/v4/brokers"):
        assert not lets_by([], request)


def test_no_ready_made_role_lets_a_hazard_by():
    for role, calls in access.ROLES.items():
        for hazard, end in itertools.product(HAZARDS, ("", "/", "?x=1", "/?x=1")):
            for name in ("auth", "basic", "restart", "stop", "rule:1"):
                request = hazard.replace("*", name).replace(" ", " /api/v4") + end
                assert not lets_by(calls, request), role


# --- covers and hazards -----------------------------------------------------------------------------------------------


def test_covers_agrees_with_what_the_patterns_let_by():
    def all_calls(steps):
        paths = ["/" + "/".join(path) for length in (1, 2, 3) for path in itertools.product(steps, repeat=length)]
        return [f"{method} {path}" for method in ("GET", "PUT") for path in paths]

    requests = [call.replace(" ", " /api/v4") for call in all_calls(["a", "b", "c"])]
    allowed = {call: {r for r in requests if lets_by([call], r)} for call in all_calls(["a", "b", "*"])}
    assert all(allowed.values())
    for one, other in itertools.product(allowed, repeat=2):
        assert access.covers(one, other) == bool(allowed[one] & allowed[other]), (one, other)


@pytest.mark.parametrize("rule", access.HAZARDS)
def test_a_hazard_is_found_in_any_disguise_and_named(rule):
    for call in access.HAZARDS[rule]:
        method, path = call.split(" ")
        disguises = {call, f"{method} " + re.sub(r"/[^/]+", "/*", path), call.replace("*", "auth")}
        for disguise in disguises:
            front = {"roles": {"fine": ["GET /metrics"], "own": ["GET /brokers", disguise]}}
            assert list(access.hazardous(front, rule)) == [f"nanomq_nginx_roles.own: {disguise}"]


def test_the_ready_made_roles_have_no_hazard():
    for rule in access.HAZARDS:
        assert list(access.hazardous({"roles": access.ROLES}, rule)) == []
        assert list(access.hazardous({}, rule)) == []


# --- callers ----------------------------------------------------------------------------------------------------------

NASTY = st.text(st.sampled_from(',=+"\\<>;# CNOUxé€𐀀.*()[]|^$~/'), min_size=1, max_size=12)
VALUE = st.one_of(NASTY, st.text(min_size=1, max_size=20)).filter(
    lambda value: not access.problems({}, [{"role": "viewer", "common_names": [value]}], [])
)
KEY = ec.generate_private_key(ec.SECP256R1())


def openssl_subject(values: list[str]) -> str:
    """What the openssl program makes of a subject of these organizational units."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATIONAL_UNIT_NAME, value) for value in values])
    request = x509.CertificateSigningRequestBuilder(name).sign(KEY, hashes.SHA256())
    done = subprocess.run(
        ["openssl", "req", "-noout", "-subject", "-nameopt", "RFC2253"],
        input=request.public_bytes(serialization.Encoding.PEM),
        capture_output=True,
        timeout=30,
        check=True,
    )
    return done.stdout.decode().removesuffix("\n").removeprefix("subject=")


SINGLE = ["#", " ", "##", "# ", " #", "  ", " x ", "x#", "\\", ",", "=", "~", "\x80", "é", "\U0010ffff", "a\\,b"]


@settings(max_examples=60, deadline=None)
@given(st.lists(VALUE, min_size=1, max_size=16))
def test_a_value_is_written_as_openssl_writes_it(values):
    assert ",".join(f"OU={access.distinguished(value)}" for value in reversed(values)) == openssl_subject(values)


def test_the_ends_of_a_value_are_written_as_openssl_writes_them():
    assert [f"OU={access.distinguished(value)}" for value in SINGLE] == [openssl_subject([v]) for v in SINGLE]


def caller(*names: tuple[str, str], verdict: str = "SUCCESS") -> str:
    return f"{verdict} 0a1b " + ",".join(f"{kind}={access.distinguished(value)}" for kind, value in names)


@settings(max_examples=500)
@given(
    st.lists(st.tuples(st.sampled_from(["CN", "OU", "O", "DC"]), VALUE), max_size=4),
    st.tuples(st.sampled_from(["CN", "OU"]), VALUE),
    st.booleans(),
)
def test_a_pattern_is_of_those_who_have_the_value_and_of_nobody_else(names, wanted, present):
    if present and names:
        wanted = names[0] if names[0][0] in ("CN", "OU") else wanted
    matches = re.search(access.caller_pattern(*wanted), caller(*names)) is not None
    assert matches == (wanted in names)


@given(VALUE, VALUE, st.sampled_from(["{},OU=admins", "OU=admins,{}", "{}\\,OU=admins", "x,OU=admins,{}"]))
def test_a_name_cannot_bring_in_a_unit(value, end, trick):
    names = [("CN", trick.format(value)), ("CN", end + "\\")]
    assert not re.search(access.caller_pattern("OU", "admins"), caller(*names))
    assert re.search(access.caller_pattern("OU", "admins"), caller(*names, ("OU", "admins")))


@pytest.mark.parametrize(
    "subject",
    [
        "SUCCESS 0a CN=bob",
        "SUCCESS 0a CN=alice2",
        "SUCCESS 0a CN=xalice",
        "SUCCESS 0a CN=Alice",
        "SUCCESS 0a cn=alice",
        "SUCCESS 0a XCN=alice",
        r"SUCCESS 0a CN=alice\,x",
        r"SUCCESS 0a O=x\,CN=alice",
        r"SUCCESS 0a O=x\\\,CN=alice",
        "SUCCESS 0a OU=alice",
        # one attribute of a set of several is not what was declared
        "SUCCESS 0a OU=x+CN=alice",
        "SUCCESS 0a CN=alice+OU=x",
        "FAILED:unable to verify 0a CN=alice",
        "FAILED:SUCCESS 0a CN=alice",
        "NONE  ",
        "NONE  CN=alice",
        "SUCCESS  CN=alice",
        "XSUCCESS 0a CN=alice",
    ],
)
def test_another_caller_is_not_taken_for_this_one(subject):
    assert re.search(access.caller_pattern("CN", "alice"), "SUCCESS 0a O=x,CN=alice,DC=y")
    assert not re.search(access.caller_pattern("CN", "alice"), subject)


# --- the maps ---------------------------------------------------------------------------------------------------------

CLIENTS = [
    {"role": "viewer", "common_names": ["alice", "bob"], "organizational_units": ["ops"]},
    {"role": "admin", "fingerprints": ["AA:" * 19 + "AA"]},
    {"role": "viewer", "common_names": ["bob", "carol"]},
    {"role": "own", "organizational_units": ["ops"]},
]


def test_the_maps_hold_the_roles_that_somebody_has_and_no_other():
    maps = access.maps(OWN, CLIENTS, ["publisher"])
    assert [item["name"] for item in maps] == ["admin", "own", "publisher", "viewer"]
    assert [item["calls"] for item in maps] == [access.calls_pattern(EVERY[item["name"]]) for item in maps]
    assert maps[0]["callers"] == ["^SUCCESS " + "aa" * 20 + " "]
    assert maps[2]["callers"] == ["^NONE "]
    assert len(maps[3]["callers"]) == 4
    assert access.maps({}, [], []) == []


@given(st.randoms())
def test_the_order_of_a_declaration_changes_no_map(generator: random.Random):
    clients = [
        {key: generator.sample(value, len(value)) if isinstance(value, list) else value for key, value in item.items()}
        for item in generator.sample(CLIENTS, len(CLIENTS))
    ]
    shuffled = access.maps(OWN, clients, generator.sample(["publisher", "viewer"], 2))
    assert shuffled == access.maps(OWN, CLIENTS, ["viewer", "publisher"])


def test_a_declared_role_takes_the_place_of_a_ready_made_one():
    (item,) = access.maps({"viewer": ["GET /nodes"]}, [{"role": "viewer", "common_names": ["a"]}], [])
    assert re.search(item["calls"], "GET /api/v4/nodes")
    assert not re.search(item["calls"], "GET /api/v4/brokers")


def test_anonymous_roles_are_of_callers_without_a_certificate_alone():
    (item,) = access.maps({}, [], ["viewer"])
    (pattern,) = item["callers"]
    assert re.search(pattern, "NONE  ")
    for other in ("SUCCESS 0a CN=NONE ", "FAILED:NONE 0a CN=x", "NONEX ", " NONE "):
        assert not re.search(pattern, other)


def test_a_fingerprint_is_of_one_certificate_alone():
    (item,) = access.maps({}, [{"role": "viewer", "fingerprints": ["ab" * 20]}], [])
    (pattern,) = item["callers"]
    assert re.search(pattern, f"SUCCESS {'ab' * 20} CN=x")
    for other in (f"SUCCESS {'ab' * 21} CN=x", f"FAILED:x {'ab' * 20} CN=x", f"SUCCESS 00 CN={'ab' * 20} "):
        assert not re.search(pattern, other)


# --- problems ---------------------------------------------------------------------------------------------------------

GOOD = {"role": "viewer", "common_names": ["alice"]}
ROLES, ITEM = "nanomq_nginx_roles", "nanomq_nginx_clients, item "
HEX = "ab" * 20


@pytest.mark.parametrize(
    ("declared", "clients", "anonymous", "expected"),
    [
        (["viewer"], [], [], [f"{ROLES}: needs a dictionary"]),
        (None, [], [], [f"{ROLES}: needs a dictionary"]),
        ("x", [], [], [f"{ROLES}: needs a dictionary"]),
        ({"Viewer": ["GET /a"]}, [], [], [f"{ROLES}.Viewer: a role's name"]),
        ({"a-b": ["GET /a"]}, [], [], [f"{ROLES}.a-b: a role's name"]),
        ({"a\n": ["GET /a"]}, [], [], ["a role's name"]),
        ({"é": ["GET /a"]}, [], [], [f"{ROLES}.é: a role's name"]),
        ({"a" * 33: ["GET /a"]}, [], [], ["a role's name"]),
        ({5: ["GET /a"]}, [], [], [f"{ROLES}.5: a role's name"]),
        ({None: ["GET /a"]}, [], [], [f"{ROLES}.None: a role's name"]),
        ({"own": "GET /a"}, [], [], [f"{ROLES}.own: needs a list of calls"]),
        ({"own": {"GET /a": 1}}, [], [], [f"{ROLES}.own: needs a list of calls"]),
        ({"own": None}, [], [], [f"{ROLES}.own: needs a list of calls"]),
        ({"own": 5}, [], [], [f"{ROLES}.own: needs a list of calls"]),
        ({"own": ["/a"]}, [], [], [f"{ROLES}.own: '/a' is no call"]),
        ({"own": ["GET a"]}, [], [], ["'GET a' is no call"]),
        ({"own": ["GET  /a"]}, [], [], ["is no call"]),
        ({"own": ["GET /a/"]}, [], [], ["is no call"]),
        ({"own": ["GET /a//b"]}, [], [], ["is no call"]),
        ({"own": ["GET /a/.."]}, [], [], ["is no call"]),
        ({"own": ["GET /./a"]}, [], [], ["is no call"]),
        ({"own": ["GET /a*"]}, [], [], ["is no call"]),
        ({"own": ["GET /a?b"]}, [], [], ["is no call"]),
        ({"own": ["GET /a|.*"]}, [], [], ["is no call"]),
        ({"own": ["GET /a\n"]}, [], [], ["is no call"]),
        ({"own": ["GET /é"]}, [], [], ["is no call"]),
        ({"own": ["GET /%61"]}, [], [], ["is no call"]),
        ({"own": ["get /a"]}, [], [], ["is no call"]),
        ({"own": [None, 5]}, [], [], ["None is no call", "5 is no call"]),
        ({"own": ["PATCH /a"]}, [], [], [f"{ROLES}.own: 'PATCH /a': the method must be one of GET, POST, PUT, DELETE"]),
        ({}, None, [], ["nanomq_nginx_clients: needs a list"]),
        ({}, {"role": "viewer"}, [], ["nanomq_nginx_clients: needs a list"]),
        ({}, "viewer", [], ["nanomq_nginx_clients: needs a list"]),
        ({}, [GOOD, "alice"], [], [f"{ITEM}2: needs a dictionary"]),
        ({}, [GOOD, None], [], [f"{ITEM}2: needs a dictionary"]),
        ({}, [{"common_names": ["a"]}], [], [f"{ITEM}1: there is no role None; known are admin,"]),
        ({"own": ["GET /a"]}, [{**GOOD, "role": "veiwer"}], [], [f"{ITEM}1: there is no role 'veiwer'; known are"]),
        ({}, [{**GOOD, "role": ["viewer"]}], [], [f"{ITEM}1: there is no role ['viewer']"]),
        ({}, [{**GOOD, "role": {}}], [], [f"{ITEM}1: there is no role {{}}"]),
        ({}, [{**GOOD, "common_name": "a"}], [], [f"{ITEM}1: there is no common_name; known are role, common_names"]),
        ({}, [{"role": "viewer"}], [], [f"{ITEM}1: says of nobody"]),
        ({}, [{"role": "viewer", "common_names": []}], [], [f"{ITEM}1: says of nobody"]),
        ({}, [{"role": "viewer", "common_names": "alice"}], [], [f"{ITEM}1: common_names needs a list"]),
        ({}, [{"role": "viewer", "fingerprints": {HEX: 1}}], [], [f"{ITEM}1: fingerprints needs a list"]),
        ({}, [{"role": "viewer", "common_names": [""]}], [], [f"{ITEM}1: common_names: '' is not a text"]),
        ({}, [{"role": "viewer", "common_names": [42]}], [], [f"{ITEM}1: common_names: 42 is not a text"]),
        ({}, [{"role": "viewer", "common_names": [None]}], [], ["None is not a text"]),
        ({}, [{"role": "viewer", "organizational_units": ["a\nb"]}], [], [f"{ITEM}1: organizational_units: 'a\\nb'"]),
        ({}, [{"role": "viewer", "common_names": ["a\x7f"]}], [], ["is not a text"]),
        ({}, [{"role": "viewer", "common_names": ["\ud800"]}], [], ["is not a text"]),
        ({}, [{"role": "viewer", "common_names": ["a" * 65]}], [], ["at most 64 characters"]),
        ({}, [{"role": "viewer", "fingerprints": ["ab" * 32]}], [], [f"{ITEM}1: fingerprints: 'abab"]),
        ({}, [{"role": "viewer", "fingerprints": ["zz" * 20]}], [], ["is not a SHA-1 fingerprint, 40 hexadecimal"]),
        ({}, [{"role": "viewer", "fingerprints": [HEX + "\n"]}], [], ["fingerprints"]),
        ({}, [], None, ["nanomq_nginx_anonymous_roles: needs a list of roles"]),
        ({}, [], "viewer", ["nanomq_nginx_anonymous_roles: needs a list of roles"]),
        ({}, [], ["nobody"], ["nanomq_nginx_anonymous_roles: there is no role 'nobody'"]),
        ({}, [], [{"viewer": 1}], ["nanomq_nginx_anonymous_roles: there is no role {'viewer': 1}"]),
        (["x"], ["y"], "z", [f"{ROLES}:", f"{ITEM}1:", "nanomq_nginx_anonymous_roles:"]),
    ],
)
def test_every_problem_is_named_with_its_variable(declared, clients, anonymous, expected):
    found = access.problems(declared, clients, anonymous)
    assert len(found) == len(expected), found
    for problem, said in zip(found, expected):
        assert said in problem
        assert problem.startswith("nanomq_nginx_")


def test_a_good_declaration_has_no_problem():
    assert access.problems(OWN, CLIENTS, ["own", "viewer"]) == []
    assert access.problems({}, [], []) == []
    assert access.problems({"own": ("GET /a",)}, ({"role": "own", "fingerprints": (HEX.upper(),)},), ()) == []


_WORDS = st.sampled_from(
    ["role", "common_names", "organizational_units", "fingerprints", "viewer", "own", HEX, "GET /a", "GET /*/b", "é,"]
)
_JUNK = st.recursive(
    _WORDS | st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_WORDS | st.integers() | st.none(), inner, max_size=3),
    max_leaves=12,
)
_CLIENT = st.fixed_dictionaries(
    {"role": st.sampled_from(["viewer", "admin", "nobody"]), "common_names": st.lists(VALUE, min_size=1, max_size=3)},
    optional={"organizational_units": st.lists(VALUE), "fingerprints": st.lists(st.just(HEX) | _WORDS, max_size=2)},
)


@settings(max_examples=400, deadline=None)
@given(
    st.just({"own": ["GET /a"]}) | _JUNK,
    st.lists(_CLIENT, max_size=3) | st.lists(_CLIENT | _JUNK, max_size=3) | _JUNK,
    st.lists(st.sampled_from(["viewer", "admin"])) | _JUNK,
)
def test_anything_can_be_judged_and_what_has_no_problem_can_be_used(declared, clients, anonymous):
    found = access.problems(declared, clients, anonymous)
    assert all(isinstance(problem, str) for problem in found)
    if found:
        return
    maps = access.maps(declared, clients, anonymous)
    for item in maps:
        re.compile(item["calls"])
        assert item["callers"] == sorted({re.compile(pattern).pattern for pattern in item["callers"]})
