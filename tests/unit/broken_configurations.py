# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""A hardened configuration, and for each rule of the policy changes to it that break this rule.

The unit tests judge them as they are; the scenario `audit` makes them on hosts.
"""

from __future__ import annotations

import copy

PASSWORD = "correct horse battery"

CLEAN = {
    "system": {"daemon": False, "enable_ipc_internal": False},
    "listeners": {
        "ssl": {
            "bind": "0.0.0.0:8883",
            "keyfile": "/etc/nanomq/pki/1a/key.pem",
            "certfile": "/etc/nanomq/pki/1a/cert.pem",
            "cacertfile": "/etc/nanomq/ca/1.pem",
            "verify_peer": True,
            "fail_if_no_peer_cert": True,
        },
        "wss": {"bind": "127.0.0.1:8086/mqtt"},
    },
    "http_server": {
        "port": 8081,
        "ip_addr": "127.0.0.1",
        "max_body": 65536,
        "auth_type": "jwt",
        "jwt": {"public": {"keyfile": "/etc/nanomq/jwt/jwt-1a2b3c4d.pub"}},
    },
    "auth": {
        "allow_anonymous": False,
        "no_match": "deny",
        "deny_action": "ignore",
        "password": {"sensor": PASSWORD},
        "acl": {"rules": [{"permit": "allow", "username": "#", "action": "pubsub", "topics": ["${username}/#"]}]},
    },
    "log": {"to": ["console"], "level": "warn"},
}


def changed(changes: dict, base: dict | None = None) -> dict:
    """The base, CLEAN by default, with values put at dotted paths; None takes a key away."""
    conf = copy.deepcopy(CLEAN if base is None else base)
    for path, value in changes.items():
        *parents, last = path.split(".")
        block = conf
        for name in parents:
            block = block.setdefault(name, {})
        if value is None:
            block.pop(last, None)
        else:
            block[last] = value
    return conf


def acl(**rule) -> dict:
    return {"auth.acl": {"rules": [rule]}}


def basic(**changes) -> dict:
    """Basic authentication, which the policy only warns of."""
    values = {"auth_type": "basic", "username": "fleet", "password": PASSWORD, "jwt": None, **changes}
    return {f"http_server.{name}": value for name, value in values.items()}


BASIC = "NMQ-AUT-006"
SQL, HUB = 'SELECT topic, payload FROM "a/#"', "mqtt-tcp://127.0.0.1:18831"
VERIFIED = {"cacertfile": "/etc/nanomq/ca/2.pem", "verify_peer": True}
# (rule, changes, what else is wrong then)
BROKEN = [
    ("NMQ-NET-001", {"http_server.ip_addr": None}, ()),
    ("NMQ-NET-001", {"http_server.ip_addr": ""}, ()),
    ("NMQ-NET-001", {"http_server.ip_addr": "192.0.2.1"}, ()),
    ("NMQ-NET-001", {"http_server.ip_addr": "[::]"}, ()),
    ("NMQ-NET-002", {"listeners.wss": None}, ()),
    ("NMQ-NET-002", {"listeners.wss.bind": "0.0.0.0:8086/mqtt"}, ()),
    ("NMQ-NET-003", {"http_server.port": "18081"}, ()),
    ("NMQ-NET-003", {"http_server.port": 83617}, ()),
    ("NMQ-NET-004", {"http_server.port": 8883}, ()),
    ("NMQ-NET-004", {"listeners.wss.bind": "127.0.0.1:8081/mqtt"}, ()),
    ("NMQ-NET-005", {"http_server": None}, ()),
    ("NMQ-NET-013", {"bridges.nng.sub.in": {"clientid": "in", "sub_url": "tcp://*:9000"}}, ()),
    ("NMQ-NET-013", {"bridges.nng.pub.out": {"clientid": "out", "pub_url": "tls+tcp://0.0.0.0:9000"}}, ()),
    ("NMQ-NET-014", {"system.hook_ipc_url": "ipc:///a", "system.cmd_ipc_url": "tcp://0.0.0.0:9998"}, ()),
    ("NMQ-NET-014", {"system.hook_ipc_url": "ws://127.0.0.1:9997/a", "system.cmd_ipc_url": "ipc:///b"}, ()),
    ("NMQ-TLS-001", {"listeners.tcp": {"bind": "0.0.0.0:1883"}}, ()),
    ("NMQ-TLS-001", {"listeners.tcp": {"bind": "0.0.0.0:1883", "enable": False}}, ()),
    ("NMQ-TLS-001", {"listeners.tcp": {"bind": ":1883"}}, ()),
    ("NMQ-TLS-001", {"listeners.tcp": {"inner": {"bind": "nmq-tcp://[::]:1883"}}}, ()),
    ("NMQ-TLS-001", {"listeners": None}, ("NMQ-TLS-021",)),
    ("NMQ-TLS-021", {"listeners.ssl": None, "listeners.tcp": {"bind": "0.0.0.0:1883"}}, ("NMQ-TLS-001",)),
    ("NMQ-TLS-002", {"listeners.ws": {"bind": "0.0.0.0:8083/mqtt"}}, ()),
    ("NMQ-TLS-002", {"listeners.ws": {}}, ()),
    ("NMQ-TLS-003", {"listeners.ssl.bind": None}, ()),
    ("NMQ-TLS-003", {"listeners.ssl.keyfile": None}, ()),
    ("NMQ-TLS-003", {"listeners.ssl.certfile": ""}, ()),
    ("NMQ-TLS-003", {"listeners.ssl.second": {"bind": "0.0.0.0:8884"}}, ("NMQ-VER-006",)),
    ("NMQ-TLS-004", {"listeners.ssl.fail_if_no_peer_cert": False}, ("NMQ-VER-006",)),
    ("NMQ-TLS-004", {"listeners.ssl.fail_if_no_peer_cert": None}, ("NMQ-VER-006",)),
    ("NMQ-TLS-005", {"listeners.ssl.verify_peer": False}, ("NMQ-VER-006",)),
    ("NMQ-TLS-005", {"listeners.ssl.verify_peer": "true"}, ("NMQ-VER-006",)),
    ("NMQ-TLS-006", {"listeners.ssl.cacertfile": None}, ()),
    ("NMQ-TLS-007", {"bridges.mqtt.up.server": "mqtt-tcp://192.0.2.1:1883"}, ()),
    ("NMQ-TLS-007", {"bridges.mqtt.up": {"server": "mqtt-tcp://127.0.0.1:1", "hybrid_servers": ["a:1"]}}, ()),
    ("NMQ-TLS-008", {"bridges.mqtt.up": {"server": "tls+mqtt-tcp://192.0.2.1:8883", "ssl": VERIFIED}}, ()),
    ("NMQ-TLS-008", {"bridges.mqtt.up": {"server": "mqtt-quic://192.0.2.1:14567", "ssl": VERIFIED}}, ()),
    ("NMQ-TLS-008", {"bridges.aws.up": {"server": "tls+mqtt-tcp://192.0.2.1:8883"}}, ()),
    ("NMQ-TLS-008", {"bridges.mqtt.up.server": "tls+mqtt-tcp://192.0.2.1:8883"}, ("NMQ-TLS-022",)),
    ("NMQ-TLS-009", {"auth.http_auth.auth_req": {"url": "http://192.0.2.1/auth", "method": "POST"}}, ()),
    ("NMQ-TLS-009", {"auth.http_auth.acl_req": {"url": "http://localhost.example/", "method": "POST"}}, ()),
    ("NMQ-TLS-010", {"webhook.url": "http://192.0.2.1/hook"}, ()),
    ("NMQ-TLS-010", {"webhook.url": "http://127.0.0.1@192.0.2.1/hook"}, ()),
    ("NMQ-TLS-011", {"rules.repub.rules": [{"sql": SQL, "server": "mqtt-tcp://192.0.2.1:1883"}]}, ("NMQ-SVC-006",)),
    ("NMQ-TLS-011", {"rules.repub.rules": [{"sql": SQL, "server": "ws://192.0.2.1:80"}]}, ("NMQ-SVC-006",)),
    ("NMQ-TLS-011", {"rules.mysql.db.conn": {"host": "db.example"}}, ("NMQ-SVC-006", "NMQ-SVC-030")),
    ("NMQ-TLS-022", {"webhook": {"url": "https://192.0.2.1/hook", "ssl": VERIFIED}}, ()),
    ("NMQ-TLS-022", {"webhook.url": "https://127.0.0.1/hook"}, ()),
    ("NMQ-TLS-022", {"auth.http_auth.super_req": {"url": "HTTPS://192.0.2.1/", "method": "POST", "ssl": VERIFIED}}, ()),
    ("NMQ-TLS-022", {"bridges.mqtt.up.server": "tls+mqtt-tcp://127.0.0.1:8884"}, ()),
    ("NMQ-TLS-022", {"rules.repub.rules": [{"sql": SQL, "server": "tls+mqtt-tcp://192.0.2.1:1"}]}, ("NMQ-SVC-006",)),
    ("NMQ-TLS-022", {"rules.repub.rules": [{"sql": SQL, "server": "wss://127.0.0.1:1"}]}, ("NMQ-SVC-006",)),
    ("NMQ-AUT-001", {"auth.allow_anonymous": None}, ()),
    ("NMQ-AUT-001", {"auth.allow_anonymous": True}, ()),
    ("NMQ-AUT-001", {"auth.allow_anonymous": "false"}, ()),
    ("NMQ-AUT-001", {"auth.allow_anonymous": 0}, ()),
    ("NMQ-AUT-002", {"auth.password": None}, ()),
    ("NMQ-AUT-002", {"auth.password": {"sensor": 123456789012}}, ()),
    ("NMQ-AUT-002", {"auth.password": {"enable": True}}, ()),
    ("NMQ-AUT-003", {"auth.password.enable": False}, ()),
    ("NMQ-AUT-004", {"auth.password.sensor": "elevenchars"}, ()),
    ("NMQ-AUT-004", {"auth.password": {"Temperature-01": "temperature-01"}}, ()),
    ("NMQ-AUT-004", {"auth.password.sensor": "abababababab"}, ()),
    ("NMQ-AUT-005", {"http_server.auth_type": "no_auth"}, ()),
    ("NMQ-AUT-006", basic(), ()),
    ("NMQ-AUT-006", basic(auth_type="JWT"), ()),
    ("NMQ-AUT-006", basic(auth_type=None), ()),
    ("NMQ-AUT-007", basic(password="public"), (BASIC,)),
    ("NMQ-AUT-007", basic(password=None), (BASIC,)),
    ("NMQ-AUT-007", basic(password=123456789012), (BASIC,)),
    ("NMQ-AUT-008", basic(password="elevenchars"), (BASIC,)),
    ("NMQ-AUT-008", basic(username="administrator", password="Administrator"), (BASIC,)),
    ("NMQ-AUT-009", basic(username="admin"), (BASIC,)),
    ("NMQ-AUT-009", basic(username=None), (BASIC,)),
    ("NMQ-AUT-010", {"http_server.jwt": None}, ()),
    ("NMQ-AUT-011", {"http_server.jwt.private": {"keyfile": "/etc/nanomq/jwt/key.pem"}}, ()),
    ("NMQ-AUT-016", {"rules.repub.rules": [{"sql": 'SELECT * FROM "a"', "server": HUB}]}, ("NMQ-SVC-006",)),
    ("NMQ-AUT-016", {"rules.repub.rules": [{"sql": "nonsense", "server": HUB}]}, ("NMQ-SVC-006",)),
    ("NMQ-AUT-016", {"rules.sqlite.rules": [{"sql": 'select password as p from "a"'}]}, ("NMQ-SVC-006", "NMQ-SVC-030")),
    (
        "NMQ-AUT-016",
        {"rules.postgresql.db.rules": [{"sql": 'SELECT topic, password FROM "a"'}]},
        ("NMQ-SVC-006", "NMQ-SVC-030"),
    ),
    ("NMQ-ACL-001", {"auth.acl": None}, ()),
    ("NMQ-ACL-001", {"auth.acl.rules": []}, ()),
    ("NMQ-ACL-002", {"auth.acl.enable": False}, ()),
    ("NMQ-ACL-003", {"auth.no_match": None}, ()),
    ("NMQ-ACL-003", {"auth.no_match": "Deny"}, ()),
    ("NMQ-ACL-004", acl(permit="allow", user="sensor", topics=["a"]), ()),
    ("NMQ-ACL-005", acl(permit="allow", username="#", topics=["a", "#"]), ()),
    ("NMQ-ACL-005", acl(permit="allow", username="#"), ()),
    ("NMQ-ACL-006", acl(permit="allow", username="#", topics=["${clientid}/#"]), ()),
    ("NMQ-ACL-006", acl(permit="allow", clientid="c1", topics=["a"]), ()),
    ("NMQ-ACL-007", acl(permit="allow", username="#", topics=["a/%u"]), ()),
    ("NMQ-ACL-008", acl(permit="deny", ipaddr="10.0.0.0/8"), ()),
    ("NMQ-ACL-008", acl(permit="deny", ipaddrs=["192.0.2.1"]), ()),
    ("NMQ-ACL-008", {"auth.acl.rules": [{"permit": "deny", "and": [{"username": "a"}, {"ipaddr": "10.0.0.0/8"}]}]}, ()),
    ("NMQ-ACL-009", acl(permit="Deny", username="a"), ()),
    ("NMQ-ACL-009", acl(permit="deny", username="a", action="read"), ()),
    (
        "NMQ-ACL-016",
        {"auth.deny_action": "disconnect", "bridges.mqtt.up.server": HUB},
        (),
    ),
    ("NMQ-ACL-016", {"auth.deny_action": "disconnect", "webhook.url": "http://127.0.0.1:18832/"}, ()),
    (
        "NMQ-ACL-016",
        {"auth.deny_action": "disconnect", "rules.repub.rules": [{"sql": SQL, "server": HUB}]},
        ("NMQ-SVC-006",),
    ),
    ("NMQ-SVC-001", {"system.enable_ipc_internal": None}, ()),
    ("NMQ-SVC-001", {"system": None}, ()),
    ("NMQ-SVC-001", {"system.enable_ipc_internal": "false"}, ()),
    ("NMQ-SVC-002", {"log": None}, ()),
    ("NMQ-SVC-003", {"log.level": "debug"}, ()),
    ("NMQ-SVC-003", {"log.level": "fatal"}, ()),
    ("NMQ-SVC-004", {"log.to": ["file"], "log.dir": "/tmp"}, ()),
    ("NMQ-SVC-004", {"log.to": ["file", "console"]}, ()),
    ("NMQ-SVC-005", {"plugin.libs": [{"path": "/opt/x.so"}]}, ()),
    ("NMQ-SVC-006", {"rules.repub.rules": [{"sql": SQL, "server": HUB}]}, ()),
    ("NMQ-SVC-030", {"rules.sqlite": {"path": "/var/lib/nanomq/x.db"}}, ("NMQ-SVC-006",)),
    ("NMQ-SVC-030", {"rules.timescaledb.db.rules": [{"sql": SQL, "table": "t"}]}, ("NMQ-SVC-006",)),
    ("NMQ-SVC-007", {"system.daemon": True}, ()),
    ("NMQ-SVC-008", {"listeners.ssl.cacertfile": "ca.pem"}, ()),
    ("NMQ-SVC-008", {"http_server.jwt.public.keyfile": "jwt.pub"}, ()),
    ("NMQ-SVC-009", {"mqtt.max_packet_size": "256MB"}, ()),
    ("NMQ-SVC-009", {"http_server.max_body": 10485760}, ()),
    ("NMQ-VER-006", {"listeners.ssl.verify_peer": False, "listeners.ssl.fail_if_no_peer_cert": False}, ()),
    ("NMQ-VER-006", {"listeners.ssl.verify_peer": None, "listeners.ssl.fail_if_no_peer_cert": None}, ()),
]
