# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""sshd: whether a drop-in for one account means what it says, and whether the running sshd has taken it up.

What counts is never what a file says but what sshd makes of all its files for an account: the first value wins, and an
earlier Match or a main file that includes nothing leaves a perfect drop-in without effect.
Sources: sshd(8), options -T and -C; sshd_config(5), Match and PidFile; ssh-keygen(1), option -l; shadow(5).
"""

from __future__ import annotations

import contextlib
import fnmatch
import grp
import os
import pwd
import re
import socket
import time
from collections.abc import Collection, Iterator

from ansible_collections.edgesec.nanomq.plugins.module_utils._namespaces import in_namespaces, overlay
from ansible_collections.edgesec.nanomq.plugins.module_utils._transaction import TransactionError, run

SSHD = "/usr/sbin/sshd"
#: The directory that sshd wants to find; where sshd runs for each connection alone, it may not be there yet.
PRIVILEGE_SEPARATION = "/run/sshd"
#: Seconds that the running sshd gets to answer.
TIMEOUT = 3
#: Accounts from here on are people's (login.defs(5), UID_MIN).
FIRST_PERSON = 1000


# --- what sshd makes of its files -------------------------------------------------------------------------------------


def settings(text: str) -> dict[str, str]:
    """The settings of the first ``Match User`` block of a drop-in: {"permittty": "no", ...}, keywords in lower case."""
    block = re.split(r"(?im)^\s*match\s.*$", text)[1:2]
    lines = [line.strip() for line in "".join(block).splitlines()]
    pairs = (line.split(None, 1) for line in lines if line and not line.startswith("#"))
    return {keyword.lower(): value for keyword, value in pairs}


def effective(user: str) -> dict[str, list[str]]:
    """What sshd does for a user, by keyword in lower case: the values in their order."""
    # Named, since a criterion that is not given is an error as soon as some Match asks for it.
    connection = f"user={user},host=localhost,addr=127.0.0.1,laddr=127.0.0.1,lport=22"
    code, out = run([SSHD, "-T", "-C", connection])
    if code != 0:
        raise TransactionError(f"sshd cannot use its configuration: {out}")
    result: dict[str, list[str]] = {}
    for line in out.splitlines():
        keyword, _space, value = line.partition(" ")
        result.setdefault(keyword, []).append(value)
    return result


def differences(meant: dict[str, str], have: dict[str, list[str]], user: str, file: str) -> list[str]:
    """What is not in force of the settings, in words; [] where all is."""
    wrong = {keyword: have.get(keyword, []) for keyword, value in meant.items() if have.get(keyword) != [value]}
    if not wrong:
        return []
    if {"permitopen", "forcecommand", "allowtcpforwarding"} <= set(wrong):
        return [
            f"sshd takes nothing of {file} for {user}: put 'Include {os.path.dirname(file)}/*.conf' at the top of "
            "sshd_config, and take out what is said of this account, or of all, before it"
        ]
    return [
        f"{keyword} is {' '.join(values) or 'unknown'} for {user}, not {meant[keyword]}: a Match before "
        f"{file} sets it; take it out there, or let it come after"
        for keyword, values in sorted(wrong.items())
    ]


@contextlib.contextmanager
def _directory_of_sshd() -> Iterator[None]:
    """Let the directory without which sshd does not even check its files be there for a moment."""
    made = not os.path.isdir(PRIVILEGE_SEPARATION)
    if made:
        os.makedirs(PRIVILEGE_SEPARATION, 0o755)
    try:
        yield
    finally:
        if made:
            with contextlib.suppress(OSError):
                os.rmdir(PRIVILEGE_SEPARATION)


# --- the validator ----------------------------------------------------------------------------------------------------


def validate_sshd(
    *,
    file: str,
    user: str,
    service: str,
    unaffected: list[str],
    keys: Collection[str] = (),
    staged: dict[str, str],
    credentials: dict,
) -> None:
    """The drop-in means for its account what it says, and nothing for anybody else.

    file: the drop-in, with one ``Match User`` block whose values are spelt as ``sshd -T`` spells them
    service: the unit that runs sshd, "" where each connection starts its own
    unaffected: users for whom everything must stay as it is
    keys: files of the set whose every line must hold a key
    """
    del credentials
    _check_account(user)
    _check_service(service)
    for path in keys:
        _check_keys(path, staged[path])
    with open(staged[file], encoding="utf-8") as handle:
        meant = settings(handle.read())
    with _directory_of_sshd():
        result = in_namespaces(lambda: _ask(file, user, unaffected, staged), network=False)
    if result.get("error"):
        raise TransactionError(result["error"])
    have = result["account"]
    troubles = differences(meant, have, user, file) + _denied(user, have) + _locked(user, have)
    troubles += [
        f"{keyword} would change for {other}, whom {file} must not concern" for other, keyword in result["changed"]
    ]
    if troubles:
        raise TransactionError("; ".join(troubles))


def _ask(file: str, user: str, unaffected: list[str], staged: dict[str, str]) -> dict:
    """Inside the namespaces: what sshd does now for the others, and with the staged file for all."""
    before = {other: effective(other) for other in unaffected}
    overlay(os.path.dirname(file), staged)
    code, out = run([SSHD, "-t"])
    if code != 0:
        raise TransactionError(f"sshd refuses its configuration: {out}")
    changed = []
    for other, then in before.items():
        now = effective(other)
        changed += [(other, keyword) for keyword in sorted({*then, *now}) if then.get(keyword) != now.get(keyword)]
    return {"account": effective(user), "changed": changed}


def _check_account(user: str) -> None:
    """The account is nobody's: it cannot log in, and it is no person's and not root's."""
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        return  # check mode, before the account is made
    if account.pw_uid != 0 and account.pw_uid < FIRST_PERSON and os.path.basename(account.pw_shell) in _NO_SHELLS:
        if os.access(account.pw_shell, os.X_OK):
            return
        raise TransactionError(
            f"sshd lets {user} in by nothing, since its shell {account.pw_shell} is not there: "
            f"run usermod --shell /usr/bin/false {user}"
        )
    raise TransactionError(
        f"the account {user} (uid {account.pw_uid}, shell {account.pw_shell or '/bin/sh'}) belongs to somebody, and "
        "the tunnel would take its logins away: give another name in nanomq_ssh_tunnel_user"
    )


_NO_SHELLS = ("nologin", "false")


def _check_service(service: str) -> None:
    if service and run(["systemctl", "is-active", "--quiet", service])[0] != 0:
        raise TransactionError(
            f"{service} does not run, and this role starts no sshd: name the unit that runs it in "
            "nanomq_ssh_tunnel_service, or leave that empty where ssh.socket starts an sshd for each connection"
        )


def _check_keys(path: str, place: str) -> None:
    """Each line holds a key that OpenSSH can read. sshd itself passes over a line that it does not understand."""
    with open(place, encoding="utf-8") as handle:
        lines = [line for line in handle if line.strip() and not line.startswith("#")]
    _code, out = run(["ssh-keygen", "-l", "-f", place])
    found = len(re.findall(r"(?m)^\d+ SHA256:", out))
    if found != len(lines):
        raise TransactionError(
            f"OpenSSH reads {found} keys in {path}, where {len(lines)} are declared: see nanomq_ssh_tunnel_keys and "
            "nanomq_ssh_tunnel_user_ca"
        )


def _denied(user: str, have: dict[str, list[str]]) -> list[str]:
    """What of DenyUsers and DenyGroups shuts the account out. An allow list cannot: the drop-in has its own."""
    names = {"denyusers": [user], "denygroups": _groups(user)}
    return [
        f"{keyword} {pattern} of sshd_config shuts {user} out: take it out there"
        for keyword, candidates in names.items()
        for pattern in have.get(keyword, [])
        if any(fnmatch.fnmatchcase(name, pattern.removesuffix("@*")) for name in candidates)
    ]


def _groups(user: str) -> list[str]:
    try:
        gids = os.getgrouplist(user, pwd.getpwnam(user).pw_gid)
    except KeyError:
        return []
    return [entry.gr_name for entry in grp.getgrall() if entry.gr_gid in gids]


def _locked(user: str, have: dict[str, list[str]], shadow: str = "/etc/shadow") -> list[str]:
    """Without PAM, sshd lets nobody in whose password is locked, by no key either."""
    if have.get("usepam", ["yes"]) != ["no"]:
        return []
    with open(shadow, encoding="utf-8") as handle:
        passwords = dict(line.split(":")[:2] for line in handle if ":" in line)
    if not passwords.get(user, "").startswith("!"):
        return []
    return [f"sshd runs without PAM, where a locked account gets in by no key: run usermod -p '*' {user}"]


# --- the probe --------------------------------------------------------------------------------------------------------


def probe_sshd(*, file: str, user: str, service: str, credentials: dict) -> list[str]:
    """The files in force mean for the account what the drop-in says, and the sshd that runs has read it."""
    del credentials
    try:
        with open(file, encoding="utf-8") as handle:
            meant = settings(handle.read())
        with _directory_of_sshd():
            have = effective(user)
    except (OSError, TransactionError) as error:
        return [str(error)]
    failing = differences(meant, have, user, file) + _denied(user, have) + (_stale(file, have) if service else [])
    return failing or _conversation(user, have)


def _stale(file: str, have: dict[str, list[str]]) -> list[str]:
    """sshd writes its pid file when it starts and whenever it is reloaded, by whomever, and reads its files then."""
    try:
        taken_up = os.stat(have["pidfile"][0]).st_mtime_ns
    except (OSError, KeyError):
        return []  # it keeps none: the conversation must do
    written = os.stat(file).st_mtime_ns
    # A file from the future tells that the clock is wrong, and nothing else.
    if taken_up >= written or written > time.time_ns():
        return []
    return [f"sshd runs with what it read before {file} was written"]


def _conversation(user: str, have: dict[str, list[str]]) -> list[str]:
    """Ask the running sshd for what the account may log in by: with a key, and by nothing else."""
    address, port = _address(have)
    ssh = ["ssh", "-F", "none", "-p", port, "-o", "BatchMode=yes", "-o", "PreferredAuthentications=none"]
    ssh += ["-o", "PubkeyAuthentication=no", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
    ssh += ["-o", f"ConnectTimeout={TIMEOUT}", f"{user}@{address}"]
    code, out = run(ssh)
    if code == 127:  # no client is installed
        return _banner(address, int(port))
    methods = re.search(r"Permission denied \((.*)\)", out)
    if methods and methods.group(1) == "publickey":
        return []
    time.sleep(1)  # an sshd of today shuts out who fails more often
    said = f"lets {user} log in by {methods.group(1)}" if methods else f"does not say what {user} may log in by: {out}"
    return [f"the sshd that runs on {address} port {port} {said}"]


def _address(have: dict[str, list[str]]) -> tuple[str, str]:
    """(address, port) of loopback where sshd listens on all, else one that it listens on."""
    for listener in sorted(have.get("listenaddress", []), key=lambda text: text.startswith("[")):
        address, _colon, port = listener.rpartition(":")
        address = address.strip("[]")
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address), port
    return "127.0.0.1", have.get("port", ["22"])[0]


def _banner(address: str, port: int) -> list[str]:
    try:
        with socket.create_connection((address, port), timeout=TIMEOUT) as connection:
            if connection.recv(8).startswith(b"SSH-2.0"):
                return []
    except OSError:
        pass
    return [f"no ssh server answers on {address} port {port}"]
