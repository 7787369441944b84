# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""What standards ask for that a rule of the policy looks after.

A rule covers a part of a requirement at most: a reference says where to look, and not that the requirement is met.
IT-Grundschutz is cited by its edition of 2023, with its own German titles; CIS Controls is version 8.
"""

from __future__ import annotations

import dataclasses

IEC = "IEC 62443-4-2"
BSI = "BSI IT-Grundschutz"
CIS = "CIS Controls v8"
MQTT = "MQTT 3.1.1"

#: {standard: {id: title}}
TITLES = {
    IEC: {
        "CR 1.1": "Human user identification and authentication",
        "CR 1.2": "Software process and device identification and authentication",
        "CR 1.5": "Authenticator management",
        "CR 1.7": "Strength of password-based authentication",
        "CR 1.8": "Public key infrastructure certificates",
        "CR 1.9": "Strength of public key-based authentication",
        "CR 2.1": "Authorization enforcement",
        "CR 2.8": "Auditable events",
        "CR 2.11": "Timestamps",
        "CR 3.1": "Communication integrity",
        "CR 3.4": "Software and information integrity",
        "CR 3.5": "Input validation",
        "CR 3.9": "Protection of audit information",
        "CR 4.1": "Information confidentiality",
        "CR 7.1": "Denial of service protection",
        "CR 7.2": "Resource management",
        "CR 7.6": "Network and security configuration settings",
        "CR 7.7": "Least functionality",
    },
    BSI: {
        "SYS.4.4.A2": "Authentisierung",
        "SYS.4.4.A5": "Einschränkung des Netzzugriffs",
        "SYS.4.4.A10": "Sichere Installation und Konfiguration von IoT-Geräten",
        "SYS.4.4.A11": "Verwendung von verschlüsselter Datenübertragung",
        "SYS.4.4.A13": "Deaktivierung und Deinstallation nicht benötigter Komponenten",
        "SYS.4.4.A15": "Restriktive Rechtevergabe",
    },
    CIS: {
        "3.3": "Configure Data Access Control Lists",
        "3.10": "Encrypt Sensitive Data in Transit",
        "4.1": "Establish and Maintain a Secure Configuration Process",
        "4.4": "Implement and Manage a Firewall on Servers",
        "4.6": "Securely Manage Enterprise Assets and Software",
        "4.7": "Manage Default Accounts on Enterprise Assets and Software",
        "4.8": "Uninstall or Disable Unnecessary Services on Enterprise Assets and Software",
        "5.2": "Use Unique Passwords",
        "7.4": "Perform Automated Application Patch Management",
        "7.7": "Remediate Detected Vulnerabilities",
        "8.2": "Collect Audit Logs",
        "8.4": "Standardize Time Synchronization",
    },
    MQTT: {
        "5.4.1": "Authentication of Clients by the Server",
        "5.4.2": "Authorization of Clients by the Server",
        "5.4.3": "Authentication of the Server by the Client",
        "5.4.5": "Privacy of Application Messages and Control Packets",
    },
}

_REACH = ((IEC, "CR 7.7"), (BSI, "SYS.4.4.A5"))
_PLAIN = ((IEC, "CR 3.1"), (IEC, "CR 4.1"), (BSI, "SYS.4.4.A11"), (CIS, "3.10"))
_PLAIN_MQTT = (*_PLAIN, (MQTT, "5.4.5"))
_PEER = ((IEC, "CR 1.2"), (MQTT, "5.4.1"))
_CLIENTS = ((IEC, "CR 1.1"), (IEC, "CR 1.2"), (BSI, "SYS.4.4.A2"), (MQTT, "5.4.1"))
_REST = ((IEC, "CR 1.1"), (BSI, "SYS.4.4.A2"), (CIS, "4.6"))
_PASSWORD = ((IEC, "CR 1.7"), (BSI, "SYS.4.4.A2"), (CIS, "5.2"))
_SHIPPED = ((IEC, "CR 1.5"), (CIS, "4.7"))
_TOPICS = ((IEC, "CR 2.1"), (CIS, "3.3"), (MQTT, "5.4.2"))
_CALLS = ((IEC, "CR 2.1"), (BSI, "SYS.4.4.A15"), (CIS, "3.3"))
_LEAST = ((IEC, "CR 7.7"), (BSI, "SYS.4.4.A13"), (CIS, "4.8"))
_RIGHTS = ((IEC, "CR 2.1"), (BSI, "SYS.4.4.A15"))
_SETTINGS = ((IEC, "CR 7.6"), (BSI, "SYS.4.4.A10"), (CIS, "4.1"))
_INTEGRITY = ((IEC, "CR 3.4"), (BSI, "SYS.4.4.A15"))
_SECRET = ((IEC, "CR 1.5"), (IEC, "CR 4.1"), (CIS, "3.3"))

#: {rule: ((standard, id), ...)}. A rule without an entry has no counterpart that says the same.
_CITED: dict[str, tuple] = {
    "NMQ-ACL-001": _TOPICS,
    "NMQ-ACL-002": _TOPICS,
    "NMQ-ACL-003": _TOPICS,
    "NMQ-ACL-004": _TOPICS,
    "NMQ-ACL-005": _TOPICS,
    "NMQ-ACL-006": _TOPICS,
    "NMQ-ACL-007": _TOPICS,
    "NMQ-ACL-008": _TOPICS,
    "NMQ-ACL-009": _TOPICS,
    "NMQ-ACL-010": _CALLS,
    "NMQ-ACL-011": _CALLS,
    "NMQ-ACL-012": _CALLS,
    "NMQ-ACL-013": _CALLS,
    "NMQ-ACL-014": _CALLS,
    "NMQ-ACL-015": ((IEC, "CR 1.1"), (IEC, "CR 1.2")),
    "NMQ-ACL-016": _TOPICS,
    "NMQ-AUT-001": _CLIENTS,
    "NMQ-AUT-002": _CLIENTS,
    "NMQ-AUT-003": _CLIENTS,
    "NMQ-AUT-004": _PASSWORD,
    "NMQ-AUT-005": _REST,
    "NMQ-AUT-007": _SHIPPED,
    "NMQ-AUT-008": _PASSWORD,
    "NMQ-AUT-009": ((CIS, "4.7"),),
    "NMQ-AUT-011": ((IEC, "CR 1.5"), (IEC, "CR 1.9")),
    "NMQ-AUT-012": _REST,
    "NMQ-AUT-013": ((IEC, "CR 1.9"),),
    "NMQ-AUT-014": ((IEC, "CR 1.5"),),
    "NMQ-AUT-015": _INTEGRITY,
    "NMQ-AUT-016": _SECRET,
    "NMQ-NET-001": (*_REACH, (CIS, "4.6")),
    "NMQ-NET-002": (*_REACH, *_LEAST[1:]),
    "NMQ-NET-003": _SETTINGS,
    "NMQ-NET-006": ((BSI, "SYS.4.4.A5"), (CIS, "4.4")),
    "NMQ-NET-007": _RIGHTS,
    "NMQ-NET-008": (*_REACH, (CIS, "4.8")),
    "NMQ-NET-010": (*_REACH, (CIS, "4.6")),
    "NMQ-NET-011": _PLAIN_MQTT,
    "NMQ-NET-012": (*_REACH, (CIS, "4.8")),
    "NMQ-NET-013": (*_REACH, *_LEAST[1:]),
    "NMQ-NET-014": (*_REACH, *_LEAST[1:]),
    "NMQ-SVC-001": _LEAST,
    "NMQ-SVC-002": ((IEC, "CR 2.8"), (CIS, "8.2")),
    "NMQ-SVC-003": ((IEC, "CR 2.8"), (CIS, "8.2")),
    "NMQ-SVC-004": ((IEC, "CR 3.9"),),
    "NMQ-SVC-005": _LEAST,
    "NMQ-SVC-006": _LEAST,
    "NMQ-SVC-008": _SETTINGS,
    "NMQ-SVC-009": ((IEC, "CR 7.1"), (IEC, "CR 7.2")),
    "NMQ-SVC-011": _RIGHTS,
    "NMQ-SVC-012": _RIGHTS,
    "NMQ-SVC-013": _INTEGRITY,
    "NMQ-SVC-014": _SECRET,
    "NMQ-SVC-015": _SETTINGS,
    "NMQ-SVC-016": _SETTINGS,
    "NMQ-SVC-017": _SETTINGS,
    "NMQ-SVC-018": _LEAST,
    "NMQ-SVC-020": _SETTINGS,
    "NMQ-SVC-021": _RIGHTS,
    "NMQ-SVC-022": ((IEC, "CR 7.1"), (IEC, "CR 7.2")),
    "NMQ-SVC-023": ((IEC, "CR 4.1"),),
    "NMQ-SVC-024": _INTEGRITY,
    "NMQ-SVC-025": _SECRET,
    "NMQ-SVC-026": ((IEC, "CR 2.11"), (CIS, "8.4")),
    "NMQ-SVC-027": ((IEC, "CR 2.11"), (CIS, "8.4")),
    "NMQ-SVC-028": _SETTINGS,
    "NMQ-SVC-029": ((IEC, "CR 7.7"),),
    "NMQ-SVC-030": ((IEC, "CR 3.5"),),
    "NMQ-SVC-031": _RIGHTS,
    "NMQ-TLS-001": _PLAIN_MQTT,
    "NMQ-TLS-002": _PLAIN_MQTT,
    "NMQ-TLS-003": _PLAIN_MQTT,
    "NMQ-TLS-004": _PEER,
    "NMQ-TLS-005": (*_PEER, (IEC, "CR 1.8")),
    "NMQ-TLS-006": (*_PEER, (IEC, "CR 1.8")),
    "NMQ-TLS-007": _PLAIN_MQTT,
    "NMQ-TLS-008": ((IEC, "CR 1.2"), (MQTT, "5.4.3")),
    "NMQ-TLS-009": _PLAIN,
    "NMQ-TLS-010": _PLAIN,
    "NMQ-TLS-011": _PLAIN,
    "NMQ-TLS-012": ((IEC, "CR 1.8"),),
    "NMQ-TLS-013": ((IEC, "CR 1.8"),),
    "NMQ-TLS-014": ((IEC, "CR 1.5"), (IEC, "CR 1.9")),
    "NMQ-TLS-015": _PLAIN,
    "NMQ-TLS-016": _PLAIN,
    "NMQ-TLS-017": ((IEC, "CR 1.8"),),
    "NMQ-TLS-018": ((IEC, "CR 1.8"),),
    "NMQ-TLS-019": ((IEC, "CR 1.8"),),
    "NMQ-TLS-020": ((IEC, "CR 1.8"), (IEC, "CR 1.9")),
    "NMQ-TLS-021": _PLAIN_MQTT,
    "NMQ-TLS-022": _PLAIN,
    "NMQ-VER-001": ((CIS, "7.4"),),
    "NMQ-VER-002": ((CIS, "7.7"),),
    "NMQ-VER-003": ((CIS, "7.7"),),
    "NMQ-VER-004": ((CIS, "7.4"),),
    "NMQ-VER-006": ((CIS, "7.7"),),
}


@dataclasses.dataclass(frozen=True)
class Reference:
    """A requirement of a standard."""

    standard: str
    id: str
    title: str

    def __str__(self) -> str:
        return f"{self.standard} {self.id} ({self.title})"


def of(rule: str) -> tuple:
    """The references of a rule, () where there are none."""
    return tuple(Reference(standard, name, TITLES[standard][name]) for standard, name in _CITED.get(rule, ()))


def rules() -> set:
    """The ids of the rules with references."""
    return set(_CITED)
