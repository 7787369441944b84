# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ways around the roles: judged by what the broker received, not by what the front end answered."""

from __future__ import annotations

import json
import posixpath
import re
import urllib.parse

import attempts
import front
import pytest
import scenario
from scenario import USERS

#: All that a viewer may have, as the broker sees it.
VIEWERS = re.compile(
    "/api/v4/(metrics|prometheus|nodes|brokers|topic-tree|clients|clients/[^/]+|clients/username/[^/]+"
    "|subscriptions|subscriptions/[^/]+)"
)
FEWEST = 60


def is_a_viewers(request: front.Request) -> bool:
    """Whether a viewer may ask this, however often somebody decodes or tidies its path."""
    path = request.path.removesuffix("/")
    for _decoding in range(4):
        if posixpath.normpath(path) != path or not VIEWERS.fullmatch(path) or re.search(r"[\x00-\x1f\x7f\\]", path):
            return False
        path = urllib.parse.unquote(path, errors="surrogateescape")
    return request.method == "GET"


@pytest.fixture
def state(broker):
    """What the broker is, as its own configuration and its process tell; the same after the test."""

    def observed() -> dict:
        command = "curl --silent --max-time 5 --header %s http://127.0.0.1:8081/api/v4/configuration"
        text = broker.check_output(command, f"Authorization: Bearer {scenario.token(600)}")
        return {"configuration": json.loads(text)["data"], "pid": front.main_pid(broker)}

    before = observed()
    assert before["configuration"]["basic"]["allow_anonymous"] is False
    yield
    assert observed() == before


def secrets_in(answer: str) -> list[str]:
    return [word for word in (*USERS.values(), "PRIVATE KEY", "allow_anonymous", "http_server") if word in answer]


@pytest.mark.parametrize("certificate", ["viewer", None])
def test_no_request_of_http_1_gets_around_the_roles(broker, recorder, state, certificate):
    texts = attempts.raw(broker.name, scenario.token(600))
    assert len(set(texts)) >= FEWEST
    recorder.streams()
    tried = [front.to(broker, "raw", certificate=certificate, data=text) for text in texts]
    answers = front.attempt(tried)
    streams = recorder.streams()
    received = [request for stream in streams for request in front.parse(stream)]
    if certificate is None:
        assert received == []
    else:
        # Some of them are harmless: that those arrived shows that the others were refused, not lost.
        assert len(received) >= 20
        assert {request.header("host") for request in received} == {"127.0.0.1:8081"}
    assert [request for request in received if not is_a_viewers(request)] == []
    assert [text[:200] for text, answer in zip(texts, answers, strict=True) if "error" in answer] == []
    assert [text[:200] for text, answer in zip(texts, answers, strict=True) if secrets_in(answer["answer"])] == []


@pytest.mark.parametrize("certificate", ["viewer", None])
def test_no_request_of_http_2_gets_around_the_roles(broker, recorder, state, certificate):
    streams = attempts.streams(broker.name, scenario.token(600))
    plain = {
        "headers": [[":method", "GET"], [":scheme", "https"], [":authority", broker.name], [":path", attempts.ALLOWED]]
    }
    recorder.streams()
    answers = front.attempt(
        [front.to(broker, "h2", certificate=certificate, streams=[stream]) for stream in [plain, *streams]]
    )
    received = recorder.requests()
    assert [answer for answer in answers if "error" in answer] == []
    if certificate is None:
        assert answers[0]["answers"] == ["403"]
        assert received == []
    else:
        assert answers[0]["answers"] == ["401"]
        assert len(received) >= 5
    assert [request for request in received if not is_a_viewers(request)] == []


def test_streams_of_one_connection_are_judged_one_by_one(broker, recorder):
    """What one stream may, another of the same connection may not for that."""
    paths = [attempts.ALLOWED, attempts.SECRET, "/api/v4/nodes", "/api/v4/rules", "/x", attempts.ALLOWED]
    streams = [
        {"headers": [[":method", "GET"], [":scheme", "https"], [":authority", broker.name], [":path", path]]}
        for path in paths
    ]
    recorder.streams()
    (answer,) = front.attempt([front.to(broker, "h2", certificate="viewer", streams=streams)])
    assert answer["answers"] == ["401", "403", "401", "403", "404", "401"]
    assert sorted(request.path for request in recorder.requests()) == [
        "/api/v4/metrics",
        "/api/v4/metrics",
        "/api/v4/nodes",
    ]


def test_the_tests_eye_sees_what_must_not_be():
    """The judge itself: what would be a way around is not taken for a viewer's."""
    good = b"GET /api/v4/metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    assert [is_a_viewers(request) for request in front.parse(good * 2)] == [True, True]
    for target in (
        "/api/v4/configuration",
        "/api/v4/clients/..%2fconfiguration",
        "/api/v4/clients/%252e%252e",
        "/api/v4/metrics/../configuration",
        "/api/v4//metrics",
        "/api/v4/clients/..\\configuration",
        "/api/v4/clients/x%00",
    ):
        (request,) = front.parse(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert not is_a_viewers(request), target
    for stream in (
        b"GET /api/v4/metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
        b"GET /api/v4/metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /api/v4/metrics HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\nx",
        b"GET /api/v4/metrics HTTP/1.1\r\nHost: x\r\n y\r\n\r\n",
        b"GET /api/v4/metrics HTTP/1.1\nHost: x\n\n",
        b"GET /api/v4/metrics HTTP/1.1\r\nHost: x\r\n\r\nx",
        b"GET /api/v4/metrics /x HTTP/1.1\r\nHost: x\r\n\r\n",
    ):
        with pytest.raises(ValueError, match="x"):
            front.parse(stream)
