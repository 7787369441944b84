# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Twenty hosts: what one that is broken means to the others. Each run begins where the one before ended."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
import scenario
from scenario import harden

NAMES = scenario.broker_names()
CANARIES, OTHERS = NAMES[:2], NAMES[2:]
#: The first host of all is the one that does not answer: what is done once for all must not depend on it.
SILENT, FULL, TAKEN = NAMES[0], NAMES[len(NAMES) // 2], NAMES[-2]
BROKEN = [SILENT, FULL, TAKEN]
WELL = [name for name in NAMES if name not in BROKEN]

SUMMARY = {"ANSIBLE_CALLBACKS_ENABLED": "remote_runs,edgesec.nanomq.rollout"}

TAKE_PORT = "import socket, time; s = socket.create_server(('0.0.0.0', 8883)); time.sleep(900)"
#: All that a deployment writes to lies on one file system without a byte left.
FILL = """
set -e
mkdir -p /mnt/full /var/lib/edgesec-nanomq
mount -t tmpfs -o size=64m tmpfs /mnt/full
for directory in /etc /root /tmp /var/tmp /var/lib/edgesec-nanomq; do
    mkdir -p /mnt/full$directory
    cp -a $directory/. /mnt/full$directory
    chmod --reference=$directory /mnt/full$directory
    mount --bind /mnt/full$directory $directory
done
cat /dev/zero > /mnt/full/fill || true
"""


#: When the broker was started last, and when its last change was committed. All hosts share one clock.
MOMENTS = (
    "systemctl show --property ExecMainStartTimestamp --timestamp=us+utc --value nanomq | "
    '(read -r day date time zone; date --date "$date $time UTC" +%s.%N); '
    "stat --format %.9Y /var/lib/edgesec-nanomq/broker/last.json"
)


def ssh(name: str, command: str) -> str:
    config = pathlib.Path(scenario.INVENTORY).parent / "ssh_config"
    done = subprocess.run(
        ["ssh", "-F", str(config), name, command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, f"{name}: {done.stdout} {done.stderr}"
    return done.stdout


def everywhere(names: list[str], command: str) -> dict[str, str]:
    """What a command prints on each host."""
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(names, pool.map(lambda name: ssh(name, command), names)))


def podman(verb: str, name: str) -> None:
    container = f"{pathlib.Path(scenario.INVENTORY).parent.name}.{name}"
    subprocess.run(["podman", verb, container], check=True, capture_output=True)


def silence(name: str) -> None:
    """The host answers nobody, and there is no open connection to it."""
    podman("pause", name)
    config = pathlib.Path(scenario.INVENTORY).parent / "ssh_config"
    subprocess.run(["ssh", "-F", str(config), "-O", "exit", name], check=False, capture_output=True, timeout=20)


def take_port(name: str) -> None:
    """Free in the network of the throw-away broker, taken on the host: the broker does not start."""
    ssh(name, f"systemd-run --quiet --collect --unit=taken /usr/bin/python3 -c {shlex.quote(TAKE_PORT)}")


def free_port(name: str) -> None:
    ssh(name, "systemctl stop taken.service")


@dataclasses.dataclass(frozen=True)
class Running:
    """How often systemd started the broker again by itself, when it was started, and all else that a run touches."""

    again: int
    started: str
    rest: str


def starts(names: list[str]) -> dict[str, Running]:
    """When broker and firewall were started, and what lies in their directories since when."""
    show = "systemctl show --property {0} --value {1}"
    moments = "MainPID,ExecMainStartTimestampMonotonic,ActiveEnterTimestampMonotonic"
    seen = everywhere(
        names,
        f"{show.format('NRestarts', 'nanomq')}; {show.format(moments, 'nanomq')} | paste -sd ' '; "
        f"{show.format(moments, 'edgesec-nanomq-firewall')}; "
        "find /etc/nanomq /etc/edgesec-nanomq -printf '%p %T@ %i\\n' | sort",
    )
    parts = {name: text.split("\n", 2) for name, text in seen.items()}
    return {name: Running(int(again), started, rest) for name, (again, started, rest) in parts.items()}


def touched(before: dict[str, Running], after: dict[str, Running]) -> list[str]:
    """Hosts that a run has touched. One whose broker ended by itself is not, which the real one does at times."""
    return [
        name
        for name, now in after.items()
        if now.rest != before[name].rest or (now.started != before[name].started and now.again <= before[name].again)
    ]


def summary(run: scenario.Play) -> list[str]:
    """The lines of the callback at the end."""
    lines = run.output.splitlines()
    first = max(number for number, line in enumerate(lines) if re.match(r"rollout: \d+ hosts? in ", line))
    return lines[first:]


def counts(run: scenario.Play) -> str:
    return summary(run)[0].partition(" s: ")[2]


# --- three runs, each of which begins where the one before ended


@pytest.fixture(scope="module")
def canary_run():
    """Two canaries, of which one cannot start its broker; and the others, before and after."""
    before = everywhere(OTHERS, "cat /var/tmp/virgin")
    take_port(CANARIES[0])
    try:
        run = harden(settings=SUMMARY, nanomq_rollout_batches=[2, "100%"])
    finally:
        free_port(CANARIES[0])
    return run, before, everywhere(OTHERS, "/var/tmp/snapshot")


@pytest.fixture(scope="module")
def first_run(canary_run):
    """A run on a fleet with three broken hosts, which are mended after it."""
    silence(SILENT)
    ssh(FULL, FILL)
    take_port(TAKEN)
    try:
        return harden(settings=SUMMARY, timeout=600)
    finally:
        podman("unpause", SILENT)
        ssh(FULL, "rm /mnt/full/fill")
        free_port(TAKEN)


@pytest.fixture(scope="module")
def second_run(first_run):
    """The next run, in batches; and the hosts that were well, before and after."""
    before = starts(WELL)
    run = harden(settings=SUMMARY, nanomq_rollout_batches="2, 40%, 100%", timeout=600)
    return run, before, starts(WELL)


def test_a_canary_that_fails_stops_the_rollout(canary_run):
    """The other canary is hardened, and nobody else is touched."""
    run, before, after = canary_run
    assert run.status == 2, run.output
    assert counts(run) == f"1 changed, 1 undone, {len(OTHERS)} not touched", run.output
    assert f"  changed: {CANARIES[1]}" in summary(run)
    assert f"The rollout stops: of the first batch {CANARIES[0]} failed" in run.flat()
    touched = {cost["host"] for cost in run.costs if cost["kind"] != "task"}
    assert touched == {scenario.inventory()[name]["lab_ipv4"] for name in CANARIES}
    assert after == before


def test_broken_hosts_do_not_block_the_others(first_run):
    """One does not answer, one has no space left, one cannot start its broker: seventeen are hardened."""
    assert first_run.status in (2, 4, 6), first_run.output
    assert counts(first_run) == f"{len(WELL) - 1} changed, 1 unchanged, 1 undone, 1 failed, 1 unreachable", (
        first_run.output
    )
    for name in WELL:
        recap = first_run.recap(name)
        assert (recap["failed"], recap["unreachable"]) == (0, 0), first_run.output
        assert (recap["changed"] > 0) == (name != CANARIES[1]), first_run.output


#: What another host sees of each: whether MQTT over TLS has a certificate of the fleet, and which ports are open.
LOOK = r"""
import concurrent.futures, json, socket, ssl, sys
PORTS = (22, 1883, 8081, 8083, 8086, 8883)
asked = json.loads(sys.argv[1])
context = ssl.create_default_context(cadata=asked["ca"])
def is_open(address, port):
    with socket.socket() as probe:
        probe.settimeout(3)
        return probe.connect_ex((address, port)) == 0
def look(host):
    name, address = host
    try:
        with socket.create_connection((address, 8883), 5) as raw, context.wrap_socket(raw, server_hostname=name):
            tls = "genuine"
    except (OSError, ssl.SSLError) as error:
        tls = repr(error)
    return " ".join(map(str, (name, tls, *(port for port in PORTS if is_open(address, port)))))
with concurrent.futures.ThreadPoolExecutor(20) as pool:
    print(*pool.map(look, asked["hosts"].items()), sep="\n")
"""


def test_those_are_hardened(first_run):
    hosts = {name: scenario.inventory()[name]["lab_ipv4"] for name in WELL}
    asked = json.dumps({"ca": (scenario.pki() / "ca/ca.pem").read_text(), "hosts": hosts})
    command = f"python3 -c {shlex.quote(LOOK)} {shlex.quote(asked)}"
    seen = dict(line.split(" ", 1) for line in ssh(SILENT, command).splitlines())
    assert seen == dict.fromkeys(WELL, "genuine 22 8883")


def test_the_report_names_each_broken_host_and_why(first_run):
    lines = {line.split(":")[0].strip(): line for line in summary(first_run)}
    assert ": undone: broker: " in lines[TAKEN]
    # The real broker ends at once, the double may be seen to listen to less than it should.
    assert "probe: nanomq.service is not running" in lines[TAKEN] or "8883" in lines[TAKEN]
    assert ": failed: " in lines[FULL]
    assert "No space left" in lines[FULL] or "No usable temporary directory" in lines[FULL]
    assert ": unreachable: " in lines[SILENT]
    assert "timed out" in lines[SILENT]
    secrets = [value for name, value in scenario.HOSTS.items() if name.endswith("_passphrase")]
    for line in summary(first_run):
        assert line.isprintable()
        assert not any(secret in line for secret in (*secrets, *scenario.USERS.values()))


def test_the_next_run_finishes_the_rest_and_changes_no_other(second_run):
    run, before, after = second_run
    assert run.status == 0, run.output
    assert counts(run) == f"3 changed, {len(WELL)} unchanged", run.output
    assert f"  changed: {', '.join(BROKEN)}" in summary(run)
    assert touched(before, after) == []
    batches = [line for line in run.output.splitlines() if line.startswith("rollout: batch ")]
    assert [line.partition(" of ")[0] for line in batches] == [f"rollout: batch {number}" for number in (1, 2, 3)]
    assert batches[0] == "rollout: batch 1 of 3: 1 changed, 1 unchanged"


# --- hosts that hang, groups, other strategies


def test_a_host_that_hangs_in_an_open_connection_is_given_up(second_run):
    """Its connection is up from before, so that no attempt to connect times out."""
    hanging, other = WELL[:2]
    ssh(hanging, "true")
    podman("pause", hanging)
    try:
        run = harden(hosts=f"{hanging},{other}", settings=SUMMARY, nanomq_host_timeout=8, timeout=120)
    finally:
        podman("unpause", hanging)
    assert run.status == 2, run.output
    assert counts(run) == "1 unchanged, 1 failed", run.output
    assert "Timed out after 8 second" in summary(run)[-1]


def test_hosts_of_one_group_are_changed_one_after_the_other(second_run):
    """The next is stopped no earlier than the change of the one before it was probed and committed."""
    pair = WELL[2:4]
    run = harden(hosts=",".join(pair), settings=SUMMARY, nanomq_rollout_group="pair", nanomq_broker_log_level="error")
    assert counts(run) == "2 changed", run.output
    turns = sorted(everywhere(pair, MOMENTS).values(), key=lambda text: float(text.split()[0]))
    (_began, committed), (began, _committed) = (map(float, turn.split()) for turn in turns)
    assert began > committed, turns


def test_the_strategy_free_comes_to_the_same(second_run):
    """Each host at its own pace, and a CA that all of them would make: twice, and nothing is left to do."""
    names = WELL[-3:]  # of both releases
    options = {
        "hosts": ",".join(names),
        "settings": SUMMARY | {"ANSIBLE_STRATEGY": "ansible.builtin.free"},
        "nanomq_pki_dir": str(scenario.pki().parent / "free/pki"),
    }
    run = harden(**options)
    assert run.status == 0, run.output
    assert counts(run) == "3 changed", run.output
    issuers = everywhere(names, "openssl x509 -in /etc/nanomq/pki/server/current/cert.pem -noout -issuer_hash")
    assert len(set(issuers.values())) == 1
    before = starts(names)
    run = harden(**options)
    assert run.status == 0, run.output
    assert counts(run) == "3 unchanged", run.output
    assert touched(before, starts(names)) == []
