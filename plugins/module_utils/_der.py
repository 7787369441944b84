# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The little of DER (ITU-T X.690) that certificates need: read strictly, written canonically. Standard library only."""

from __future__ import annotations

import base64
import binascii
import datetime
import re
import typing

INTEGER, BIT_STRING, OCTET_STRING, NULL, OID, UTF8_STRING = 0x02, 0x03, 0x04, 0x05, 0x06, 0x0C
UTC_TIME, GENERALIZED_TIME, BOOLEAN, SEQUENCE, SET = 0x17, 0x18, 0x01, 0x30, 0x31

_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----\s+([A-Za-z0-9+/=\s]+?)\s*-----END \1-----", re.ASCII)


class DerError(ValueError):
    """The bytes are not the DER that was expected."""


class Node(typing.NamedTuple):
    """One element: its tag, its content, and the whole of it as it stood."""

    tag: int
    content: bytes
    raw: bytes

    def expect(self, tag: int) -> Node:
        """Return self if it has this tag. Raises DerError."""
        if self.tag != tag:
            raise DerError(f"expected tag 0x{tag:02x}, found 0x{self.tag:02x}")
        return self

    def children(self) -> list[Node]:
        """Return the elements within a constructed one. Raises DerError."""
        if not self.tag & 0x20:
            raise DerError(f"tag 0x{self.tag:02x} has no elements within")
        found, rest = [], self.content
        while rest:
            node = _take(rest)
            found.append(node)
            rest = rest[len(node.raw) :]
        return found


def parse(data: bytes) -> Node:
    """Return the one element that ``data`` is. Raises DerError, also when something follows it."""
    node = _take(data)
    if len(node.raw) != len(data):
        raise DerError("there are bytes after the end")
    return node


def _take(data: bytes) -> Node:
    if len(data) < 2:
        raise DerError("it ends too early")
    tag, length, start = data[0], data[1], 2
    if tag & 0x1F == 0x1F:
        raise DerError("a tag of several bytes")
    if length & 0x80:
        size = length & 0x7F
        start += size
        length = int.from_bytes(data[2:start], "big")
        if not 1 <= size <= 4 or len(data) < start or data[2] == 0 or length < 0x80:
            raise DerError("a length that is not canonical")
    if len(data) < start + length:
        raise DerError("it ends too early")
    return Node(tag, data[start : start + length], data[: start + length])


def encode(tag: int, *contents: bytes) -> bytes:
    """Return one element holding ``contents`` one after the other."""
    content = b"".join(contents)
    if len(content) < 0x80:
        return bytes([tag, len(content)]) + content
    length = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def encode_integer(value: int) -> bytes:
    """Return a non-negative INTEGER."""
    return encode(INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def integer(node: Node) -> int:
    """Return the value of an INTEGER."""
    content = node.expect(INTEGER).content
    if not content:
        raise DerError("an integer without a value")
    return int.from_bytes(content, "big", signed=True)


def encode_oid(dotted: str) -> bytes:
    """Return an OBJECT IDENTIFIER, given as ``1.2.840.113549``."""
    first, second, *rest = (int(part) for part in dotted.split("."))
    content = bytearray()
    for number in [40 * first + second, *rest]:
        groups = [number & 0x7F]
        while number := number >> 7:
            groups.append(0x80 | number & 0x7F)
        content.extend(reversed(groups))
    return encode(OID, bytes(content))


def oid(node: Node) -> str:
    """Return an OBJECT IDENTIFIER as ``1.2.840.113549``."""
    content = node.expect(OID).content
    if not content or content[-1] & 0x80:
        raise DerError("an object identifier that does not end")
    numbers, value = [], 0
    for byte in content:
        value = value << 7 | byte & 0x7F
        if not byte & 0x80:
            numbers.append(value)
            value = 0
    first = min(numbers[0] // 40, 2)
    return ".".join(str(number) for number in [first, numbers[0] - 40 * first, *numbers[1:]])


def bit_string(node: Node) -> bytes:
    """Return the bytes of a BIT STRING of whole bytes."""
    content = node.expect(BIT_STRING).content
    if not content or content[0] != 0:
        raise DerError("a bit string of broken bytes")
    return content[1:]


def time(node: Node) -> datetime.datetime:
    """Return the moment that an X.509 Time stands for (RFC 5280, 4.1.2.5), in UTC."""
    try:
        text = node.content.decode("ascii")
        if node.tag == UTC_TIME:
            # RFC 5280: two-digit years are 1950 to 2049, which is not what strptime makes of them.
            text = ("19" if text[:2] >= "50" else "20") + text
        elif node.tag != GENERALIZED_TIME:
            raise DerError(f"tag 0x{node.tag:02x} is no time")
        return datetime.datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=datetime.timezone.utc)
    except DerError:
        raise
    except ValueError:
        raise DerError("a time that is not of the form that X.509 asks for") from None


def to_pem(label: str, data: bytes) -> bytes:
    """Return ``data`` as PEM (RFC 7468)."""
    body = base64.b64encode(data).decode("ascii")
    lines = [body[start : start + 64] for start in range(0, len(body), 64)]
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""]).encode("ascii")


def from_pem(label: str, text: bytes) -> list[bytes]:
    """Return the contents of every PEM block with this label. Raises DerError on a block that is not base64."""
    try:
        return [
            base64.b64decode(b"".join(body.split()), validate=True)
            for found, body in _PEM.findall(text)
            if found == label.encode("ascii")
        ]
    except binascii.Error:
        raise DerError(f"the {label} block is not base64") from None
