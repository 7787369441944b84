# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""The filters for the template of a front end."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.edgesec.nanomq.plugins.filter import nanomq_access as filters
from ansible_collections.edgesec.nanomq.plugins.module_utils import _access
from hypothesis import example, given
from hypothesis import strategies as st

CLIENTS = [{"role": "viewer", "common_names": ['a"b\\,c;{}$x']}]


def nginx_reads(text: str) -> tuple[str, str]:
    """(the word, what follows it) as nginx reads a quoted one: ngx_conf_read_token and the copy after it."""
    assert text[0] == '"'
    word, rest = "", text[1:]
    while rest[0] != '"':
        if rest[0] == "\\":
            special = {"t": "\t", "r": "\r", "n": "\n", '"': '"', "'": "'", "\\": "\\"}
            word += special.get(rest[1], rest[:2])
            rest = rest[2:]
        else:
            word, rest = word + rest[0], rest[1:]
    return word, rest[1:]


@given(st.text(st.sampled_from("\\\"'tnr{}$; ~^é#") | st.characters(min_codepoint=32), max_size=30))
@example("\\n")
@example('\\"')
@example("ends\\")
@example('"; evil 1; "')
def test_nginx_reads_what_was_quoted(text):
    assert nginx_reads(filters.nginx_quote(text) + " 1;") == (text, " 1;")


def test_patterns_survive_the_quotes():
    for item in filters.nanomq_access_maps(CLIENTS):
        for pattern in (item["calls"], *item["callers"]):
            assert nginx_reads(filters.nginx_quote("~" + pattern)) == ("~" + pattern, "")


@pytest.mark.parametrize("text", ["a\nb", "\n", "a\r", "\t", "\0", "\x1f", None, 5, b"a", ["a"]])
def test_what_is_no_text_of_one_line_is_not_quoted(text):
    with pytest.raises(AnsibleFilterError, match=r"^nginx_quote: needs a text of one line$"):
        filters.nginx_quote(text)


def test_the_filter_gives_the_maps():
    roles = {"own": ["GET /a"]}
    assert filters.nanomq_access_maps(CLIENTS, roles, ["own"]) == _access.maps(roles, CLIENTS, ["own"])
    assert filters.nanomq_access_maps(CLIENTS, None, None) == _access.maps({}, CLIENTS, [])


def test_every_problem_is_in_the_message():
    with pytest.raises(AnsibleFilterError) as caught:
        filters.nanomq_access_maps([*CLIENTS, {"role": "nobody"}], {"Own": ["/a"]}, ["ghost"])
    message = str(caught.value)
    assert message.startswith("nanomq_access_maps: nanomq_nginx_roles.Own: ")
    for said in ("'/a' is no call", "item 2: there is no role 'nobody'", "item 2: says of nobody", "no role 'ghost'"):
        assert said in message


@pytest.mark.parametrize("clients", [None, "alice", {}, 5])
def test_the_clients_must_be_a_list(clients):
    with pytest.raises(AnsibleFilterError, match="nanomq_nginx_clients: needs a list"):
        filters.nanomq_access_maps(clients)


def test_templates_find_the_filters():
    assert filters.FilterModule().filters() == {
        "nanomq_access_maps": filters.nanomq_access_maps,
        "nginx_quote": filters.nginx_quote,
    }
