# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Where the certificate of a host comes from, on the controller: one class for each source.

A source is opened before any host is touched, and refuses then what it can. ``obtain`` gets a request that was found to
ask for nothing but what the task allows. What comes back from elsewhere is judged here before the host sees it.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable

from ansible_collections.edgesec.nanomq.plugins.module_utils import _authority
from ansible_collections.edgesec.nanomq.plugins.module_utils import _x509 as x509
from ansible_collections.edgesec.nanomq.plugins.module_utils._chains import (
    ACME,
    COMMAND,
    GIVEN,
    chain_fault,
    content_fault,
)
from ansible_collections.edgesec.nanomq.plugins.module_utils._crypto import (
    CryptoError,
    choose_backend,
    encode_passphrase,
    load_certificates,
)
from ansible_collections.edgesec.nanomq.plugins.module_utils._files import FileProblem
from ansible_collections.edgesec.nanomq.plugins.module_utils._pairs import Wanted, given_fault
from ansible_collections.edgesec.nanomq.plugins.plugin_utils.commands import check_command, run_command

#: Seconds that a certificate may live longer than it was asked to: clocks differ, and some signers round up to a day.
SLACK = 86400


class Source:
    """What all sources have in common, as PEM.

    ``compared`` is what the host compares its pair with, ``trust`` what those who meet the pair are to trust.
    """

    #: What a certificate has to be followed by; only the own authority says so.
    sent = ""
    #: The certificates that the user gives; only that source has any.
    given = ""

    def __init__(self, options: dict, wanted: Wanted) -> None:
        self.options = options
        self.wanted = wanted
        self.compared = self.trust = ""

    @property
    def request(self) -> _authority.Request:
        """What the host may ask for."""
        wanted = self.wanted
        return _authority.Request(wanted.common_name, wanted.names, wanted.usages, wanted.key_type, wanted.valid_for)

    def obtain(self, request: str) -> tuple[list[x509.Certificate], str]:
        """Return the certificate for a checked request (PEM) with those above it, and a warning or ''.

        Raises ValueError, CryptoError, FileProblem or OSError.
        """
        raise NotImplementedError


class AuthoritySource(Source):
    """The own authority, made by tls_authority."""

    def __init__(self, options: dict, wanted: Wanted, *, check_mode: bool) -> None:
        super().__init__(options, wanted)
        if not options["authority_path"]:
            raise ValueError("authority_path is not given: it is the directory of the authority on the controller")
        path = os.path.expanduser(options["authority_path"])
        self.authority = _authority.load(path.rstrip("/") or "/")
        if self.authority is None and not check_mode:
            raise FileProblem(f"there is no authority in {path}: make it first, with edgesec.nanomq.tls_authority")
        if self.authority:
            self.compared, self.trust = self.authority.pem, self.authority.trusted
            self.sent = _authority.show(self.authority.chain)

    def obtain(self, request: str) -> tuple[list[x509.Certificate], str]:
        warning = self._check_end()
        passphrase = encode_passphrase(self.options["authority_passphrase"])
        certificate = _authority.sign(self.authority, passphrase, request, self.request)
        return [certificate, *self.authority.chain], warning

    def _check_end(self) -> str:
        """Return a warning when a new certificate will end early, with its authority; '' if it will not.

        Raises CryptoError when it would be due for renewal at once, and again in every run.
        """
        authority = self.authority
        remaining = (authority.issuer.not_after - _authority.now()).total_seconds()
        end = x509.show_time(authority.issuer.not_after)
        if remaining <= self.wanted.margin:
            raise CryptoError(
                f"the authority in {authority.path} expires at {end}, within renew_before of the certificate: renew or"
                f" replace it first, which begins with {_authority.remedy(authority, authority.issuer)}"
            )
        if remaining >= self.wanted.valid_for:
            return ""
        return f"the certificate ends with its authority, at {end}, before its valid_for is over"


class Elsewhere(Source):
    """A source that others run: its answers are judged by the trust anchors that the user names."""

    name = ""
    #: Whether the lifetime is for the task to choose.
    lifetime_is_ours = True

    def __init__(self, options: dict, wanted: Wanted) -> None:
        super().__init__(options, wanted)
        if not (options["trust"] or "").strip():
            raise ValueError(
                f"trust is empty: with source {self.name} it holds the certificates, in PEM, of the authorities whose"
                " signature is accepted"
            )
        self.anchors = load_certificates(options["trust"].encode("utf-8"), "trust")
        present = _authority.now()
        for anchor in self.anchors:
            if not anchor.is_authority:
                raise CryptoError(f"trust: {anchor.common_name!r} is not the certificate of an authority")
            if not anchor.not_before <= present <= anchor.not_after:
                raise CryptoError(
                    f"trust: the authority {anchor.common_name!r} is valid from {x509.show_time(anchor.not_before)} to"
                    f" {x509.show_time(anchor.not_after)}"
                )
        self.compared = self.trust = _authority.show(self.anchors)
        self.backend = choose_backend("cryptography")

    def judge(self, answer: bytes, request: str) -> list[x509.Certificate]:
        """Return the chain that came back for a request. Raises CryptoError when it is not fit for the host."""
        leaf, *chain = load_certificates(answer, "the signer's answer")
        fault = self._fault(leaf, chain, _authority.requested_key(request))
        if fault:
            raise CryptoError(f"the certificate that came back is not the one asked for: {fault}")
        return [leaf, *self.below_anchors(chain)]

    def below_anchors(self, chain: list[x509.Certificate]) -> list[x509.Certificate]:
        """Return the chain without trust anchors: a root need not travel, since who trusts it has it."""
        return [one for one in chain if all(one.raw != anchor.raw for anchor in self.anchors)]

    def _fault(self, leaf: x509.Certificate, chain: list[x509.Certificate], public_key: bytes) -> str:
        wanted, present = self.wanted, _authority.now()
        if leaf.public_key != public_key:
            return "mismatch: it is for another key than the host's"
        fault = chain_fault(self.backend, leaf, chain, self.anchors)
        fault = fault or content_fault(leaf, self.name, wanted.common_name, wanted.names, wanted.usages)
        if fault:
            return fault
        if present < leaf.not_before:
            return f"not valid yet: from {x509.show_time(leaf.not_before)}; is the clock of the signer right?"
        remaining = (leaf.not_after - present).total_seconds()
        if remaining <= 0:
            return f"expired: at {x509.show_time(leaf.not_after)}"
        if remaining <= wanted.margin:
            return (
                f"expiring: at {x509.show_time(leaf.not_after)}, within renew_before, so that every run would renew it:"
                " give a shorter renew_before"
            )
        if self.lifetime_is_ours and remaining > wanted.valid_for + SLACK:
            return f"lifetime: until {x509.show_time(leaf.not_after)}, which is longer than valid_for"
        return ""


class CommandSource(Elsewhere):
    """A program on the controller that gets the request on stdin and prints the chain."""

    name = COMMAND

    def __init__(self, options: dict, wanted: Wanted, *, host: str) -> None:
        super().__init__(options, wanted)
        self.host = host
        self.argv = [os.path.expanduser(word) for word in options["signer_command"][:1]] + options["signer_command"][1:]
        check_command(self.argv, "signer_command")
        if options["signer_timeout"] < 1:
            raise ValueError("signer_timeout must be 1 or more seconds")

    def obtain(self, request: str) -> tuple[list[x509.Certificate], str]:
        wanted, secret = self.wanted, self.options["signer_secret"] or ""
        answer = run_command(
            self.argv,
            "signer_command",
            timeout=self.options["signer_timeout"],
            stdin=request,
            variables={
                "NANOMQ_PKI_HOST": self.host,
                "NANOMQ_PKI_COMMON_NAME": wanted.common_name,
                "NANOMQ_PKI_NAMES": ",".join(wanted.names),
                "NANOMQ_PKI_USAGES": ",".join(wanted.usages),
                "NANOMQ_PKI_KEY_TYPE": wanted.key_type,
                "NANOMQ_PKI_VALID_FOR": str(wanted.valid_for),
                "NANOMQ_PKI_SECRET": secret,
            },
            secrets=[secret],
        )
        return self.judge(answer, request), ""


class GivenSource(Elsewhere):
    """A key and a certificate that the user has: in PEM on the controller, or as files on the host."""

    name = GIVEN

    def __init__(self, options: dict, wanted: Wanted) -> None:
        super().__init__(options, wanted)
        texts = [bool(options[name]) for name in ("given_certificate", "given_key")]
        paths = [bool(options[name]) for name in ("given_certificate_path", "given_key_path")]
        if texts[0] != texts[1] or paths[0] != paths[1] or texts == paths:
            raise ValueError(
                "source given needs given_certificate and given_key, both in PEM, or given_certificate_path and"
                " given_key_path, both on the host, and not a mixture"
            )
        self.on_host = all(paths)
        self.chain: list[x509.Certificate] = []
        if not self.on_host:
            self._check()

    def _check(self) -> None:
        leaf, *chain = load_certificates(self.options["given_certificate"].encode("utf-8"), "given_certificate")
        try:
            public_key = self.backend.public_key(self.key.encode("ascii"), self.wanted.passphrase)
        except (CryptoError, UnicodeEncodeError) as error:
            reason = error if isinstance(error, CryptoError) else "it is not a PEM private key"
            raise CryptoError(f"given_key: {reason}") from None
        fault = given_fault(self.backend, leaf, chain, public_key, self.anchors, self.wanted)
        if fault:
            raise CryptoError(f"given_certificate and given_key cannot be used: {fault}")
        self.chain = [leaf, *self.below_anchors(chain)]
        self.given = "".join(certificate.pem().decode("ascii") for certificate in self.chain)

    @property
    def key(self) -> str:
        """The private key, in PEM."""
        return self.options["given_key"]

    def warning(self, not_after: str) -> str:
        """Return a warning when what was given is about to end: nobody renews it."""
        end = datetime.datetime.strptime(not_after, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=datetime.UTC)
        remaining = (end - _authority.now()).total_seconds()
        if remaining > self.wanted.margin:
            return ""
        return (
            f"the given certificate of {self.wanted.common_name} ends at {not_after}, in {int(remaining // 86400)}"
            " days, and is not renewed by itself: give a new one in time"
        )


def open_source(
    options: dict, wanted: Wanted, *, host: str, check_mode: bool, run_local: Callable[[str, dict], dict]
) -> Source:
    """Return the source that validated options ask for. Raises ValueError, CryptoError, FileProblem or OSError.

    ``run_local`` runs a module on the controller: (name, arguments) -> result
    """
    kind = options["source"]
    if kind == COMMAND:
        return CommandSource(options, wanted, host=host)
    if kind == GIVEN:
        return GivenSource(options, wanted)
    if kind == ACME:
        # Loaded when it is asked for: few need it.
        from ansible_collections.edgesec.nanomq.plugins.plugin_utils.acme import AcmeSource

        return AcmeSource(options, wanted, run_local)
    return AuthoritySource(options, wanted, check_mode=check_mode)
