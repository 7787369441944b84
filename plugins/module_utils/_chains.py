# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether a certificate from elsewhere is fit: one of an external signer, of an ACME server, or given by the user.

Asked on the controller before anything reaches the host, and again on the host. Standard library and a back end only.
A fault is a text that begins with one of the words that `tls_certificate` documents for its result `reason`.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from ansible_collections.edgesec.nanomq.plugins.module_utils import _x509 as x509
from ansible_collections.edgesec.nanomq.plugins.module_utils._crypto import Backend, is_signed_by

#: Where certificates come from. The authority's own are judged in ``_pairs``: there everything must be exact.
AUTHORITY, COMMAND, ACME, GIVEN = "authority", "command", "acme", "given"
SOURCES = (AUTHORITY, COMMAND, ACME, GIVEN)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


def chain_fault(
    backend: Backend,
    leaf: x509.Certificate,
    chain: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
) -> str:
    """Return why the certificate does not lead up to one of the trust anchors, or ''.

    Each certificate must be signed by the one that follows it, and one of them by an anchor. What comes above that one
    may be there: public authorities send along an old root that signed the new one.
    """
    if not anchors:
        return "authority: there is no trust anchor"
    path = [leaf, *chain]
    for lower, upper in zip(path, path[1:]):
        if not is_signed_by(backend, lower, upper):
            return (
                f"authority: {_show(lower)} is not signed by {_show(upper)} which follows it: the order is the host's"
                " own certificate, then the one that signed it, and so on"
            )
    needed = []
    for certificate in path:
        needed.append(certificate)
        if any(certificate.raw == anchor.raw or is_signed_by(backend, certificate, anchor) for anchor in anchors):
            break
    else:
        names = ", ".join(_show(anchor) for anchor in anchors)
        return f"authority: {_show(path[-1])}, the last of the chain, is not signed by a trust anchor ({names})"
    present = _now()
    for certificate in needed[1:]:
        if not certificate.not_before <= present <= certificate.not_after:
            return (
                f"authority: the intermediate {_show(certificate)} is valid from"
                f" {x509.show_time(certificate.not_before)} to {x509.show_time(certificate.not_after)}"
            )
    return ""


def content_fault(leaf: x509.Certificate, source: str, common_name: str, names: Sequence[str], usages) -> str:
    """Return why the certificate does not say what was asked for, times aside, or ''.

    A signer may leave the common name out or choose one of the names, and add the other of the two usages, as public
    authorities do. It may add no name. A given certificate may hold for more than this host.
    """
    if leaf.is_authority:
        return "usages: it is the certificate of an authority (CA:true), which no host may have"
    if source == GIVEN:
        missing = [name for name in names if not any(covers(one, name) for one in leaf.names)]
        if missing:
            return f"names: it holds for {sorted(leaf.names)}, and not for {missing}"
    elif leaf.names != frozenset(names):
        return f"names: {sorted(leaf.names)}, not {sorted(names)}"
    elif leaf.common_name not in ("", common_name, *(name.partition(":")[2] for name in names)):
        return f"names: the common name is {leaf.common_name!r}, neither {common_name!r} nor one of the names"
    lacking = sorted(set(usages) - leaf.usages)
    # Without the extension a certificate is good for everything, to the library of the broker as well.
    if lacking and (leaf.usages or source != GIVEN):
        return f"usages: {sorted(leaf.usages)}, without {lacking}"
    if source != GIVEN and leaf.usages - set(x509.USAGES):
        return f"usages: {sorted(leaf.usages)}, of which {sorted(leaf.usages - set(x509.USAGES))} was not asked for"
    return ""


def covers(one: str, name: str) -> bool:
    """Say whether a name of a certificate holds for ``name``; a wildcard stands for one label (RFC 6125)."""
    if one == name:
        return True
    _dot, parent = name.partition(".")[1:]
    return one.startswith("DNS:*.") and name.startswith("DNS:") and bool(parent) and one == f"DNS:*.{parent}"


def _show(certificate: x509.Certificate) -> str:
    return repr(certificate.common_name or f"serial number {certificate.identifier}")
