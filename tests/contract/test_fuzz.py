"""A short sample of the differential fuzzing of tests/fuzz: what was drawn is the same each time."""

from __future__ import annotations

import fuzz_judge
import fuzz_shapes
import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils import _hocon, _probes
from harness import HTTP_PORT
from hypothesis import HealthCheck, Phase, given, settings

#: The double takes a second to start.
EXAMPLES = 8
# What a file names is not there, and nobody's account is needed: the broker runs as it is.
BODIES = (*fuzz_shapes.BLOCKS, "\n".join(fuzz_shapes.BLOCKS[:8]), "\n".join(fuzz_shapes.BLOCKS[6:16]))
QUICK = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)


def skip_older(broker) -> None:
    """The model of what a configuration means is that of later versions; what older ones do is asserted one by one."""
    if broker.version < (0, 25, 3):
        pytest.skip("the model is that of 0.25.3 and later")


def outcome(broker, text: str) -> tuple[str, list[str]]:
    """(what became of a text, what was read differently)."""
    conf, refusal = fuzz_judge.read_text(text)
    running = broker(text)
    try:
        if running.process.poll() is not None:
            return "ended", []
        assert not refusal or not broker.does("a syntax error ends the start"), f"the broker starts: {refusal}"
        reply = running.get("/configuration")
        if conf is None or reply.status != 200:
            return "not asked", []
        wrong = fuzz_judge.disagreements(conf, broker.version, reply.body["data"], set(_probes.listening()))
        return "read", wrong
    finally:
        broker.stop()
        broker.started.clear()


def test_configurations_are_held_as_they_were_meant(broker):
    skip_older(broker)
    found = []

    @QUICK
    @given(fuzz_shapes.configurations())
    def hold(conf):
        conf["http_server"] = {"port": HTTP_PORT, "ip_addr": "127.0.0.1"}
        for kind in ("log", "bridges", "webhook"):
            conf.pop(kind, None)
        state, wrong = outcome(broker, _hocon.emit(conf))
        found.append(state)
        assert wrong == []

    hold()
    assert "read" in found


@pytest.mark.parametrize("body", BODIES)
def test_texts_are_read_alike(broker, body):
    skip_older(broker)
    state, wrong = outcome(broker, f"{fuzz_shapes.FRAME}{body}\n")
    assert wrong == []
    # Files are included that only tests/fuzz lays out.
    assert state == ("ended" if "include" in body else "read")
