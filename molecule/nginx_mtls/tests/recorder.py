# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Writes down what reaches a TCP port on loopback, byte by byte, without being in its way: recorder.py PORT FILE

It listens to the interface itself, so that the real broker is watched at its real port. One line of JSON a segment:
{"connection": source port and initial number, "offset": of its first byte, "data": in latin-1}, and a last line
{"lost": segments} at SIGTERM. Runs on the host as root, with the standard library alone.
"""

from __future__ import annotations

import json
import signal
import socket
import struct
import sys

ETH_P_IP, SOL_PACKET, PACKET_STATISTICS, PACKET_HOST = 0x0800, 263, 6, 0
SYN = 2


def segment(frame: bytes, port: int) -> tuple[int, int, int, bytes] | None:
    """(source port, sequence number, flags, payload) of a frame for the port, else nothing."""
    packet = frame[14:]
    header = (packet[0] & 15) * 4
    if packet[9] != socket.IPPROTO_TCP:
        return None
    source, target, number, _ack, offset, flags = struct.unpack("!HHIIBB", packet[header : header + 14])
    if target != port:
        return None
    length = struct.unpack("!H", packet[2:4])[0] or len(packet)  # 0: more than 64 KiB at once
    return source, number, flags, packet[header + (offset >> 4) * 4 : length]


def main(port: int, path: str) -> None:
    sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_IP))
    sniffer.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
    sniffer.bind(("lo", ETH_P_IP))
    first: dict[int, int] = {}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with open(path, "w") as file:
        try:
            while True:
                frame, address = sniffer.recvfrom(1 << 17)
                found = segment(frame, port) if address[2] == PACKET_HOST else None
                if not found:
                    continue
                source, number, flags, payload = found
                if flags & SYN:
                    first[source] = number + 1
                first.setdefault(source, number)
                if payload:
                    record = {
                        "connection": f"{source}.{first[source]}",
                        "offset": (number - first[source]) & 0xFFFFFFFF,
                        "data": payload.decode("latin-1"),
                    }
                    file.write(json.dumps(record) + "\n")
                    file.flush()
        finally:
            _seen, lost = struct.unpack("II", sniffer.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
            file.write(json.dumps({"lost": lost}) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
