# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What bench/mqtt makes of its rounds, and the packets of its load."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from pathlib import Path

import mqtt_load
import pytest
import testbed
from hypothesis import given
from hypothesis import strategies as st

PROGRAM = Path(testbed.__file__).with_name("mqtt")


@pytest.fixture(scope="module")
def mqtt():
    loader = importlib.machinery.SourceFileLoader("bench_mqtt", str(PROGRAM))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("bench_mqtt", loader))
    loader.exec_module(module)
    return module


def rounds(mqtt, *speeds: float) -> list[dict]:
    """In each round the machine has another speed, and TLS costs a fifth of the rate, and a quarter more time."""

    def results(speed: float, factor: float) -> dict:
        rate, took = speed * factor, 1 / speed / factor
        return {
            **{what: {"rate": rate, "cpu": took} for what in ("qos0", "qos1", "logins")},
            "latency": {"p50": took, "p99": took},
        }

    return [
        {name: results(speed, 0.8 if entry[2] else 1.0) for name, entry in mqtt.SUBJECTS.items()} for speed in speeds
    ]


def test_a_cost_is_of_the_rounds_and_not_of_the_speed_of_the_machine(mqtt):
    found = mqtt.costs(rounds(mqtt, 1000.0, 50.0, 300.0), mqtt.STREAM, mqtt.SHIPPED)
    assert found["qos1 rate"] == pytest.approx([20.0] * 3)
    assert found["logins cpu"] == pytest.approx([25.0] * 3)
    assert found["latency p99"] == pytest.approx([25.0] * 3)
    assert mqtt.costs(rounds(mqtt, 10.0), mqtt.PLAIN, mqtt.SHIPPED)["qos0 rate"] == pytest.approx([0.0] * 3)


def test_the_summary_has_every_subject_and_every_cost(mqtt):
    found = mqtt.summary(rounds(mqtt, 1000.0, 50.0, 300.0))
    assert found["rows"][mqtt.PLAIN]["qos0 rate"] == 300.0
    assert set(found["rows"]) == set(mqtt.SUBJECTS)
    assert set(found["costs"]) == set(mqtt.COSTS)


def test_another_suite_or_version_is_not_the_same_tls(mqtt):
    spoken = {name: f"TLSv1.3, {mqtt.SUITE}" if entry[2] else None for name, entry in mqtt.SUBJECTS.items()}
    assert mqtt.one_tls(spoken) == f"TLSv1.3, {mqtt.SUITE}"
    for other in ("TLSv1.2, ECDHE-ECDSA-AES256-GCM-SHA384", "TLSv1.3, TLS_AES_128_GCM_SHA256", None):
        with pytest.raises(testbed.BenchError, match="not the same TLS"):
            mqtt.one_tls({**spoken, mqtt.TLS: other})


@given(st.binary(max_size=16000))
def test_a_packet_is_read_as_it_was_written(payload):
    connection = mqtt_load.Connection.__new__(mqtt_load.Connection)
    message = mqtt_load.publish("a/b", payload, 7)
    connection.data = message + message[:3]
    kind, body = connection.read()
    assert (kind, body) == (0x32, b"\x00\x03a/b\x00\x07" + payload)
    assert connection.data == message[:3]
