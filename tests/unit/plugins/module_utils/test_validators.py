# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Validators, asked with the programs themselves: nft, systemd-analyze, and NanoMQ or its double."""

from __future__ import annotations

import datetime
import importlib.util
import os
import shutil
import stat
import sys
import tempfile
import time
from pathlib import Path

import jwt
import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils import _validators as validators
from ansible_collections.edgesec.nanomq.plugins.module_utils._transaction import TransactionError
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

PEM = serialization.Encoding.PEM
PKCS8 = serialization.PrivateFormat.PKCS8
DOUBLE = Path(__file__).parents[3] / "broker_double" / "nanomq"


@pytest.fixture(autouse=True)
def as_root():
    assert os.geteuid() == 0, "the validators make namespaces: run these tests as root"


@pytest.fixture(scope="module")
def place():
    """A directory that others can read, and that a namespace with a /tmp of its own still shows."""
    path = Path(tempfile.mkdtemp(dir="/var/tmp", prefix="edgesec-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


# --- nft and systemd --------------------------------------------------------------------------------------------------


def nft(tmp_path, text):
    staged = tmp_path / ".firewall.nft.123.new"
    staged.write_text(text)
    validators.validate_nft(file="/etc/x/firewall.nft", staged={"/etc/x/firewall.nft": str(staged)}, credentials={})


def test_rules_that_load_pass_and_are_not_left_in_the_kernel(tmp_path):
    name = f"edgesec_test_{os.getpid()}"
    nft(tmp_path, f"table inet {name} {{\n chain in {{\n  tcp dport 8081 drop\n }}\n}}\n")
    assert validators.run(["nft", "list", "table", "inet", name])[0] != 0


@pytest.mark.parametrize(
    "text", ["table inet x {\n chain c {\n  tcp dport nonsense drop\n }\n}\n", "add rule inet none c drop"]
)
def test_rules_that_do_not_load_are_refused_under_the_name_of_their_file(tmp_path, text):
    with pytest.raises(TransactionError, match=r"nft refuses /etc/x/firewall.nft: ") as caught:
        nft(tmp_path, text)
    assert str(tmp_path) not in str(caught.value)


UNIT = (
    "[Unit]\nDescription=x\n[Service]\nType=exec\nExecStart=/bin/sleep 1\n{}\n[Install]\nWantedBy=multi-user.target\n"
)


def systemd(tmp_path, extra):
    staged = tmp_path / ".nanomq.service.123.new"
    staged.write_text(UNIT.format(extra))
    file = "/etc/systemd/system/nanomq-test.service"
    validators.validate_systemd(file=file, staged={file: str(staged)}, credentials={})


@pytest.mark.parametrize("extra", ["", "ProtectSystem=strict", "ExecStartPre=/no/such/program"])
def test_a_unit_that_systemd_understands_passes(tmp_path, extra):
    systemd(tmp_path, extra)


@pytest.mark.parametrize("extra", ["ProtectSistem=strict", "ProtectSystem=perhaps", "[Sevrice]\nUser=x"])
def test_a_unit_with_a_line_that_systemd_would_ignore_is_refused(tmp_path, extra):
    with pytest.raises(TransactionError, match=r"does not understand /etc/systemd/system/nanomq-test.service: .+"):
        systemd(tmp_path, extra)


# --- a key and its certificate ----------------------------------------------------------------------------------------


def make_pair(directory, name, *, passphrase=None, key=None):
    key = key or ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now).not_valid_after(now + datetime.timedelta(1))
    encryption = serialization.BestAvailableEncryption(passphrase.encode()) if passphrase else None
    (directory / f"{name}.cert").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(PEM))
    (directory / f"{name}.key").write_bytes(key.private_bytes(PEM, PKCS8, encryption or serialization.NoEncryption()))


def key_pair(tmp_path, certificate, key, ca="one.cert", passphrase=None):
    paths = {"certificate": certificate, "key": key, "ca": ca}
    staged = {f"/etc/x/{name}": str(tmp_path / name) for name in paths.values()}
    options = {option: f"/etc/x/{name}" for option, name in paths.items()}
    options["variables"] = "role_key_path, role_certificate_path"
    validators.validate_key_pair(staged=staged, credentials={"key_passphrase": passphrase}, **options)


@pytest.fixture
def pairs(tmp_path):
    make_pair(tmp_path, "one")
    make_pair(tmp_path, "two")
    make_pair(tmp_path, "rsa", key=rsa.generate_private_key(65537, 2048))
    make_pair(tmp_path, "locked", passphrase="open sesame")
    (tmp_path / "junk").write_text("junk")
    (tmp_path / "truncated").write_bytes((tmp_path / "one.key").read_bytes()[:60])
    return tmp_path


@pytest.mark.parametrize("name", ["one", "rsa"])
def test_a_pair_passes(pairs, name):
    key_pair(pairs, f"{name}.cert", f"{name}.key")
    key_pair(pairs, f"{name}.cert", f"{name}.key", passphrase="not needed")


def test_an_encrypted_key_passes_with_its_passphrase_alone(pairs):
    key_pair(pairs, "locked.cert", "locked.key", passphrase="open sesame")
    for wrong in ("wrong-Passphrase", None, ""):
        with pytest.raises(TransactionError, match="do not make a pair") as caught:
            key_pair(pairs, "locked.cert", "locked.key", passphrase=wrong)
        assert "wrong-Passphrase" not in str(caught.value)


@pytest.mark.parametrize(
    ("certificate", "key"),
    [
        ("one.cert", "two.key"),
        ("one.cert", "rsa.key"),
        ("one.cert", "junk"),
        ("one.cert", "truncated"),
        ("junk", "one.key"),
        ("one.key", "one.cert"),
        ("one.cert", "missing"),
        ("missing", "one.key"),
    ],
)
def test_what_is_no_pair_is_refused(pairs, certificate, key):
    with pytest.raises(TransactionError, match=r"do not make a pair: .+\. Give the key .+\(role_key_path, role_cert"):
        key_pair(pairs, certificate, key)


@pytest.mark.parametrize("ca", ["junk", "missing", "one.key"])
def test_a_ca_that_cannot_be_used_is_refused(pairs, ca):
    with pytest.raises(TransactionError, match="CA certificate"):
        key_pair(pairs, "one.cert", "one.key", ca=ca)


# --- what the broker loaded -------------------------------------------------------------------------------------------

MEANT = {
    "system": {"enable_ipc_internal": False},
    "mqtt": {"property_size": 32, "max_mqueue_len": 1024},
    "http_server": {"port": 8081, "ip_addr": "127.0.0.1", "auth_type": "jwt"},
    "auth": {"allow_anonymous": False, "password": {"sensor": "secret-One", "gate": "secret-Two"}},
    "listeners": {
        "ssl": {"bind": "0.0.0.0:8883", "verify_peer": True, "fail_if_no_peer_cert": True},
        "wss": {"bind": "127.0.0.1:8086/mqtt"},
    },
}


def loaded():
    return {
        "basic": {"allow_anonymous": False, "ipc_internal": False, "property_size": 32, "msq_len": 1024},
        "tls": {
            "enable": True,
            "url": "tls+nmq-tcp://0.0.0.0:8883",
            "verify_peer": True,
            "fail_if_no_peer_cert": True,
        },
        "auth": [{"login": "sensor", "password": "secret-One"}, {"login": "gate", "password": "secret-Two"}],
        "websocket": {"tls_url": "nmq-wss://127.0.0.1:8086/mqtt"},
        "http_server": {"port": 8081, "addr": "127.0.0.1", "auth_type": "jwt"},
    }


def test_what_was_meant_and_loaded_is_no_difference():
    assert validators.compare(MEANT, loaded()) == []
    assert validators.compare(MEANT, {}) == []


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("basic", "allow_anonymous", True, "auth.allow_anonymous is True to the broker, not False"),
        ("basic", "allow_anonymous", None, "auth.allow_anonymous is None"),
        ("basic", "ipc_internal", True, "system.enable_ipc_internal"),
        ("basic", "property_size", 16, "mqtt.property_size is 16 to the broker, not 32"),
        ("basic", "msq_len", 1, "mqtt.max_mqueue_len"),
        ("tls", "enable", False, "listeners.ssl is False"),
        ("tls", "verify_peer", False, "listeners.ssl.verify_peer"),
        ("tls", "fail_if_no_peer_cert", False, "listeners.ssl.fail_if_no_peer_cert"),
        ("tls", "url", "tls+nmq-tcp://0.0.0.0:1", "listeners.ssl.bind is '0.0.0.0:1'"),
        ("tls", "url", None, "listeners.ssl.bind"),
        ("websocket", "tls_url", "nmq-wss://0.0.0.0:8086/mqtt", "listeners.wss.bind is '0.0.0.0:8086/mqtt'"),
        ("http_server", "addr", "0.0.0.0", "http_server.ip_addr is '0.0.0.0' to the broker, not '127.0.0.1'"),
        ("http_server", "port", 80, "http_server.port"),
        ("http_server", "auth_type", "basic", "http_server.auth_type is 'basic'"),
    ],
)
def test_each_difference_is_named(section, key, value, said):
    found = loaded()
    found[section][key] = value
    (difference,) = validators.compare(MEANT, found)
    assert said in difference


@pytest.mark.parametrize(
    ("users", "said"),
    [
        ([{"login": "sensor", "password": "secret-One"}], ["does not know user gate"]),
        ([], ["does not know user gate", "does not know user sensor"]),
        (None, ["does not know user gate", "does not know user sensor"]),
        (
            [{"login": "sensor", "password": "sec"}, {"login": "gate", "password": "secret-Two"}],
            ["misreads the password of user sensor"],
        ),
        (
            [*loaded()["auth"], {"login": "admin", "password": "public"}],
            ["knows an undeclared user admin"],
        ),
    ],
)
def test_each_difference_of_the_users_is_named_without_a_password(users, said):
    differences = validators.compare(MEANT, {**loaded(), "auth": users})
    assert len(differences) == len(said)
    for difference, expected in zip(differences, said):
        assert expected in difference
        assert "secret" not in difference
        assert "public" not in difference


def test_a_user_called_enable_is_one_and_a_switch_is_none():
    meant = {**MEANT, "auth": {"allow_anonymous": False, "password": {"enable": "text"}}}
    assert validators.compare(meant, {**loaded(), "auth": [{"login": "enable", "password": "text"}]}) == []
    meant["auth"]["password"] = {"enable": True}
    assert validators.compare(meant, {**loaded(), "auth": []}) == []


def test_a_tls_listener_with_a_name_is_not_shown_and_so_not_compared():
    meant = {**MEANT, "listeners": {"ssl": {"one": MEANT["listeners"]["ssl"]}}}
    assert validators.compare(meant, {**loaded(), "tls": {"enable": False, "url": None}}) == []


def test_a_tls_listener_that_is_off_is_off():
    meant = {**MEANT, "listeners": {"ssl": {**MEANT["listeners"]["ssl"], "enable": False}}}
    found = loaded()
    assert validators.compare(meant, found) == ["listeners.ssl is True to the broker, not False"]
    found["tls"]["enable"] = False
    assert validators.compare(meant, found) == []


def test_without_authentication_the_broker_says_basic():
    meant = {**MEANT, "http_server": {"auth_type": "no_auth"}}
    found = loaded()
    found["http_server"]["auth_type"] = "basic"
    assert validators.compare(meant, found) == []


def test_what_the_file_does_not_say_is_not_compared():
    found = loaded()
    found["tls"] = {"enable": False}
    assert validators.compare({"auth": {"password": MEANT["auth"]["password"]}}, found) == []


# --- the broker itself ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broker(place):
    """A NanoMQ if there is one (NANOMQ_BINARY or on the path), else its double."""
    real = os.environ.get("NANOMQ_BINARY") or shutil.which("nanomq")
    if real:
        return real, "nobody"
    # Not everybody may be able to read the Python that runs the tests.
    return str(install_double(place)), "root"


def install_double(place):
    """The double as its package installs it: the checkout may lie below /tmp, which the namespace has anew."""
    library = place / "lib" / "nanomq-double"
    sources = [DOUBLE.parent / "nanomq_double"]
    for name in ("amqtt", "dacite", "six", "transitions", "typing_extensions", "websockets", "yaml"):
        origin = Path(importlib.util.find_spec(name).origin)
        sources.append(origin.parent if origin.name == "__init__.py" else origin)
    for source in sources:
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, library / source.name)
    (place / "bin").mkdir()
    shutil.copy(DOUBLE, place / "bin" / "nanomq")
    program = place / "nanomq"
    program.write_text(f'#!/bin/sh\nexec "{Path(sys.executable).resolve()}" "{place}/bin/nanomq" "$@"\n')
    program.chmod(0o755)
    return program


CONF = """\
system {{ enable_ipc_internal = false }}
http_server {{ port = 8081, ip_addr = "127.0.0.1", auth_type = jwt, jwt.public.keyfile = "{key}" }}
auth {{ allow_anonymous = false, password {{ "sensor" = "secret-One" }} }}
listeners.tcp {{ bind = "127.0.0.1:1883" }}
"""


class Caller:
    """The key pair of the tokens, and a configuration that names its public half."""

    def __init__(self, place):
        self.place = place
        self.private = rsa.generate_private_key(65537, 2048)
        self.public = place / "jwt-test.pub"
        info = serialization.PublicFormat.SubjectPublicKeyInfo
        self.public.write_bytes(self.private.public_key().public_bytes(PEM, info))
        self.public.chmod(0o644)
        self.conf = CONF.format(key=self.public)

    def credentials(self, private=None):
        claims = {"iss": self.public.name, "exp": int(time.time()) + 600}
        return {"rest_authorization": "Bearer " + jwt.encode(claims, private or self.private, algorithm="RS256")}

    def validate(self, program, user, text, *, mode=0o644, credentials=None):
        path = self.place / ".nanomq.conf.123.new"
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(mode)
        validators.validate_nanomq(
            conf="/etc/nanomq/nanomq.conf",
            program=program,
            user=user,
            staged={"/etc/nanomq/nanomq.conf": str(path)},
            credentials=self.credentials() if credentials is None else credentials,
        )


@pytest.fixture(scope="module")
def caller(place):
    return Caller(place)


def test_a_good_configuration_passes(broker, caller):
    before = {name for name in os.listdir("/tmp") if name.startswith("nanomq")}
    caller.validate(*broker, caller.conf)
    assert {name for name in os.listdir("/tmp") if name.startswith("nanomq")} == before


def test_it_passes_without_credentials_where_rest_asks_for_some(broker, caller):
    caller.validate(*broker, caller.conf, credentials={})


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("anonymous = false", 'anonymous = "false"', "auth.allow_anonymous is True to the broker, not 'false'"),
        ('"secret-One"', "4711", "the broker does not know user sensor"),
        ("internal = false", 'internal = "false"', "system.enable_ipc_internal is True"),
    ],
)
def test_what_the_broker_ignores_in_silence_is_seen(broker, caller, right, wrong, said):
    assert right in caller.conf
    with pytest.raises(TransactionError, match="would not do what this configuration means") as caught:
        caller.validate(*broker, caller.conf.replace(right, wrong))
    assert said in str(caught.value)
    assert "secret-One" not in str(caught.value)


def test_a_misspelt_kind_of_authentication_is_seen(broker, caller):
    with pytest.raises(TransactionError, match="configuration/basic with 401"):
        caller.validate(*broker, caller.conf.replace("auth_type = jwt", 'auth_type = "jtw"'))


def test_a_token_of_another_key_is_seen(broker, caller):
    stranger = caller.credentials(rsa.generate_private_key(65537, 2048))
    with pytest.raises(TransactionError, match="GET configuration/basic with 401"):
        caller.validate(*broker, caller.conf, credentials=stranger)


@pytest.mark.parametrize("text", ["", "x {", "# nothing\n", "x = []\n"])
def test_a_syntax_error_is_refused_with_its_place(broker, caller, text):
    with pytest.raises(TransactionError, match=r"/etc/nanomq/nanomq.conf: line \d+, column \d+: "):
        caller.validate(*broker, (caller.conf + text) if text and not text.startswith("#") else text)


def test_a_configuration_that_the_user_cannot_read_is_refused_at_once(broker, caller):
    program, _user = broker
    started = time.monotonic()
    with pytest.raises(TransactionError, match=r"nobody cannot use .*\.new: Permission denied"):
        caller.validate(program, "nobody", caller.conf, mode=0o600)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("kill -SEGV $$", r"it ends at once \(signal 11\)"),
        ("echo one; echo '*** FATAL: no' >&2; exit 1", r"it ends at once \(exit code 1\): one \| \*\*\* FATAL: no"),
        ("exit 0", r"it ends at once \(exit code 0\): it printed nothing"),
    ],
)
def test_a_broker_that_ends_is_told_with_its_last_words(caller, script, said):
    program = caller.place / "ends"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    with pytest.raises(TransactionError, match=said):
        caller.validate(str(program), "nobody", caller.conf)


def test_a_broker_that_does_not_answer_is_given_up(caller, monkeypatch):
    monkeypatch.setattr(validators, "START_LIMIT", 0.3)
    program = caller.place / "hangs"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    with pytest.raises(TransactionError, match=r"REST does not answer on 127\.0\.0\.1:8081 within 0\.3 s"):
        caller.validate(str(program), "nobody", caller.conf)
    sleeping = [p for p in os.listdir("/proc") if p.isdigit() and cmdline(p) == b"sleep\x0060\x00"]
    assert [pid for pid in sleeping if os.stat(f"/proc/{pid}").st_uid != 0] == []


def cmdline(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_a_program_or_user_that_is_not_there_is_told(caller):
    with pytest.raises(TransactionError, match="no/such/nanomq: No such file"):
        caller.validate("/no/such/nanomq", "nobody", caller.conf)
    with pytest.raises(TransactionError, match="no-such-user"):
        caller.validate("/bin/true", "no-such-user", caller.conf)


# --- several of them --------------------------------------------------------------------------------------------------


def test_the_first_validator_that_refuses_ends_it(monkeypatch):
    seen = []

    def refuses(**options):
        seen.append(options)
        raise TransactionError("no")

    monkeypatch.setitem(validators.VALIDATORS, "nft", refuses)
    monkeypatch.setitem(validators.VALIDATORS, "systemd", lambda **options: seen.append("never"))
    with pytest.raises(TransactionError, match="no"):
        validators.run_validators([{"type": "nft", "file": "f"}, {"type": "systemd"}], {"f": "g"}, {"c": "d"})
    assert seen == [{"file": "f", "staged": {"f": "g"}, "credentials": {"c": "d"}}]


def test_the_double_is_a_program():
    assert os.stat(DOUBLE).st_mode & stat.S_IXUSR
