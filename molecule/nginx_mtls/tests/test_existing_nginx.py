# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""An nginx that serves others as well: theirs stays as it is, and ours is as good beside it."""

from __future__ import annotations

import json
import re

import front
import pytest
import scenario

SITE = "somebody else's site\n"
#: What the role writes below /etc/nginx.
OURS = re.compile(r"/etc/nginx/([\w./-]*edgesec-nanomq[\w./-]*)")
CALLS = [("GET", "/api/v4/metrics"), ("GET", "/api/v4/configuration"), ("GET", "/x")]


def served(host) -> str:
    return host.run("curl --silent --max-time 5 --header 'Host: elsewhere' http://127.0.0.1/").stdout


def content(host) -> str:
    """The text of all of /etc/nginx, file by file."""
    return host.check_output("cd /etc/nginx && find . -type f -o -type l | sort | xargs sha256sum")


def test_only_our_own_files_were_made(neighbour):
    """Compared with what was there before the first run: attributes and times of everything."""
    now = neighbour.check_output("find /etc/nginx -printf '%p %m %u %g %s %T@ %l\\n' | sort").splitlines()
    before = neighbour.check_output("cat /var/tmp/nginx-before").splitlines()
    directories = {line.split()[0] for line in before if line.split()[1] in ("755",)}
    changed = {line.split()[0] for line in set(before) ^ set(now)}
    # A directory's time tells that a file was put into it.
    assert {path for path in changed if not OURS.fullmatch(path)} <= directories
    assert [path for path in changed if OURS.fullmatch(path)]
    for path in {line.split()[0] for line in before} & changed:
        assert neighbour.file(path).is_directory
    assert "Somebody else's, and not to be touched." in neighbour.file("/etc/nginx/nginx.conf").content_string


def test_their_site_and_ours_answer(neighbour, broker):
    assert served(neighbour) == SITE
    assert front.statuses(neighbour, "viewer", CALLS) == [401, 403, 404]
    assert front.statuses(neighbour, None, CALLS) == [403, 403, 404]
    assert front.statuses(neighbour, "expired", CALLS) == [403, 403, 403]


def test_owned_the_default_site_goes_and_others_stay(broker):
    assert broker.run("test -e /etc/nginx/sites-enabled/default").rc != 0
    assert served(broker) == (SITE if broker.name == "trixie" else "")
    assert broker.run("curl --silent --max-time 5 http://127.0.0.1/ | grep -i welcome").rc != 0


@pytest.fixture
def unchanged(neighbour):
    """Whatever a test does, in the end all is as it was, and their nginx has not been restarted."""

    def observed() -> tuple:
        return content(neighbour), front.main_pid(neighbour, "nginx"), served(neighbour)

    before = observed()
    assert before[1] > 0
    yield
    assert observed() == before
    assert front.statuses(neighbour, "viewer", CALLS) == [401, 403, 404]
    assert neighbour.run("nginx -t").rc == 0


def test_a_set_that_nginx_refuses_changes_nothing(neighbour, unchanged):
    """Another site already declares what ours declares, so that both together are no configuration."""
    zone = neighbour.check_output(
        "grep -rhoE 'limit_req_zone.*zone=[a-z_]+' /etc/nginx | grep -oE '[a-z_]+$' | head -n 1"
    )
    assert zone
    neighbour.check_output(
        "printf %%s %s > /etc/nginx/conf.d/zz-theirs.conf", f"limit_req_zone $uri zone={zone}:1m rate=1r/s;"
    )
    try:
        assert neighbour.run("nginx -t").rc != 0
        run = front.harden(hosts="neighbour", nanomq_nginx_burst=498)
        assert run.status != 0
        assert run.recap("neighbour")["failed"] == 1
        assert "nginx" in run.flat()
    finally:
        neighbour.check_output("rm /etc/nginx/conf.d/zz-theirs.conf")


def test_a_value_that_would_say_more_than_a_value_is_refused(neighbour, unchanged):
    for name, value in (
        ("nanomq_nginx_listen", ["0.0.0.0; include /etc/passwd"]),
        ("nanomq_nginx_roles", {"counter": ["GET /metrics\n} location / {"]}),
        ("nanomq_nginx_client_crl", "no list"),
    ):
        run = front.harden(hosts="neighbour", **{name: value})
        assert run.status != 0, (name, value)
        assert run.recap("neighbour")["failed"] == 1, (name, value)


def test_names_with_signs_of_nginx_are_names(neighbour):
    """A common name can hold what would end a value: it is found as it is, and opens nothing else."""
    names = [
        "$host",
        'x"; return 200; #',
        "a b",
        "x\\",
        "~.*",
        "default",
        "hostnames",
        "include /etc/passwd",
        "*",
        "käse",
    ]
    clients = [
        {"role": "admin", "common_names": names},
        {"role": "viewer", "common_names": ["viewer-1", "x,CN=chief", "x+OU=publishers"]},
    ]
    try:
        run = front.harden(hosts="neighbour", nanomq_nginx_clients=clients)
        assert run.status == 0, run.output
        calls = [("GET", "/api/v4/metrics"), ("GET", "/api/v4/rules")]
        assert front.statuses(neighbour, "viewer", calls) == [401, 403]
        assert front.statuses(neighbour, "comma", calls) == [401, 403]
        assert front.statuses(neighbour, "plus-ou", calls) == [401, 403]
        for other in (
            "pattern",
            "variable",
            "escaped-comma",
            "publisher",
            "admin",
            "comma-first",
            "no-subject",
            "wide",
        ):
            assert front.statuses(neighbour, other, calls) == [403, 403], other
        assert front.statuses(neighbour, None, calls) == [403, 403]
    finally:
        assert front.harden(hosts="neighbour").status == 0


def test_a_port_that_is_taken_is_an_error_and_undone(neighbour, unchanged):
    listen = "import socket, time; s = socket.create_server(('0.0.0.0', 8443)); time.sleep(120)"
    neighbour.check_output("systemd-run --quiet --collect --unit=taken python3 -c %s", listen)
    try:
        run = front.harden(hosts="neighbour", nanomq_nginx_port=8443)
        assert run.status != 0
        assert run.recap("neighbour")["failed"] == 1
        assert "8443" in run.flat()
        assert "python3" in neighbour.check_output("ss -ltnpH 'sport = :8443'")
    finally:
        neighbour.check_output("systemctl stop taken")
    # The firewall, a transaction of its own that came before, had let the port in.
    assert front.harden(hosts="neighbour").recap("neighbour")["changed"] == 1
    assert front.harden(hosts="neighbour").recap("neighbour")["changed"] == 0


def test_what_the_roles_log_holds_is_whole_here_too(neighbour):
    log = "/var/log/nginx/edgesec-nanomq.access.log"
    front.statuses(neighbour, "viewer", [("GET", "/api/v4/metrics")])
    entry = json.loads(neighbour.check_output(f"tail -n 1 {log}"))
    assert "viewer" in str(entry["roles"])
    assert scenario.inventory()["outsider"]["lab_ipv4"] in entry.values()
