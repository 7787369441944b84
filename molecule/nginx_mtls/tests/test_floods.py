# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Floods from one host leave the API answering for another, and do not reach the broker."""

from __future__ import annotations

import concurrent.futures
import json
import time

import front
import pytest

SECONDS = 8
SLOWEST = 2.0  # seconds that a call of somebody else may take meanwhile
LONGEST = 7.0  # seconds that who does not get on with its request may stay
GROWTH = 20 << 20  # bytes by which the broker may grow
METRICS = ("GET", "/api/v4/metrics")
CALLERS = ("viewer", "admin")


def resident(broker) -> int:
    pid = front.main_pid(broker)
    return int(broker.check_output(f"awk '/^VmRSS/ {{ print $2 }}' /proc/{pid}/status")) * 1024


@pytest.fixture
def another(broker) -> str:
    """A client on another host than the flood's."""
    return "neighbour"


@pytest.mark.parametrize(
    ("kind", "count"),
    [("headers", 300), ("body", 300), ("declared", 30), ("streamed", 30), ("open", 1000), ("idle", 1000)],
)
def test_others_are_answered_during_a_flood(broker, another, kind, count):
    before, pid = resident(broker), front.main_pid(broker)
    command = f"python3 {front.ATTACKER}/flood.py {kind} {broker.ipv4} {broker.name} {count} {SECONDS}"
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        flood = pool.submit(front.ssh, "outsider", command)
        time.sleep(2)
        times = []
        while not flood.done() and len(times) < 12:
            began = time.monotonic()
            assert front.statuses(broker, "viewer", [METRICS], another) == [401]
            times.append(time.monotonic() - began)
            time.sleep(0.3)
        result = json.loads(flood.result())
    print(f"{broker.name} {kind}: slowest {max(times):.2f} s of {len(times)}, {result}")
    assert len(times) >= 5
    assert max(times) < SLOWEST
    assert result["opened"] > 0
    assert front.main_pid(broker) == pid
    assert resident(broker) - before < GROWTH
    if kind in ("open", "idle", "headers"):
        assert result["longest"] < LONGEST
    if kind == "body":
        assert result["statuses"].get("429", 0) > 0
    if kind in ("declared", "streamed"):
        assert set(result["statuses"]) <= {"413", "429", "503"}
        assert result["statuses"].get("413", 0) > 0
    assert front.statuses(broker, "viewer", [METRICS]) == [401]


def test_what_is_too_big_does_not_reach_the_broker(broker, recorder):
    recorder.streams()
    header = front.with_token()
    small, big = "x" * 60000, "x" * 70000
    (declared,) = front.statuses(broker, "publisher", [("POST", "/api/v4/mqtt/publish", header, big)])
    assert declared == 413
    chunked = "".join(f"{4096:x}\r\n{'x' * 4096}\r\n" for _chunk in range(20)) + "0\r\n\r\n"
    text = (
        f"POST /api/v4/mqtt/publish HTTP/1.1\r\nHost: {broker.name}\r\nTransfer-Encoding: chunked\r\n"
        f"Connection: close\r\n\r\n{chunked}"
    )
    (streamed,) = front.attempt([front.to(broker, "raw", certificate="publisher", data=text)])
    assert streamed["answer"].startswith("HTTP/1.1 413")
    assert recorder.requests() == []
    (status,) = front.statuses(broker, "publisher", [("POST", "/api/v4/mqtt/publish", {}, small)])
    assert status == 401
    assert [len(request.body) for request in recorder.requests()] == [60000]


def test_a_client_that_asks_too_much_is_told_so(fleet):
    """Limits count by certificate and by address: who has used one up does not use up another's."""
    run = front.harden(hosts=front.FLEET, nanomq_nginx_rate="1/second", nanomq_nginx_burst=5)
    try:
        assert run.status == 0, run.output
        for broker in fleet:
            got = front.statuses(broker, "viewer", [METRICS] * 30)
            assert set(got) == {401, 429}
            assert 5 <= got.count(401) <= 9
            # The same certificate from elsewhere, and then another one from there.
            assert front.statuses(broker, "viewer", [METRICS], "neighbour") == [429]
            assert front.statuses(broker, "admin", [METRICS], "neighbour") == [401]
            time.sleep(7)
            # Two certificates from one address share what the address may, which is not twice as much.
            both = [front.to(broker, "calls", certificate=name, calls=[[*METRICS, {}, ""]] * 20) for name in CALLERS]
            statuses = [status for answer in front.attempt(both) for status, _body in answer["answers"]]
            assert set(statuses) == {401, 429}
            assert 5 <= statuses.count(401) <= 9
            time.sleep(1.5)
            assert front.statuses(broker, "viewer", [METRICS]) == [401]
    finally:
        assert front.harden(hosts=front.FLEET).status == 0


def test_another_name_than_the_servers_is_misdirected(broker, recorder):
    recorder.streams()
    for host in ("elsewhere", "127.0.0.1:8081", "localhost"):
        assert front.statuses(broker, "admin", [(*METRICS, {"Host": host})]) == [421]
    assert recorder.requests() == []
    for host in (broker.name, broker.ipv4, f"{broker.name}:443"):
        assert front.statuses(broker, "admin", [(*METRICS, {"Host": host})]) == [401]
