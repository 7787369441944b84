# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a host does that pulls: fetch, verify, have ansible-pull run, report. The role nanomq_pull keeps it on the host.

A remote is not trusted. What it offers lies in a bare repository until its last commit is found to be signed by one of
the allowed signers, and to come after everything that was accepted before; only then is there a branch of it, and
ansible-pull is given that repository and that branch. What is refused changes nothing, and the last accepted commit is
applied again, so that a host keeps itself while its remote is away or not to be trusted.

Programs that are asked: git (2.34 or later) and ssh-keygen for signatures, ansible-pull, mosquitto_pub for reports by
MQTT. Standard library only, and no module of the collection: it runs as one file.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

#: Signatures by SSH keys came with this version of git, and the collection wants that ansible-core.
GIT_VERSION, ANSIBLE_VERSION = (2, 34), (2, 19)

#: How a remote may be reached. `git://` has neither encryption nor a proof of who answers.
SCHEMES = ("https", "ssh", "file")
REPORT_SCHEMES = ("https", "mqtts")

#: The branch that holds what was verified, and the name of what was only offered.
VERIFIED, OFFERED = "refs/heads/verified", "refs/edgesec/offered"

#: From bad to good: of a report the worst counts.
RESULTS = ("failed", "refused", "unreachable", "changed", "ok")

#: Of a configuration, what decides where commits come from and which are taken. The files count by their texts too.
WAY = (
    *("remote", "branch", "at_least", "signers"),
    *("remote_ca", "remote_secret_path", "remote_username", "ssh_key", "known_hosts"),
)

#: For what is fetched to be looked at alone. Not /tmp, which can be memory.
SCRATCH = "/var/tmp"

#: Its journal has what a report has not.
SERVICE = "edgesec-nanomq-pull.service"

REPORT_FORMAT = 1
REPORT_TIMEOUT = 20
#: Characters of a cause that are reported, names of tasks that changed something, and reports that wait to be sent.
CAUSE_LIMIT, TASKS_LIMIT, UNSENT_LIMIT = 500, 20, 10

#: Each fetch brings one pack; so many lie beside each other at most.
PACKS_LIMIT = 20

#: Seconds in which one that a host needs must take a new connection to count as one that answers.
ANSWER_TIMEOUT = 5
PORTS = {"https": 443, "ssh": 22, "mqtts": 8883}

#: Where a transaction can fail. Of what a module says of itself these words are reported, and no other.
STEPS = ("lock", "recover", "compare", "prepare", "stage", "validate", "swap", "activate", "probe", "commit", "confirm")

_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?", re.ASCII)
_RECAP = re.compile(r"(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.ASCII)
_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
_RULE = re.compile(r"NMQ-[A-Z]{2,5}-[0-9]{3}", re.ASCII)
#: What save leaves when it is cut.
_TEMPORARY = re.compile(r"[a-z]+\.json\.[0-9a-f]{8}", re.ASCII)


#: The status of a program that was ended for being late.
TIMED_OUT = 124

#: The status for a host that lacks something, which in check mode may be what the run would install.
MISSING = 2


class Refused(Exception):
    """What the remote offers is not to be applied."""


class Unreachable(Exception):
    """The remote could not be asked."""


class Failed(Exception):
    """The host itself is not as it must be, or the run did not work."""


# --- git --------------------------------------------------------------------------------------------------------------


class Repository:
    """The bare repository that holds what was fetched, in ``config['state']``."""

    def __init__(self, config: dict, name: str = "repository.git") -> None:
        self.config = config
        self.path = os.path.join(config["state"], name)

    def fetch(self) -> str:
        """Get what the remote offers, and return its last commit. Raises Unreachable or Failed."""
        if self.config["remote_secret_path"]:
            try:
                read_private(self.config["remote_secret_path"])
            except Failed as error:
                raise Unreachable(f"nanomq_pull_remote_secret_path: {error}") from None
        if os.path.isdir(self.path):
            self.sweep()
            done = self._get()
            # A medium that lies, or a git that does not sync, can leave what no fetch mends.
            if done.returncode and self.is_damaged("--connectivity-only"):
                done = self._renew()
        else:
            done = self._renew()
        if done.returncode:
            # A pack that came in part stays in its place, and each try would leave another one.
            self.sweep()
            raise Unreachable(
                f"{show_url(self.config['remote'])}: {fetch_words(done.stderr)}{self._remedy(done.stderr)}"
            )
        return self.resolve(OFFERED)

    def _get(self) -> subprocess.CompletedProcess:
        config = self.config
        return self._git(
            "fetch",
            *("--quiet", "--no-tags", "--no-recurse-submodules", "--no-write-fetch-head", "--no-auto-maintenance"),
            *("--", config["remote"], f"+refs/heads/{config['branch']}:{OFFERED}"),
            timeout=config["fetch_timeout"],
            limit=config["size_limit"],
            check=False,
        )

    def _remedy(self, text: str) -> str:
        """Say what is to be put right where the remote could not show who it is, or this host who it is."""
        if not self.config["remote"].startswith("https:"):
            return ""
        if "certificate" in text.lower():
            if self.config["remote_ca"]:
                where = "by none of the CAs in nanomq_pull_remote_ca, or for another name"
            else:
                where = "by no CA of this host, or for another name; see nanomq_pull_remote_ca"
            return f" (the certificate shown there is {where})"
        if "could not read Username" in text or "Authentication failed" in text:
            path = self.config["remote_secret_path"]
            why = f"what is in {path} is not taken there" if path else "none is set, and the remote asks for one"
            return f" (nanomq_pull_remote_secret_path: {why})"
        return ""

    def _renew(self) -> subprocess.CompletedProcess:
        """Fetch into a repository that is made anew, which takes the place of the old one if that worked.

        What was accepted last is in it, or nothing that is offered follows it.
        """
        fresh = Repository(self.config, "fresh.git")
        shutil.rmtree(fresh.path, ignore_errors=True)
        # Nobody's templates: they hold hooks.
        self._git("init", "--quiet", "--bare", "--template=", fresh.path, inside=False)
        done = fresh._get()
        if not done.returncode:
            damaged = os.path.join(self.config["state"], "damaged.git")
            if os.path.isdir(self.path):
                # Whole or absent under its name: one that is half removed could pass for whole.
                os.rename(self.path, damaged)
            os.rename(fresh.path, self.path)
            sync_directory(self.config["state"])
            shutil.rmtree(damaged, ignore_errors=True)
        return done

    def is_damaged(self, *options: str) -> bool:
        """Whether something is missing from what the repository should hold, or it is none."""
        done = self._git("fsck", *options, "--no-dangling", "--no-progress", timeout=600, check=False)
        return done.returncode not in (0, TIMED_OUT)

    def sweep(self) -> None:
        """Remove what a git that was killed leaves: locks, parts of packs. No other one runs: we hold the lock."""
        for folder, _folders, names in os.walk(self.path):
            packs = {name[:-4] for name in names if name.endswith(".idx")} if folder.endswith("/objects/pack") else None
            for name in names:
                without_index = packs is not None and name.startswith("pack-") and name.rpartition(".")[0] not in packs
                if name.endswith((".lock", ".keep")) or name.startswith(("tmp_", ".tmp-")) or without_index:
                    os.unlink(os.path.join(folder, name))

    def discard(self, accepted: str) -> None:
        """Forget what was offered and refused: a remote must not fill the disk bit by bit."""
        if not accepted:
            shutil.rmtree(self.path, ignore_errors=True)
            return
        self._git("update-ref", "-d", OFFERED)
        self._git("update-ref", VERIFIED, accepted, check=False)
        self.pack(1)

    def pack(self, limit: int) -> None:
        """Make one pack of what is reachable, where there are more than ``limit``."""
        if len(self._packs()) > limit:
            # One thread and little memory, for a small device. Where it fails, all is as it was.
            options = ["-c", "pack.threads=1", "-c", "pack.windowMemory=32m"]
            self._git("repack", "-a", "-d", "--quiet", options=options, timeout=600, check=False)

    def _packs(self) -> list[str]:
        return [name for name in os.listdir(os.path.join(self.path, "objects/pack")) if name.endswith(".pack")]

    def resolve(self, name: str) -> str:
        """Return the commit that a name stands for. Raises Failed."""
        commit = self._git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}").stdout.strip()
        if not _COMMIT.fullmatch(commit):
            raise Failed(f"{self.path}: {name} is no commit")
        return commit

    def check_signature(self, commit: str) -> str:
        """Return by whom a commit is signed. Raises Refused unless it is an allowed signer."""
        body = self._git("cat-file", "commit", commit).stdout
        header = body.partition("\n\n")[0]
        if not re.search(r"^gpgsig(-sha256)? ", header, re.MULTILINE):
            raise Refused(f"commit {commit} is not signed")
        if "BEGIN SSH SIGNATURE" not in header:
            raise Refused(f"commit {commit} is not signed with an SSH key (git config gpg.format ssh)")
        trust = [
            *("-c", f"gpg.ssh.allowedSignersFile={self.config['signers']}"),
            *("-c", "gpg.ssh.program=ssh-keygen", "-c", "gpg.format=ssh", "-c", "gpg.minTrustLevel=fully"),
            # Which program is asked is for the signature to say: of the others, none.
            *("-c", "gpg.program=false", "-c", "gpg.openpgp.program=false", "-c", "gpg.x509.program=false"),
        ]
        done = self._git("verify-commit", commit, options=trust, check=False)
        shown = self._git("log", "-1", "--format=%G?%n%GS", commit, options=trust).stdout.splitlines()
        # G is a good signature by a known signer; a good one by anybody is U.
        if done.returncode or shown[:1] != ["G"] or not shown[1:2] or not shown[1]:
            raise Refused(f"commit {commit} is not signed by one of nanomq_pull_signers: {last_line(done.stderr)}")
        return shown[1]

    def check_order(self, commit: str, accepted: str) -> None:
        """Raise Refused unless a commit is, or follows, the one accepted last and the one that must be in it."""
        for base, what in (
            (accepted, "the one accepted last"),
            (self.config["at_least"], "nanomq_pull_at_least"),
        ):
            if not base:
                continue
            done = self._git("merge-base", "--is-ancestor", base, commit, check=False)
            if done.returncode:
                raise Refused(
                    f"commit {commit} does not follow {base} ({what}): going back is refused; to undo a change, commit"
                    " its reverse"
                )

    def keep(self, commit: str) -> None:
        """Make a commit what ansible-pull finds."""
        self._git("update-ref", VERIFIED, commit)
        self._git("symbolic-ref", "HEAD", VERIFIED)
        self.pack(PACKS_LIMIT)

    def moment(self, commit: str) -> str:
        """Return when a commit was made, by the clock of who made it."""
        seconds = int(self._git("log", "-1", "--format=%ct", commit).stdout)
        return show_time(seconds)

    def _git(
        self,
        *arguments: str,
        options: list[str] | None = None,
        inside: bool = True,
        timeout: float = 120,
        limit: int = 0,
        check: bool = True,
    ) -> subprocess.CompletedProcess:
        config = self.config
        command = [
            # A remote must not fill the disk: what it sends is one file.
            *(("prlimit", f"--fsize={limit}") if limit else ()),
            *("git", "-c", "core.hooksPath=/dev/null", "-c", "transfer.fsckObjects=true", "-c", "gc.auto=0"),
            # What is noted as accepted must be there after a power cut: packs, which git syncs, and no loose objects.
            *("-c", "core.fsync=all", "-c", "fetch.unpackLimit=1"),
            *("-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=60", "-c", "http.followRedirects=false"),
            *(("-c", f"http.sslCAInfo={config['remote_ca']}") if config["remote_ca"] else ()),
            *(("-c", f"credential.helper={credential_helper(config)}") if config["remote_secret_path"] else ()),
            *(options or ()),
            *(("--git-dir", self.path) if inside else ()),
            *arguments,
        ]

        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=timeout,
                check=False,
                cwd=config["state"],
                env=git_environment(config, urllib.parse.urlsplit(config["remote"]).scheme),
            )
        except subprocess.TimeoutExpired:
            done = subprocess.CompletedProcess(command, TIMED_OUT, "", f"it did not end within {timeout:g} s")
        if check and done.returncode:
            raise Failed(f"git {arguments[0]}: {last_line(done.stderr) or f'exit {done.returncode}'}")
        return done


def credential_helper(config: dict) -> str:
    """Return what git runs for the name and the secret of this host, once a remote by HTTPS asks for them.

    A shell reads the file and answers by itself: the secret is in no argument and no environment. What git would have
    stored or erased is left as it is.
    """
    name, path = shlex.quote(config["remote_username"]), shlex.quote(config["remote_secret_path"])
    answer = f"printf 'username=%s\\npassword=%s\\n' {name} \"$(tr -d '\\r\\n' < {path})\""
    return f'!answer() {{ test "$1" != get || {answer}; }}; answer'


def git_environment(config: dict, scheme: str) -> dict[str, str]:
    """Return an environment in which git reads no configuration but the repository's, and uses one way to a remote."""
    ssh = ["ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "ConnectTimeout=20"]
    if config["known_hosts"]:
        ssh += ["-o", f"UserKnownHostsFile={config['known_hosts']}", "-o", "GlobalKnownHostsFile=none"]
    if config["ssh_key"]:
        ssh += ["-o", "IdentitiesOnly=yes", "-i", config["ssh_key"]]
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": config["state"],
        "LC_ALL": "C.UTF-8",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": scheme,
        "GIT_SSH_COMMAND": shlex.join(ssh),
    }


# --- the run ----------------------------------------------------------------------------------------------------------


class Outcome:
    """What a run of ansible-playbook says of itself, line by line.

    Of a task that failed its name is kept and not its message, in which a secret may stand.
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.changed_tasks: list[str] = []
        self.failed_task = ""
        #: Of a transaction that failed: at which step, and whether the host is as it was before.
        self.failed_step, self.undone = "", False
        self._task = ""
        self._in_recap = False

    def read(self, line: str) -> None:
        line = _ESCAPE.sub("", line).rstrip()
        found = re.match(r"(?:TASK|RUNNING HANDLER) \[(.*)\]", line)
        if found:
            self._task = found.group(1)
        elif line.startswith("changed: ["):
            if self._task not in self.changed_tasks[-1:] and len(self.changed_tasks) < TASKS_LIMIT:
                self.changed_tasks.append(self._task)
        elif line.startswith(("fatal: [", "failed: [")):
            self.failed_task = self._task
            self._read_failure(line.partition("=> ")[2])
        elif line == "...ignoring":
            self.failed_task, self.failed_step, self.undone = "", "", False
        elif line.startswith("PLAY RECAP"):
            self._in_recap = True
        elif self._in_recap and (found := _RECAP.match(line)):
            for name, value in zip(("ok", "changed", "unreachable", "failed"), found.groups()[1:]):
                self.counts[name] = self.counts.get(name, 0) + int(value)

    def _read_failure(self, text: str) -> None:
        try:
            result = json.loads(text)
        except (ValueError, RecursionError):
            result = None
        result = result if isinstance(result, dict) else {}
        # These two words of it, which are the collection's own.
        self.failed_step = result["step"] if result.get("step") in STEPS else ""
        self.undone = result.get("undone") is True

    def tell(self, report: dict) -> None:
        """Say in a report what was done."""
        report["counts"], report["changed_tasks"] = self.counts, self.changed_tasks
        if self.failed_task:
            report["failed"] = {"task": self.failed_task, "step": self.failed_step, "undone": self.undone}

    def cause(self, status: int, name: str) -> str:
        """Return why a run that ended by ``status`` did not work, or ''."""
        if self.failed_task:
            where = f" at {self.failed_step}" if self.failed_step else ""
            undone = ", and was undone" if self.undone else ""
            return f"the task {self.failed_task!r} failed{where}{undone}; the journal of {SERVICE} says why"
        if status:
            return f"ansible-pull ended with {status}; the journal of {SERVICE} says why"
        if not self.counts.get("ok"):
            return f"no play is for {name!r}: look at the inventory and the hosts of the playbook"
        return ""


def answering(config: dict) -> list[str]:
    """Return which of those that this host needs take a new connection now, as ``host:port``.

    They must do so after a change of the firewall as well, or the host undoes it: nobody else is there to confirm it.
    """
    found = []
    for name in ("remote", "report_url", "signer_url"):
        # By name: that it can still be looked up is a part of it.
        with contextlib.suppress(OSError, ValueError):
            url = urllib.parse.urlsplit(config[name])
            port = url.port or PORTS.get(url.scheme, 0)
            if url.hostname and port:
                socket.create_connection((url.hostname, port), timeout=ANSWER_TIMEOUT).close()
                found.append(f"[{url.hostname}]:{port}" if ":" in url.hostname else f"{url.hostname}:{port}")
    return list(dict.fromkeys(found))


def run_command(config: dict, needed: list[str]) -> list[str]:
    """Return the command that applies what was verified."""
    variables = {
        # What the inventory says of a connection is for those who push. And this is root already.
        "ansible_become": False,
        "ansible_connection": "local",
        "__nanomq_pull_needed": needed,
        "__nanomq_pull_told_dir": os.path.join(config["state"], "told"),
    }
    command = [
        config["ansible_pull"],
        *("--url", f"file://{config['state']}/repository.git", "--checkout", VERIFIED.rpartition("/")[2]),
        *("--full", "--directory", os.path.join(config["state"], "checkout")),
        *("--inventory", os.path.join(config["state"], "checkout", config["inventory"])),
        *("--limit", config["name"]),
        *("--extra-vars", json.dumps(variables)),
    ]
    if config["vault_password_path"]:
        command += ["--vault-password-file", config["vault_password_path"]]
    return [*command, config["playbook"]]


def apply(config: dict) -> Outcome:
    """Have ansible-pull check out and apply what was verified. Raises Failed, with the outcome as a second argument."""
    checkout = os.path.join(config["state"], "checkout")
    # Made anew: nothing that an earlier run left there, cut or not, has a part in this one. Where it cannot be removed
    # nothing is run.
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(checkout)
    environment = {
        **git_environment(config, "file"),
        "ANSIBLE_HOME": os.path.join(config["state"], "ansible"),
        "ANSIBLE_COLLECTIONS_PATH": f"{checkout}/collections:/usr/share/ansible/collections",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_STDOUT_CALLBACK": "default",
        "ANSIBLE_RETRY_FILES_ENABLED": "0",
        "ANSIBLE_LOCALHOST_WARNING": "0",
        "ANSIBLE_PYTHON_INTERPRETER": "auto_silent",
        "PYTHONUNBUFFERED": "1",
    }
    os.makedirs(os.path.join(config["state"], "told"), mode=0o700, exist_ok=True)
    outcome = Outcome()
    try:
        process = subprocess.Popen(  # pylint: disable=consider-using-with
            run_command(config, answering(config)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            # To the journal at once: mixed with what is read, it would come in the middle of lines.
            stderr=None,
            encoding="utf-8",
            errors="replace",
            cwd=config["state"],
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        raise Failed(f"{config['ansible_pull']}: {error.strerror}", outcome) from error
    late = threading.Event()

    def end() -> None:
        late.set()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    limit = threading.Timer(config["run_timeout"], end)
    limit.start()
    try:
        for line in process.stdout:
            tell(line)
            outcome.read(line)
        status = process.wait()
    finally:
        limit.cancel()
    cause = (
        f"the run did not end within {config['run_timeout']} s"
        if late.is_set()
        else outcome.cause(status, config["name"])
    )
    if cause:
        raise Failed(cause, outcome)
    return outcome


# --- the state --------------------------------------------------------------------------------------------------------


def load_state(config: dict) -> dict[str, str]:
    """Return which commits were accepted and applied last. Raises Failed where that cannot be read."""
    path = os.path.join(config["state"], "state.json")
    try:
        with open(path, encoding="utf-8") as handle:
            state = json.load(handle)
        if not _COMMIT.fullmatch(state["accepted"]) or not isinstance(state["applied"], str):
            raise ValueError("it names no commit")
    except FileNotFoundError:
        return {"accepted": "", "applied": ""}
    except (OSError, ValueError, KeyError, TypeError) as error:
        # Not taken for a host that has accepted nothing yet, which could be made to go back.
        raise Failed(
            f"{path} cannot be read ({error}): put it right, or remove {config['state']} to begin anew"
        ) from None
    return state


def save(config: dict, name: str, content: object) -> None:
    """Write a file of the state, whole and synced, for root alone."""
    path = os.path.join(config["state"], name)
    temporary = f"{path}.{secrets.token_hex(4)}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as handle:
        handle.write(json.dumps(content).encode("utf-8"))
        handle.flush()
        os.fsync(descriptor)
    os.replace(temporary, path)
    sync_directory(config["state"])


def load(config: dict, name: str) -> object:
    """Return what a file of the state holds that only tells, and None where it does not."""
    try:
        with open(os.path.join(config["state"], name), encoding="utf-8") as handle:
            return json.load(handle)
    except (OSError, ValueError):
        return None


def sync_directory(path: str) -> None:
    """Make the names in a directory last."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def tidy_state(config: dict) -> None:
    """Remove what a run that was cut has left. What counts has another name, and is whole."""
    for name in os.listdir(config["state"]):
        path = os.path.join(config["state"], name)
        if _TEMPORARY.fullmatch(name):
            os.unlink(path)
        elif name in ("fresh.git", "damaged.git", "mqtt"):
            shutil.rmtree(path, ignore_errors=True)


def begin(config: dict, report: dict) -> None:
    """Note that a run is under way, and say in its report whether the one before came to no end."""
    before = load(config, "running.json")
    if isinstance(before, dict):
        report["interrupted"] = {"time": str(before.get("time", "")), "commit": str(before.get("commit", ""))}
    save(config, "running.json", {"time": report["time"], "commit": ""})


# --- one pull ---------------------------------------------------------------------------------------------------------


def choose(config: dict, repository: Repository, state: dict[str, str], report: dict) -> str:
    """Return the commit to apply: what is offered if it may be, else the one accepted last. '' if there is none."""
    try:
        offered = report["offered"] = repository.fetch()
        report["signer"] = repository.check_signature(offered)
        repository.check_order(offered, state["accepted"])
    except Refused as error:
        note(report, "refused", str(error))
        repository.discard(state["accepted"])
    except Unreachable as error:
        note(report, "unreachable", str(error))
    else:
        if offered != state["accepted"]:
            # Before it is applied: whatever becomes of the run, there is no way back behind it.
            state["accepted"] = offered
            save(config, "state.json", state)
        return offered
    if not state["accepted"]:
        return ""
    try:
        # Signed by somebody who has been taken off the list meanwhile, it is applied no more.
        report["signer"] = repository.check_signature(state["accepted"])
        repository.check_order(state["accepted"], "")
    except Refused as error:
        note(report, "refused", f"the one accepted last is not applied again: {error}")
        return ""
    return state["accepted"]


def pull(config: dict) -> dict:
    """Fetch, verify and apply, and return the report."""
    report = {"format": REPORT_FORMAT, "host": config["name"], "time": show_time(time.time())}
    report |= {"result": "ok", "cause": "", "offered": "", "commit": "", "commit_time": "", "signer": "", "applied": ""}
    report |= {"counts": {}, "changed_tasks": []}
    began = time.monotonic()
    try:
        check_private_directory(config["state"])
        begin(config, report)
        tidy_state(config)
        state = load_state(config)
        report["applied"] = state["applied"]
        repository = Repository(config)
        commit = choose(config, repository, state, report)
        if commit:
            repository.keep(commit)
            report["commit"], report["commit_time"] = commit, repository.moment(commit)
            save(config, "running.json", {"time": report["time"], "commit": commit})
            outcome = run(config, repository)
            outcome.tell(report)
            note(report, "changed" if outcome.counts["changed"] else "ok", "")
            if state["applied"] != commit:
                state["applied"] = report["applied"] = commit
                save(config, "state.json", state)
            if config["claim"]:
                # The certificate is in force by now.
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(config["claim"])
    except Failed as error:
        note(report, "failed", str(error.args[0]))
        if len(error.args) > 1:
            error.args[1].tell(report)
    except OSError as error:
        # Such as a disk that is full.
        note(report, "failed", f"{error.filename or config['state']}: {error.strerror or error}")
    report["seconds"] = round(time.monotonic() - began, 1)
    report["versions"] = versions(config)
    report.update(told(config))
    return report


def run(config: dict, repository: Repository) -> Outcome:
    """Apply what was verified. Raises Failed, and lets the next run fetch all anew where it cannot be checked out."""
    try:
        return apply(config)
    except Failed as error:
        outcome = error.args[1]
        if not outcome.counts and not outcome.failed_task and repository.is_damaged():
            os.rename(repository.path, os.path.join(config["state"], "damaged.git"))
            raise Failed(f"{repository.path} is damaged; the next run fetches all anew", outcome) from None
        raise


def told(config: dict) -> dict:
    """Return what the last run that came so far told of the host, each with its time: certificate, versions, audit.

    Of the report of the audit the numbers and the names of rules, and no evidence.
    """
    found: dict[str, object] = {}
    host = load(config, "told/host.json")
    if not isinstance(host, dict):
        return found
    found["broker"] = {name: str(host.get(name) or "") for name in ("time", "version", "certificate_ends")}
    if host.get("audit") is not True:
        return found
    try:
        document = load(config, "told/audit.json")
        one, counts = document["hosts"][0], document["summary"]
        still_open = [finding for finding in one["findings"] if not finding["waived"]]
        broken = [finding["id"] for finding in still_open if finding["observed"]]
        found["audit"] = {
            "time": str(document["run"]["finished"]),
            "state": str(one["state"]),
            "grade": str(one["grade"] or ""),
            "findings": {str(severity): int(number) for severity, number in counts["findings"].items()},
            "not_observed": int(counts["not_observed"]),
            "waived": int(counts["waived"]),
            "rules": [rule for rule in broken if _RULE.fullmatch(rule)],
        }
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        pass
    return found


def note(report: dict, result: str, cause: str) -> None:
    """Let a report say what happened; of results the worst counts, and causes add up."""
    report["result"] = min(report["result"], result, key=RESULTS.index)
    report["cause"] = "; ".join(filter(None, [report["cause"], cause]))[:CAUSE_LIMIT]


def versions(config: dict) -> dict[str, str]:
    """Return the versions of what had a part, as far as they can be told."""
    found = {"python": "{}.{}.{}".format(*sys.version_info)}
    for name, command in (("git", ["git", "--version"]), ("ansible", [config["ansible_pull"], "--version"])):
        found[name] = ".".join(map(str, version_of(command)))
    base = os.path.join(config["state"], "checkout/collections/ansible_collections/edgesec/nanomq")
    for name, pattern in (("MANIFEST.json", r'"version": *"([^"]+)"'), ("galaxy.yml", r"(?m)^version: *(\S+)")):
        with contextlib.suppress(OSError), open(os.path.join(base, name), encoding="utf-8") as handle:
            if match := re.search(pattern, handle.read(65536)):
                found.setdefault("collection", match.group(1))
    return found


def version_of(command: list[str]) -> tuple[int, ...]:
    """Return the first version number in what a command prints; () when there is none."""
    try:
        environment = {**os.environ, "LC_ALL": "C.UTF-8"}
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False, env=environment
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    match = re.search(rb"(\d+)\.(\d+)(?:\.(\d+))?", done.stdout)
    return tuple(int(part) for part in match.groups() if part) if match and done.returncode == 0 else ()


# --- reports ----------------------------------------------------------------------------------------------------------


def deliver(config: dict, report: dict) -> str:
    """Send the report, after those that could not be sent before it; return why not, or ''.

    A report that cannot be sent fails nothing: it is kept, UNSENT_LIMIT of them, and sent by the next run. It is kept
    before it is tried, so that a cut loses none; then one may come twice, with the same host and time.
    """
    waiting = load(config, "unsent.json")
    waiting = [*(waiting if isinstance(waiting, list) else []), report][-UNSENT_LIMIT:]
    try:
        save(config, "report.json", report)
        if config["report_url"]:
            save(config, "unsent.json", waiting)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(config["state"], "running.json"))
    except OSError as error:
        # The more it is to be sent.
        tell(f"the report could not be kept: {error}\n")
    if not config["report_url"]:
        return ""
    try:
        for one in waiting:
            send(config, json.dumps(one).encode())
    except (OSError, ValueError, subprocess.TimeoutExpired, Failed) as error:
        return f"the report could not be sent to {show_url(config['report_url'])}: {error}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(config["state"], "unsent.json"))
    return ""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirection would take the token elsewhere."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        return None


def send(config: dict, body: bytes) -> None:
    """Send one report by HTTPS or MQTT. Raises OSError, ValueError, Failed or TimeoutExpired."""
    url = urllib.parse.urlsplit(config["report_url"])
    secret = read_private(config["report_secret_path"]) if config["report_secret_path"] else ""
    if url.scheme == "mqtts":
        return _publish(config, url, secret, body)
    context = ssl.create_default_context(cafile=config["report_ca"] or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    headers = {"Content-Type": "application/json"}
    if secret:
        headers["Authorization"] = f"Bearer {secret}"
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context), _NoRedirect()
    )
    request = urllib.request.Request(config["report_url"], data=body, headers=headers, method="POST")
    try:
        with opener.open(request, timeout=REPORT_TIMEOUT):
            return None
    except urllib.error.HTTPError as error:
        raise Failed(f"the collector answered {error.code}") from None


def _publish(config: dict, url: urllib.parse.SplitResult, secret: str, body: bytes) -> None:
    folder = os.path.join(config["state"], "mqtt")
    shutil.rmtree(folder, ignore_errors=True)
    os.mkdir(folder, 0o700)
    try:
        # Not among the arguments, which everybody on the host can read.
        if secret:
            descriptor = os.open(os.path.join(folder, "mosquitto_pub"), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as handle:
                handle.write(f"-P {secret}\n".encode())
        trust = ["--cafile", config["report_ca"]] if config["report_ca"] else ["--tls-use-os-certs"]
        user = ["-u", config["report_username"]] if config["report_username"] else []
        where = ["-h", url.hostname, "-p", str(url.port or 8883), "-t", url.path.strip("/")]
        done = subprocess.run(
            ["mosquitto_pub", *where, "-q", "1", "-s", *trust, *user],
            input=body,
            capture_output=True,
            timeout=REPORT_TIMEOUT,
            check=False,
            env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "XDG_CONFIG_HOME": folder, "HOME": folder},
        )
        if done.returncode:
            raise Failed(last_line(done.stderr.decode("utf-8", "replace")) or f"mosquitto_pub: exit {done.returncode}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- small things -----------------------------------------------------------------------------------------------------


def tell(text: str) -> None:
    """Print at once: the journal notes when it came."""
    sys.stdout.write(text)
    sys.stdout.flush()


def show_time(seconds: float) -> str:
    """Return a moment as ``2030-01-31T12:00:00Z``."""
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def show_url(url: str) -> str:
    """Return a URL without a name or password that may stand in it."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def last_line(text: str) -> str:
    """Return the last line that says something, without control characters."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "".join(one if one.isprintable() else "?" for one in lines[-1])[:300] if lines else ""


def fetch_words(text: str) -> str:
    """Return the two last lines of a failed fetch, without those that git says of every remote."""
    empty = ("Please make sure", "and the repository exists")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(empty)]
    return "; ".join(last_line(line) for line in lines[-2:]) or "git fetch failed"


def read_private(path: str) -> str:
    """Return the secret in a file of root's that nobody else can read. Raises Failed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from None
    try:
        _must_be_private(path, os.fstat(descriptor))
        secret = os.read(descriptor, 4096).decode("utf-8", "replace").strip()
    finally:
        os.close(descriptor)
    if not secret or not secret.isprintable():
        raise Failed(f"{path} must hold one line")
    return secret


def check_private_directory(path: str) -> None:
    """Raise Failed unless a directory is root's, and closed to all others."""
    try:
        found = os.lstat(path)
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise Failed(f"{path} must be a directory of root's that nobody else can enter (chmod 0700)")


def complaints(config: dict) -> list[str]:
    """Return what is missing on this host for pulling, each with the variable that says otherwise."""
    found = []
    git = version_of(["git", "--version"])
    if git < GIT_VERSION:
        shown = ".".join(map(str, git)) or "no git"
        found.append(f"git 2.34 or later is needed, for signatures by SSH keys; this host has {shown}")
    if shutil.which("ssh-keygen") is None:
        found.append("ssh-keygen is needed, for signatures by SSH keys: install openssh-client")
    ansible = version_of([config["ansible_pull"], "--version"])
    if ansible < ANSIBLE_VERSION:
        shown = ".".join(map(str, ansible)) or f"no {config['ansible_pull']}"
        found.append(f"ansible-core 2.19 or later is needed (nanomq_pull_ansible_pull); this host has {shown}")
    if config["report_url"].startswith("mqtts:") and shutil.which("mosquitto_pub") is None:
        found.append("mosquitto_pub is needed for reports by MQTT: install mosquitto-clients")
    for name, variable in (
        ("ssh_key", "nanomq_pull_ssh_key_path"),
        ("vault_password_path", "nanomq_pull_vault_password_path"),
        ("report_secret_path", "nanomq_pull_report_secret_path"),
        ("remote_secret_path", "nanomq_pull_remote_secret_path"),
    ):
        if config[name]:
            try:
                if name == "ssh_key":
                    check_key_file(config[name])
                else:
                    read_private(config[name])
            except Failed as error:
                found.append(f"{variable}: {error}")
    return found


def refusal(config: dict, files: dict[str, str], present: str) -> list[str]:
    """Return why this host would take nothing any more if it pulled by this configuration, or [].

    A host that was told of a wrong remote, branch, CA or signer is cut off from all that could tell it better. So what
    is to be in force is tried beside what is (``present``), if it is another way: fetched, and checked as the next pull
    will.
    """
    if _in_force(config, files, present):
        return []
    try:
        with tempfile.TemporaryDirectory(prefix="edgesec-nanomq-pull.", dir=SCRATCH) as folder:
            there = {path: os.path.join(folder, os.path.basename(path)) for path in files}
            for path, text in files.items():
                with open(there[path], "w", encoding="utf-8") as handle:
                    handle.write(text)
            repository = Repository(
                {name: there.get(value, value) for name, value in config.items()} | {"state": folder}
            )
            offered = repository.fetch()
            repository.check_signature(offered)
            repository.check_order(offered, load_state(config)["accepted"])
    except (Refused, Unreachable, Failed, OSError) as error:
        return [
            f"by these nanomq_pull_ variables this host would take nothing any more: {error}. Nothing was changed."
            " Where the remote cannot be asked yet, such as in the image of a device: nanomq_pull_try: false"
        ]
    return []


def _in_force(config: dict, files: dict[str, str], present: str) -> bool:
    """Whether this host pulls from there already, and takes the same."""
    try:
        with open(present, encoding="utf-8") as handle:
            before = json.load(handle)
        for path, text in files.items():
            with open(path, encoding="utf-8") as handle:
                if handle.read() != text:
                    return False
    except (OSError, ValueError):
        return False
    return all(before.get(name) == config[name] for name in WAY)


def check_key_file(path: str) -> None:
    """Raise Failed unless a file is root's and closed to all others, without reading it."""
    try:
        found = os.lstat(path)
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from None
    _must_be_private(path, found)


def _must_be_private(path: str, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise Failed(f"{path} must be a file of root's that nobody else can read (chmod 0600)")


def main(arguments: list[str]) -> int:
    """Pull once, by the configuration in a file; ``--check JSON``: say why this host could not pull by another one.

    ``JSON``: an object with ``config``, the ``files`` that decide what it takes, each with its text, and ``present``,
    the path of the one in force, beside which it is tried; '' where it is not. The status is MISSING where the host
    lacks something.
    """
    if arguments[:1] == ["--check"]:
        asked = json.loads(arguments[1])
        missing = complaints(asked["config"])
        found = missing or (refusal(**asked) if asked["present"] else [])
        tell("\n".join(found) + "\n")
        return MISSING if missing else int(bool(found))
    with open(arguments[0], encoding="utf-8") as handle:
        config = json.load(handle)
    os.makedirs(config["state"], mode=0o700, exist_ok=True)
    with open(os.path.join(config["state"], "lock"), "w", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell("another pull is under way\n")
            return 0
        report = pull(config)
        trouble = deliver(config, report)
    tell(json.dumps(report) + "\n")
    if trouble:
        tell(f"{trouble}\n")
    return 0 if report["result"] in ("ok", "changed") else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
