# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""nginx in front of the broker: asked before a change by a program that stands for it, and after it over real TLS."""

from __future__ import annotations

import contextlib
import datetime
import http.server
import os
import shutil
import socket
import ssl
import tempfile
import threading
import time
from pathlib import Path

import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils import _crl, _x509
from ansible_collections.edgesec.nanomq.plugins.module_utils import _der as der
from ansible_collections.edgesec.nanomq.plugins.module_utils import _nginx as nginx
from ansible_collections.edgesec.nanomq.plugins.module_utils._crypto import choose_backend
from ansible_collections.edgesec.nanomq.plugins.module_utils._probes import PROBES
from ansible_collections.edgesec.nanomq.plugins.module_utils._transaction import TransactionError, run
from ansible_collections.edgesec.nanomq.plugins.module_utils._validators import VALIDATORS
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

PEM, DER = serialization.Encoding.PEM, serialization.Encoding.DER
KEY = ec.generate_private_key(ec.SECP256R1())
NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
DAY = datetime.timedelta(1)


def name(text):
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def certificate(text="front"):
    builder = x509.CertificateBuilder(name(text), name(text), KEY.public_key(), x509.random_serial_number())
    return builder.not_valid_before(NOW - DAY).not_valid_after(NOW + DAY).sign(KEY, hashes.SHA256())


# --- revocation lists -------------------------------------------------------------------------------------------------


def crl(issuer="ca-one", due=NOW + DAY, revoked=(), begin=None, key=KEY, number=None):
    builder = x509.CertificateRevocationListBuilder(name(issuer), begin or min(NOW, due) - DAY, due)
    if number is not None:
        builder = builder.add_extension(x509.CRLNumber(number), critical=False)
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW - DAY).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(key, hashes.SHA256())


def rebuilt(raw: bytes, change) -> bytes:
    """A list with other fields within what is signed, and signed again."""
    tbs, algorithm, _signature = der.parse(raw).children()
    tbs = der.encode(der.SEQUENCE, *[node.raw for node in change(tbs.children())])
    signature = KEY.sign(tbs, ec.ECDSA(hashes.SHA256()))
    return der.encode(der.SEQUENCE, tbs, algorithm.raw, der.encode(der.BIT_STRING, b"\0", signature))


def as_v1(raw: bytes) -> bytes:
    """Without a version, as a list of the first version is."""
    return rebuilt(raw, lambda fields: [node for node in fields[1:] if node.tag != 0xA0])


@pytest.fixture
def judge(tmp_path):
    """judge(lists, authorities): what troubles nginx with these DER lists, or this text."""

    def ask(lists, authorities=("ca-one",)):
        ca, path = tmp_path / "ca.pem", tmp_path / "crl.pem"
        ca.write_bytes(b"".join(certificate(text).public_bytes(PEM) for text in authorities))
        path.write_bytes(lists if isinstance(lists, bytes) else b"".join(der.to_pem("X509 CRL", raw) for raw in lists))
        found = nginx.crl_troubles(str(path), str(ca))
        assert nginx.probe_crl(crl=str(path), ca=str(ca), credentials={}) == found
        staged = {"/etc/x/crl.pem": str(path), "/etc/x/ca.pem": str(ca)}
        options = {"crl": "/etc/x/crl.pem", "ca": "/etc/x/ca.pem", "credentials": {}}
        if found:
            with pytest.raises(TransactionError) as caught:
                nginx.validate_crl(staged=staged, **options)
            assert str(caught.value) == "; ".join(found)
        else:
            nginx.validate_crl(staged=staged, **options)
        return found

    return ask


RAW = crl().public_bytes(DER)


@pytest.mark.parametrize(
    "raw",
    [RAW, as_v1(RAW), crl(revoked=[5, 2**150]).public_bytes(DER), crl(due=NOW + 9999 * DAY).public_bytes(DER)],
    ids=["empty", "v1", "with entries", "after 2050"],
)
def test_a_list_that_is_in_force_is_no_trouble(judge, raw):
    assert judge([raw]) == []


def test_a_list_is_read_as_the_library_reads_it():
    for due in (NOW + DAY, NOW - DAY, datetime.datetime(2077, 3, 1, 2, 3, 4, tzinfo=datetime.UTC)):
        written = crl(due=due, revoked=[5, 2**150], number=7)
        read = _crl.parse(written.public_bytes(DER))
        assert (read.issuer, read.next_update) == (written.issuer.public_bytes(), written.next_update_utc)
        assert (read.this_update, read.number) == (written.last_update_utc, 7)
        assert read.serials == {entry.serial_number: entry.revocation_date_utc for entry in written}
        assert _crl.parse(crl(due=due).public_bytes(DER)).serials == {}
        first = _crl.parse(as_v1(written.public_bytes(DER)))
        assert (first.issuer, first.next_update, first.number) == (read.issuer, read.next_update, None)


def test_a_list_past_its_time_is_trouble(judge):
    for raw in (crl(due=NOW - DAY).public_bytes(DER), as_v1(crl(due=NOW - DAY).public_bytes(DER))):
        (trouble,) = judge([raw])
        assert "'ca-one' was to be replaced by " + (NOW - DAY).strftime("%Y-%m-%dT%H:%M:%SZ") in trouble
        assert "nanomq_nginx_client_crl" in trouble


def test_a_list_whose_time_ends_this_moment_is_trouble(judge):
    assert len(judge([crl(due=NOW).public_bytes(DER)])) == 1


def test_of_two_lists_of_a_ca_one_in_force_is_enough(judge):
    old, new = crl(due=NOW - DAY).public_bytes(DER), crl().public_bytes(DER)
    assert judge([old, new]) == judge([new, old]) == []


def test_a_list_of_another_key_in_the_name_of_the_ca_is_trouble(judge):
    forged = crl(key=ec.generate_private_key(ec.SECP256R1())).public_bytes(DER)
    (trouble,) = judge([forged])
    assert "no revocation list in the name of the CA 'ca-one' is signed with its key" in trouble
    assert judge([forged, RAW]) == []


def test_a_list_that_was_changed_is_trouble(judge):
    tbs, algorithm, signature = der.parse(crl(revoked=[5]).public_bytes(DER)).children()
    other = der.parse(RAW).children()[0]
    (trouble,) = judge([der.encode(der.SEQUENCE, other.raw, algorithm.raw, signature.raw)])
    assert "is signed with its key" in trouble
    assert judge([der.encode(der.SEQUENCE, tbs.raw, algorithm.raw, signature.raw)]) == []


def test_a_list_of_the_future_is_trouble(judge):
    (trouble,) = judge([crl(begin=NOW + DAY, due=NOW + 2 * DAY).public_bytes(DER)])
    assert "holds from " + (NOW + DAY).strftime("%Y-%m-%dT%H:%M:%SZ") in trouble
    assert judge([crl(begin=NOW + DAY, due=NOW + 2 * DAY).public_bytes(DER), RAW]) == []


@pytest.mark.parametrize("backend", ["cryptography", "openssl"])
def test_both_back_ends_know_the_signature(backend):
    chosen, made = choose_backend(backend), _crl.parse(RAW)
    authority, stranger = (_x509.parse_certificate(certificate(text).public_bytes(DER)) for text in ("ca-one", "x"))
    assert made.is_signed_by(chosen, authority)
    assert not made.is_signed_by(chosen, stranger)
    assert not _crl.parse(crl(key=ec.generate_private_key(ec.SECP256R1())).public_bytes(DER)).is_signed_by(
        chosen, authority
    )


def test_the_variables_of_the_lists_are_named(judge, tmp_path):
    judge([crl("ca-0ne").public_bytes(DER)])
    options = {"crl": str(tmp_path / "crl.pem"), "ca": str(tmp_path / "ca.pem"), "credentials": {}}
    (trouble,) = nginx.probe_crl(**options, variables="nanomq_nginx_mqtt_client")
    assert trouble.startswith("nanomq_nginx_mqtt_client_crl has no revocation list")


def test_every_ca_needs_a_list(judge):
    (trouble,) = judge([crl("ca-one").public_bytes(DER)], ["ca-one", "ca-two"])
    assert "has no revocation list of the CA 'ca-two'" in trouble
    assert judge([crl(n).public_bytes(DER) for n in ("ca-two", "ca-one")], ["ca-one", "ca-two"]) == []


def test_each_trouble_is_told(judge):
    lists = [crl("ca-one", due=NOW - DAY).public_bytes(DER)]
    first, second = judge(lists, ["ca-one", "ca-two"])
    assert "'ca-one' was to be replaced" in first
    assert "no revocation list of the CA 'ca-two'" in second


def test_a_list_of_another_issuer_is_none(judge):
    (trouble,) = judge([crl("ca-0ne").public_bytes(DER)])
    assert "has no revocation list of the CA 'ca-one'" in trouble


@pytest.mark.parametrize("text", [b"", b"junk", certificate().public_bytes(PEM), crl().public_bytes(DER)])
def test_a_file_without_a_list_has_none(judge, text):
    (trouble,) = judge(text)
    assert "has no revocation list of the CA 'ca-one'" in trouble


BROKEN = {
    "junk": b"junk",
    "cut": RAW[:-9],
    "nothing": b"",
    "an empty sequence": der.encode(der.SEQUENCE),
    "an empty list": der.encode(der.SEQUENCE, der.encode(der.SEQUENCE)),
    "a version alone": der.encode(der.SEQUENCE, der.encode(der.SEQUENCE, der.encode_integer(1))),
    "no sequence": der.encode_integer(5),
    "a list that is a number": der.encode(der.SEQUENCE, der.encode_integer(5)),
    "no next update": rebuilt(RAW, lambda fields: [node for number, node in enumerate(fields) if number != 4]),
    "a time that is none": RAW.replace((NOW + DAY).strftime("%y%m%d%H%M%SZ").encode(), b"991399999999Z"),
    "a certificate": certificate().public_bytes(DER),
}


@pytest.mark.parametrize("raw", BROKEN.values(), ids=BROKEN)
def test_a_list_that_cannot_be_read_is_trouble_and_no_crash(judge, raw):
    assert raw != RAW
    with pytest.raises(der.DerError):
        _crl.parse(raw)
    # Of what is no PEM with something in it nothing is seen at all.
    expected = "cannot be read: " if raw else "has no revocation list"
    (trouble,) = judge([crl().public_bytes(DER), raw] if raw else [raw])
    assert expected in trouble


def test_files_that_are_not_there_are_trouble(tmp_path):
    ca = tmp_path / "ca.pem"
    for content in (None, b"junk", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        if content is not None:
            ca.write_bytes(content)
        (trouble,) = nginx.crl_troubles(str(tmp_path / "missing"), str(ca))
        assert "cannot be read" in trouble
    ca.write_bytes(certificate("ca-one").public_bytes(PEM))
    (trouble,) = nginx.crl_troubles(str(tmp_path / "missing"), str(ca))
    assert "missing" in trouble


# --- the configuration ------------------------------------------------------------------------------------------------


@pytest.fixture
def host(monkeypatch):
    """A tree of configuration, logs, and a program that stands for nginx, where a namespace shows them."""
    assert os.geteuid() == 0, "the validators make namespaces: run these tests as root"
    place = Path(tempfile.mkdtemp(dir="/var/tmp", prefix="edgesec-test-"))
    for directory in ("nginx/conf.d", "nginx/sites-enabled", "log/sub", "run"):
        (place / directory).mkdir(parents=True)
    (place / "nginx/nginx.conf").write_text("main")
    (place / "nginx/conf.d/other.conf").write_text("other")
    (place / "nginx/sites-enabled/default").write_text("welcome")
    (place / "log/access.log").write_text("what was logged\n")
    (place / "new").write_text("staged")
    monkeypatch.setattr(nginx, "TREE", str(place / "nginx"))
    monkeypatch.setattr(nginx, "LOGS", str(place / "log"))
    monkeypatch.setattr(nginx, "PID_FILE", str(place / "run/nginx.pid"))

    def fake(argv):
        assert argv == ["nginx", "-t", "-q"]
        return run(["/bin/sh", str(place / "program")])

    monkeypatch.setattr(nginx, "run", fake)
    yield place
    shutil.rmtree(place)


def validate(host, script, *, staged=("conf.d/mine.conf",), without=()):
    """Let the script stand for `nginx -t`; return what it wrote to $RESULT."""
    result = host / "run/result"
    (host / "program").write_text(f"RESULT={result}\ncd {host}/nginx || exit 9\n{script}\n")
    before = snapshot(host / "nginx"), snapshot(host / "log")
    try:
        nginx.validate_nginx(
            without=[str(host / "nginx" / path) for path in without],
            staged={str(host / "nginx" / path): str(host / "new") for path in staged},
            credentials={"secret": "x"},
        )
    finally:
        assert (snapshot(host / "nginx"), snapshot(host / "log")) == before
    return result.read_text() if result.exists() else ""


def snapshot(directory):
    return {str(p): p.read_text() if p.is_file() else "" for p in sorted(directory.rglob("*"))}


def test_nginx_is_asked_about_the_tree_as_it_will_be(host):
    listing = 'for f in $(find . -type f | sort); do echo "$f: $(cat $f)"; done > $RESULT'
    assert validate(host, listing, without=["sites-enabled/default"]).splitlines() == [
        "./conf.d/mine.conf: staged",
        "./conf.d/other.conf: other",
        "./nginx.conf: main",
    ]
    assert (host / "nginx/sites-enabled/default").exists()


def test_what_nginx_refuses_is_told_by_its_last_words(host):
    script = "for n in 1 2 3 4 5; do echo line $n >&2; done; exit 1"
    with pytest.raises(
        TransactionError, match=r"^nginx refuses the configuration: line 2 \| line 3 \| line 4 \| line 5$"
    ):
        validate(host, script)
    with pytest.raises(TransactionError, match=r"^nginx refuses the configuration: exit code 3$"):
        validate(host, "exit 3")


def test_warnings_refuse_nothing(host):
    validate(host, "echo 'nginx: [warn] something'; exit 0")


def test_a_new_log_is_not_left_behind_and_directories_of_logs_are_there(host):
    logs = host / "log"
    validate(host, f"set -e; echo x > {logs}/new.log; echo x > {logs}/sub/new.log; test ! -e {logs}/access.log")


def test_a_host_without_the_directory_of_logs_can_be_asked(host):
    shutil.rmtree(host / "log")
    validate(host, "exit 0")


def test_an_empty_pid_file_is_not_left_behind(host):
    pid_file = Path(nginx.PID_FILE)
    for script in (f"> {pid_file}", f"> {pid_file}; exit 1", "exit 0"):
        with contextlib.suppress(TransactionError):
            validate(host, script)
        assert not pid_file.exists()


def test_the_pid_file_of_an_nginx_that_runs_stays(host):
    Path(nginx.PID_FILE).write_text("4711\n")
    validate(host, "exit 0")
    assert Path(nginx.PID_FILE).read_text() == "4711\n"


def test_an_nginx_that_is_not_there_refuses(host, monkeypatch):
    monkeypatch.setattr(nginx, "run", lambda argv: run(["/no/such/nginx", *argv[1:]]))
    with pytest.raises(TransactionError, match="refuses the configuration: /no/such/nginx: No such file"):
        validate(host, "exit 0")
    shutil.rmtree(host / "nginx")
    (host / "nginx").mkdir()
    monkeypatch.setattr(nginx, "TREE", str(host / "missing"))
    with pytest.raises(TransactionError, match=r"refuses the configuration: .*missing"):
        validate(host, "exit 0")


def test_the_transaction_knows_them():
    assert (VALIDATORS["nginx"], VALIDATORS["crl"]) == (nginx.validate_nginx, nginx.validate_crl)
    assert (PROBES["https"], PROBES["tls"], PROBES["crl"]) == (nginx.probe_https, nginx.probe_tls, nginx.probe_crl)


# --- the answers ------------------------------------------------------------------------------------------------------

GENERATION = "/.edgesec-nanomq/configuration"
BROKER = "/.edgesec-nanomq/broker"
REST = "/api/v4/brokers"
GOOD = {GENERATION: (200, b"one\n"), BROKER: (401, b""), REST: (403, b"{}"), "/": (404, b"")}


def write_pair(directory, text):
    path, shown = directory / f"{text}.pem", certificate(text).public_bytes(PEM)
    path.write_bytes(shown)
    plain = serialization.NoEncryption()
    key = directory / f"{text}.key"
    key.write_bytes(KEY.private_bytes(PEM, serialization.PrivateFormat.PKCS8, plain))
    return str(path), str(key)


class Front:
    """An HTTPS server on loopback that answers by a table; an answer of None hangs until the end."""

    def __init__(self, answers, pair=None):
        self.answers, self.requests, self.names = answers, [], []
        self.over = threading.Event()
        front = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                front.requests.append((self.path, self.headers["Host"], self.headers["Authorization"]))
                answer = front.answers.get(self.path)
                if answer is None:
                    front.over.wait(20)
                    return
                self.send_response(answer[0])
                self.send_header("Content-Length", str(len(answer[1])))
                self.end_headers()
                self.wfile.write(answer[1])

            def log_message(self, *_args):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_args):
                pass  # clients that give up are what is tested

        self.server = Server(("127.0.0.1", 0), Handler)
        if pair:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*pair)
            context.sni_callback = lambda _socket, asked, _context: self.names.append(asked)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_error):
        self.over.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)


@pytest.fixture
def pair(tmp_path):
    return write_pair(tmp_path, "front")


@pytest.fixture
def ask(pair, monkeypatch):
    """ask(answers, **options): what fails with a front end that answers so, over TLS with the right certificate."""
    monkeypatch.setattr(nginx, "TIMEOUT", 2.0)

    def probe(answers, **options):
        with Front(answers, pair) as front:
            result = nginx.probe_https(
                **{
                    "address": "127.0.0.1",
                    "port": front.port,
                    "name": "edge.example",
                    "certificate": pair[0],
                    "generation": "one",
                    "anonymous": False,
                    "credentials": {},
                    **options,
                }
            )
            probe.front = front
        return [text.replace(f"nginx on 127.0.0.1:{front.port}", "nginx") for text in result]

    return probe


def test_a_front_end_as_declared_passes(ask):
    assert ask(GOOD) == []
    assert ask.front.requests == [(path, "edge.example", None) for path in GOOD]
    assert set(ask.front.names) == {"edge.example"}


@pytest.mark.parametrize("name", ["127.0.0.1", "192.0.2.7", "2001:db8::1"])
def test_an_address_is_no_name_to_ask_for(ask, name):
    assert ask(GOOD, name=name) == []
    assert set(ask.front.names) == {None}
    assert {host for _path, host, _authorization in ask.front.requests} == {name}


def test_a_front_end_with_anonymous_roles_lets_callers_by_to_the_broker(ask):
    let_by = {**GOOD, REST: (401, b"")}
    assert ask(let_by, anonymous=True) == []
    (failing,) = ask(let_by, anonymous=False)
    assert failing.endswith(f"not treated as declared: {REST} has status 401 instead of 403")
    # Their role may not have this call.
    assert ask(GOOD, anonymous=True) == []
    (failing,) = ask({**GOOD, REST: (200, b"")}, anonymous=True)
    assert failing.endswith(f"{REST} has status 200 instead of 401 or 403")


@pytest.mark.parametrize(
    "answer",
    [(200, b"two\n"), (200, b""), (200, b"xone"), (200, b"onetwo"), (404, b"one"), (502, b"one"), (200, b"\xff")],
)
def test_an_old_configuration_is_seen_and_nothing_else_is_asked(ask, answer):
    (failing,) = ask({**GOOD, GENERATION: answer})
    assert failing.startswith(f"nginx does not run the configuration in its files (status {answer[0]})")
    assert [path for path, _host, _authorization in ask.front.requests] == [GENERATION]


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        (BROKER, 502, "the broker does not answer through it"),
        (BROKER, 504, "the broker does not answer through it"),
        (BROKER, 200, "the broker does not answer through it"),
        (BROKER, 404, "the broker does not answer through it"),
        (REST, 200, "a caller without a certificate is not treated as declared"),
        (REST, 404, "a caller without a certificate is not treated as declared"),
        (REST, 502, "a caller without a certificate is not treated as declared"),
        ("/", 200, "what is not REST is answered"),
        ("/", 403, "what is not REST is answered"),
    ],
)
def test_each_wrong_answer_is_named(ask, path, status, said):
    (failing,) = ask({**GOOD, path: (status, b"")})
    assert failing.startswith(f"nginx: {said}")
    assert failing.endswith(f": {path} has status {status} instead of {GOOD[path][0]}")


def test_all_that_fails_is_told(ask, tmp_path):
    other, _key = write_pair(tmp_path, "other")
    answers = {GENERATION: GOOD[GENERATION], BROKER: (502, b""), REST: (200, b""), "/": (200, b"")}
    failing = ask(answers, certificate=other)
    assert len(failing) == 4
    assert failing[0] == f"nginx serves another certificate than the one in {other}"


def test_another_certificate_is_seen(ask, tmp_path):
    other, _key = write_pair(tmp_path, "other")
    assert ask(GOOD, certificate=other) == [f"nginx serves another certificate than the one in {other}"]


def test_a_chain_is_compared_by_its_first_certificate(ask, tmp_path, pair):
    other, _key = write_pair(tmp_path, "other")
    chain = tmp_path / "chain.pem"
    chain.write_text("a comment\n" + Path(pair[0]).read_text() + Path(other).read_text())
    assert ask(GOOD, certificate=str(chain)) == []
    chain.write_text(Path(other).read_text() + Path(pair[0]).read_text())
    assert len(ask(GOOD, certificate=str(chain))) == 1


@pytest.mark.parametrize("content", [None, b"", b"junk", b"-----BEGIN CERTIFICATE-----\n", b"\xff\xfe"])
def test_a_certificate_that_cannot_be_read_fails(ask, tmp_path, content):
    path = tmp_path / "broken.pem"
    if content is not None:
        path.write_bytes(content)
    assert len(ask(GOOD, certificate=str(path))) == 1


@pytest.mark.parametrize("name", ["", "a..b", ".example", "x" * 64 + ".example"])
def test_a_strange_name_is_no_crash(ask, name):
    assert isinstance(ask(GOOD, name=name), list)


def probes(port, pair):
    """What both probes say of a port."""
    common = {"address": "127.0.0.1", "port": port, "certificate": pair[0], "credentials": {}}
    return [
        *nginx.probe_https(name="edge.example", generation="one", anonymous=False, **common),
        *nginx.probe_tls(**common),
    ]


def test_a_closed_port_fails(pair):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        by_https, by_tls = probes(unused.getsockname()[1], pair)
    assert "does not answer by TLS" in by_https
    assert "refused" in by_https
    assert "refused" in by_tls


def test_plain_http_fails(pair):
    with Front(GOOD) as front:
        by_https, by_tls = probes(front.port, pair)
    assert "does not answer by TLS" in by_https
    assert by_tls.startswith(f"TLS on 127.0.0.1:{front.port}: ")
    assert front.requests == []


def test_a_server_that_says_nothing_is_given_up(pair, monkeypatch):
    monkeypatch.setattr(nginx, "TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        by_https, by_tls = probes(silent.getsockname()[1], pair)
    assert time.monotonic() - started < 3
    assert "timed out" in by_https
    assert "timed out" in by_tls


@pytest.mark.parametrize(("path", "left"), [(GENERATION, 1), (BROKER, 1), ("/", 1)])
def test_an_answer_that_never_comes_is_given_up(ask, monkeypatch, path, left):
    monkeypatch.setattr(nginx, "TIMEOUT", 0.5)
    started = time.monotonic()
    failing = ask({**GOOD, path: None})
    assert time.monotonic() - started < 5
    assert len(failing) == left
    assert "timed out" in failing[0]


@pytest.mark.parametrize(
    "reply", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 xyz\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70000]
)
def test_what_is_no_http_within_tls_fails(pair, reply):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            for _client in range(2):
                raw, _address = server.accept()
                with contextlib.suppress(OSError), context.wrap_socket(raw, server_side=True) as connection:
                    connection.settimeout(2)
                    connection.recv(4096)
                    connection.sendall(reply)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        (by_https,) = probes(server.getsockname()[1], pair)
        thread.join(5)
    assert "does not answer by TLS" in by_https


def test_a_port_that_serves_the_certificate_passes(pair, tmp_path):
    other, _key = write_pair(tmp_path, "other")
    with Front(GOOD, pair) as front:
        common = {"address": "127.0.0.1", "port": front.port, "credentials": {}}
        assert nginx.probe_tls(certificate=pair[0], **common) == []
        where = f"TLS on 127.0.0.1:{front.port}: "
        assert nginx.probe_tls(certificate=other, **common) == [
            f"{where}another certificate is served than the one in {other}"
        ]
        for broken in (str(tmp_path), str(tmp_path / "missing"), pair[1]):
            (failing,) = nginx.probe_tls(certificate=broken, **common)
            assert failing.startswith(where)
    assert front.requests == []
    assert set(front.names) == {None}
