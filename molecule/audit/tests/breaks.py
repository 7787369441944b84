# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One way, at least, to break each rule of the policy on a hardened host, as a hand would.

A break is {name, rule, changes: of the configuration, script, undo, restart: bool, options: of the observation, also:
[other critical rules that it breaks], observed: whether the rule is then seen to be broken}. runner.py carries them
out. What the changes of configurations are, the unit tests know.
"""

from __future__ import annotations

import datetime
import pathlib
import sys

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests/unit"))

from broken_configurations import BROKEN  # noqa: E402

DAY = datetime.timedelta(days=1)
UNIT = "/etc/systemd/system/nanomq.service.d"
KEY = "/etc/nanomq/pki/server/*/key.pem"
#: Files that the breaks name, on the host.
FILES = "/etc/nanomq/breaks"
#: Configurations that are also started, so that the broker itself shows what is wrong.
STARTED = {"NMQ-NET-001", "NMQ-TLS-001", "NMQ-AUT-001", "NMQ-AUT-002", "NMQ-AUT-003", "NMQ-AUT-005"}


def unit(rule: str, *lines: str) -> dict:
    """The unit of the broker with other settings."""
    text = "\\n".join(["[Service]", *lines])
    return {
        "rule": rule,
        "script": f"mkdir -p {UNIT}; printf '{text}\\n' > {UNIT}/50-break.conf; systemctl daemon-reload",
        "undo": f"rm {UNIT}/50-break.conf; rmdir --ignore-fail-on-non-empty {UNIT}; systemctl daemon-reload",
        "restart": True,
    }


def version(rule: str, number: str) -> dict:
    """The package with another version."""
    status = "/var/lib/dpkg/status"
    change = f"/^Package: nanomq$/,/^$/s/^Version: .*/Version: {number}/"
    return {
        "rule": rule,
        "script": f"cp -p {status} {status}.kept; sed -i '{change}' {status}",
        "undo": f"mv {status}.kept {status}",
    }


def mode(rule: str, path: str, change: str, undo: str) -> dict:
    return {"rule": rule, "script": f"chmod {change} {path}", "undo": f"chmod {undo} {path}"}


def pair(rule: str, name: str, restart: bool = False) -> dict:
    """Another certificate with its key."""
    files = {"certfile": f"{FILES}/{name}.pem", "keyfile": f"{FILES}/{name}.key"}
    return {"rule": rule, "changes": {f"listeners.ssl.{key}": path for key, path in files.items()}, "restart": restart}


#: A second process that calls itself nanomq, and does what no NanoMQ of today does.
FAKE = f"systemd-run --quiet --collect --unit=fake --uid=nanomq --working-directory=/ python3 {FILES}/nanomq start"
SECOND = (
    "systemd-run --quiet --collect --unit=second --uid=nanomq --working-directory=/ "
    f"/usr/local/bin/nanomq start --conf {FILES}/second.conf; "
    "for try in $(seq 50); do ss -ltnH | grep -q :2883 && break; sleep 0.1; done"
)
BY_HAND = (
    "systemctl stop nanomq; (setsid systemd-run --scope --quiet --unit=byhand setpriv --reuid nanomq --regid nanomq "
    "--init-groups --no-new-privs --inh-caps=-all --bounding-set=-all env -C / /usr/local/bin/nanomq start --conf "
    "/etc/nanomq/nanomq.conf > /dev/null 2>&1 &) ; for try in $(seq 50); do ss -ltnH | grep -q :8883 && break; "
    "sleep 0.1; done"
)

ON_HOSTS = [
    {
        "rule": "NMQ-NET-006",
        "script": "nft delete table inet edgesec_nanomq",
        "undo": "systemctl restart edgesec-nanomq-firewall",
    },
    {
        "rule": "NMQ-NET-007",
        "script": "nft insert rule inet edgesec_nanomq output oif lo accept",
        "undo": "systemctl restart edgesec-nanomq-firewall",
    },
    {"rule": "NMQ-NET-008", "changes": {"listeners.wss.bind": "127.0.0.1:8087/mqtt"}},
    {"rule": "NMQ-NET-009", "script": SECOND, "undo": "systemctl stop second || true"},
    pair("NMQ-TLS-012", "expired", restart=True),
    pair("NMQ-TLS-013", "soon", restart=True),
    mode("NMQ-TLS-014", KEY, "o+r", "o-r"),
    {"rule": "NMQ-TLS-015", "script": f"{FAKE} tls; sleep 1", "undo": "systemctl stop fake || true"},
    pair("NMQ-TLS-016", "rsa", restart=True),
    {"rule": "NMQ-TLS-017", "changes": {"listeners.ssl.certfile": f"{FILES}/second.conf"}},
    {"rule": "NMQ-TLS-017", "changes": {"listeners.ssl.certfile": f"{FILES}/rsa.pem"}},
    pair("NMQ-TLS-018", "other"),
    {"rule": "NMQ-TLS-019", "changes": {"listeners.ssl.cacertfile": f"{FILES}/old-ca.pem"}},
    pair("NMQ-TLS-020", "weak"),
    {"rule": "NMQ-AUT-012", "script": f"{FAKE} rest; sleep 1", "undo": "systemctl stop fake || true"},
    {"rule": "NMQ-AUT-013", "changes": {"http_server.jwt.public.keyfile": f"{FILES}/weak.pub"}},
    {"rule": "NMQ-AUT-013", "changes": {"http_server.jwt.public.keyfile": f"{FILES}/none.pub"}},
    {
        "rule": "NMQ-AUT-014",
        "script": "touch -d '500 days ago' /etc/nanomq/jwt/*.pub",
        "undo": "touch /etc/nanomq/jwt/*.pub",
    },
    {
        "rule": "NMQ-AUT-015",
        "script": "chown nanomq /etc/nanomq/jwt/*.pub",
        "undo": "chown root /etc/nanomq/jwt/*.pub",
    },
    {"rule": "NMQ-SVC-010", "script": "systemctl stop nanomq", "undo": "systemctl start nanomq", "settle": True},
    unit("NMQ-SVC-011", "User=root", "Group=root"),
    unit("NMQ-SVC-012", "CapabilityBoundingSet=CAP_NET_RAW"),
    {"rule": "NMQ-SVC-013", "script": "chown nanomq /etc/nanomq/nanomq.conf; chmod u+w /etc/nanomq/nanomq.conf"},
    {"rule": "NMQ-SVC-014", "script": "chmod o+r /etc/nanomq/nanomq.conf"},
    {"rule": "NMQ-SVC-015", "script": "chmod 0600 /etc/nanomq/nanomq.conf"},
    {"rule": "NMQ-SVC-016", "script": "echo 'x {' >> /etc/nanomq/nanomq.conf"},
    unit("NMQ-SVC-017", "Environment=NANOMQ_BREAK=1"),
    unit("NMQ-SVC-018", "WorkingDirectory=/tmp"),
    {
        "rule": "NMQ-SVC-019",
        "script": BY_HAND,
        "undo": "systemctl stop byhand.scope || true; systemctl start nanomq",
        "settle": True,
    },
    {"rule": "NMQ-SVC-020", "script": "touch -d '+5 seconds' /etc/nanomq/nanomq.conf"},
    unit(
        "NMQ-SVC-021",
        *(f"{name}=no" for name in ("ProtectSystem", "ProtectHome", "PrivateTmp", "PrivateDevices", "PrivateIPC")),
        *(f"Protect{name}=no" for name in ("ControlGroups", "Hostname", "KernelLogs", "KernelModules")),
        "ProtectKernelTunables=no",
        "ProtectProc=default",
        "ProcSubset=all",
    ),
    unit(
        "NMQ-SVC-029",
        *(f"{name}=" for name in ("SystemCallFilter", "SystemCallArchitectures", "RestrictAddressFamilies")),
        *(f"Restrict{name}=no" for name in ("Namespaces", "Realtime", "SUIDSGID")),
        *(f"Protect{name}=no" for name in ("Clock", "Hostname", "KernelLogs", "KernelModules", "KernelTunables")),
        "LockPersonality=no",
        "MemoryDenyWriteExecute=no",
        "PrivateDevices=no",
    ),
    {
        **unit("NMQ-SVC-031", "PrivateTmp=no", "ReadWritePaths=/tmp"),
        "changes": {"webhook": {"url": "http://127.0.0.1:18832/", "events": [{"event": "on_client_connack"}]}},
    },
    unit("NMQ-SVC-022", "LimitNOFILE=1024"),
    unit("NMQ-SVC-023", "LimitCORE=infinity"),
    mode("NMQ-SVC-024", "/usr/local/bin/nanomq", "o+w", "o-w"),
    {
        "rule": "NMQ-SVC-025",
        "script": "install -m 0644 /etc/nanomq/nanomq.conf /etc/nanomq/nanomq.conf.bak",
        "undo": "rm /etc/nanomq/nanomq.conf.bak",
    },
    {"rule": "NMQ-SVC-026", "options": {"clock": 1000}},
    {
        # In a container the clock is nobody's business; so it must be taken for none.
        "rule": "NMQ-SVC-027",
        "options": {"container": False},
    },
    {
        "rule": "NMQ-SVC-028",
        "changes": {"auth.password.newcomer": "not yet known to it"},
        "options": {"token": True},
    },
    {
        "rule": "NMQ-SVC-028",
        "script": "curl -sS -f -m 5 -X POST -H \"Authorization: Bearer $TOKEN\" -H 'Content-Type: application/json' "
        '-d \'{"data":{"allow_anonymous":true}}\' http://127.0.0.1:8081/api/v4/reload',
        "restart_after": True,
        "also": ["NMQ-AUT-001"],
        "options": {"token": True},
    },
    version("NMQ-VER-001", "0.22.10"),
    version("NMQ-VER-002", "0.25.5"),
    version("NMQ-VER-003", "0.24.10"),
    version("NMQ-VER-004", "0.25.3"),
    {
        "rule": "NMQ-VER-005",
        "script": "mount --bind /bin/false /usr/bin/journalctl; mount --bind /bin/false /usr/bin/dpkg-query",
        "undo": "umount /usr/bin/journalctl /usr/bin/dpkg-query",
        "observed": False,
    },
]


def every() -> list[dict]:
    """All breaks, each with a name of its own."""
    found = [
        {"rule": rule, "changes": changes, "also": also, "restart": index == first(rule) and rule in STARTED}
        for index, (rule, changes, also) in enumerate(BROKEN)
        if not any(value in ({}, []) for value in changes.values())  # an empty block is a syntax error
    ] + ON_HOSTS
    return [{"name": f"{one['rule']} {number}", **one} for number, one in enumerate(found)]


def first(rule: str) -> int:
    return next(index for index, item in enumerate(BROKEN) if item[0] == rule)


# --- the files that they name -----------------------------------------------------------------------------------------

SECOND_CONF = """\
system { enable_ipc_internal = false }
listeners.tcp { bind = "127.0.0.1:2883" }
auth { allow_anonymous = false, no_match = deny, password { "other" = "a long enough password" } }
log { to = [console], level = warn }
"""

FAKE_PROGRAM = '''\
"""Claims to be a NanoMQ: agrees to TLS 1.1, or takes every token."""
import http.server, os, socket, ssl, sys, threading

class Rest(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        given = self.headers.get("Authorization", "")
        self.send_response(200 if given.startswith("Bearer ") else 401)
        self.end_headers()

    def log_message(self, *_arguments):
        pass

def talk(context, connection):
    try:
        with context.wrap_socket(connection, server_side=True) as secure:
            secure.recv(1)
    except OSError:
        pass

if sys.argv[2] == "rest":
    http.server.HTTPServer(("127.0.0.1", 2081), Rest).serve_forever()
here = os.path.dirname(os.path.abspath(__file__))
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.set_ciphers("ALL:@SECLEVEL=0")
context.minimum_version = ssl.TLSVersion.TLSv1
context.load_cert_chain(here + "/fake.pem", here + "/fake.key")
with socket.create_server(("127.0.0.1", 2884)) as server:
    while True:
        threading.Thread(target=talk, args=(context, server.accept()[0]), daemon=True).start()
'''


def files(ca_pem: bytes, ca_key: bytes, passphrase: str) -> dict[str, str]:
    """{name: text} of what lies in FILES."""
    authority = x509.load_pem_x509_certificate(ca_pem)
    key = serialization.load_pem_private_key(ca_key, passphrase.encode())
    found = {"second.conf": SECOND_CONF, "nanomq": FAKE_PROGRAM}
    for name, days, own in (
        ("expired", (-30, -1), ec.generate_private_key(ec.SECP256R1())),
        ("soon", (-30, 5), ec.generate_private_key(ec.SECP256R1())),
        ("other", (-1, 100), ec.generate_private_key(ec.SECP256R1())),
        ("fake", (-1, 100), ec.generate_private_key(ec.SECP256R1())),
        ("rsa", (-1, 100), rsa.generate_private_key(65537, 2048)),
        ("weak", (-1, 100), rsa.generate_private_key(65537, 1024)),
    ):
        found[f"{name}.pem"] = certificate(own.public_key(), authority.subject, key, days)
        found[f"{name}.key"] = private(own)
    other = ec.generate_private_key(ec.SECP256R1())
    found["old-ca.pem"] = certificate(other.public_key(), authority.subject, other, (-300, 60), is_authority=True)
    found["weak.pub"] = public(rsa.generate_private_key(65537, 1024))
    return found


def certificate(own, issuer: x509.Name, key, days: tuple[int, int], is_authority: bool = False) -> str:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(issuer if is_authority else x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "broken")]))
        .issuer_name(issuer)
        .public_key(own)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + days[0] * DAY)
        .not_valid_after(now + days[1] * DAY)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def private(key) -> str:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


def public(key) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()
