# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""What host_info tells of the programs of front ends, as they are found on the systems."""

from __future__ import annotations

import pytest
from ansible_collections.edgesec.nanomq.plugins.modules import host_info

DEBIAN = """\
nginx version: nginx/1.22.1
built with OpenSSL 3.0.8 7 Feb 2023 (running with OpenSSL 3.0.17 1 Jul 2025)
TLS SNI support enabled
configure arguments: --prefix=/usr/share/nginx --modules-path={modules} --with-http_ssl_module --with-stream=dynamic \
--with-stream_ssl_module --with-stream_geoip_module=dynamic"""


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """installed(text): what nginx() makes of an nginx that prints this. {modules} is where modules are."""

    def ask(text: str, code: int = 0):
        def run(argv):
            assert argv == ["/usr/sbin/nginx", "-V"]
            return code, text.replace("{modules}", str(tmp_path))

        monkeypatch.setattr(host_info.shutil, "which", lambda name, path: f"/usr/sbin/{name}")
        monkeypatch.setattr(host_info, "run", run)
        return host_info.nginx()

    return ask


def test_no_nginx(monkeypatch):
    monkeypatch.setattr(host_info.shutil, "which", lambda name, path: None)
    monkeypatch.setattr(host_info, "run", lambda argv: pytest.fail("there is nothing to run"))
    assert host_info.nginx() == ("", False)


def test_a_stream_module_counts_once_it_is_installed(installed, tmp_path):
    assert installed(DEBIAN) == ("1.22.1", False)
    (tmp_path / "ngx_stream_module.so").touch()
    assert installed(DEBIAN) == ("1.22.1", True)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--with-stream --with-threads", True),
        ("--with-threads --with-stream", True),
        ("--with-stream", True),
        ("--with-stream_ssl_module", False),
        ("--with-stream_realip_module --with-stream=dynamic", False),
        ("", False),
    ],
)
def test_a_stream_module_that_is_built_in(installed, arguments, expected):
    text = f"nginx version: nginx/1.28.0 (Ubuntu)\nconfigure arguments: {arguments}".strip()
    assert installed(text) == ("1.28.0", expected)


@pytest.mark.parametrize(
    ("code", "text"), [(127, "nginx: Permission denied"), (1, ""), (0, "nginx version: openresty")]
)
def test_an_nginx_that_does_not_tell(installed, code, text):
    assert installed(text, code) == ("", False)


# --- the host key -----------------------------------------------------------------------------------------------------


def key(directory, kind, text):
    (directory / f"ssh_host_{kind}_key.pub").write_text(text)


def test_the_host_key_is_told_without_its_comment(tmp_path):
    key(tmp_path, "rsa", "ssh-rsa AAAAB3 root@host\n")
    assert host_info.ssh_host_key(str(tmp_path)) == "ssh-rsa AAAAB3"


def test_the_best_host_key_is_told(tmp_path):
    seen = [host_info.ssh_host_key(str(tmp_path))]
    for kind, text in (("rsa", "ssh-rsa R x"), ("ecdsa", "ecdsa-sha2-nistp256 E x"), ("ed25519", "ssh-ed25519 D x y")):
        key(tmp_path, kind, text)
        seen.append(host_info.ssh_host_key(str(tmp_path)))
    assert seen == ["", "ssh-rsa R", "ecdsa-sha2-nistp256 E", "ssh-ed25519 D"]


def test_no_ssh_server(tmp_path):
    assert host_info.ssh_host_key(str(tmp_path / "missing")) == ""
    (tmp_path / "ssh_host_ed25519_key.pub").mkdir()
    assert host_info.ssh_host_key(str(tmp_path)) == ""


def test_the_module_returns_all_that_it_documents(run_module):
    result = run_module("host_info", {"package": "no-such-package", "program": "/no/such/program"})
    assert not result["failed"]
    assert not result["changed"]
    assert {"nginx_version", "nginx_stream", "ssh_host_key"} <= set(result)
    assert result["nginx_stream"] in (True, False)
