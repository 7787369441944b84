# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Says to an HTTPS server what no library would: attacker.py < attempts > answers, both a list in JSON.

An attempt: {"address", "port", "kind", "certificate": name of a PEM file with its key beside this program, or nothing},
- kind "raw": "data": bytes in latin-1, "wait": seconds for an answer -> {"answer": all that came back, "closed"}
- kind "calls": "calls": [[method, target, headers, body], ...] on one connection -> {"answers": [[status, body], ...]}
- kind "h2": "streams": [{"headers": [[name, value], ...], "data"}], "frames" -> {"answers": [status or event, ...]}
- kind "handshake": {"least", "most"}: TLS versions -> {"answer": version and cipher}
An answer has "error" where that failed. Runs on the outsider, with the standard library, hpack and hyperframe.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import json
import pathlib
import socket
import ssl
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
LIMIT = 8  # seconds that one attempt may take to connect or to wait for an answer
QUIET = 0.15  # seconds after which an answer is taken to be complete


def context(attempt: dict, *protocols: str) -> ssl.SSLContext:
    settings = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    settings.check_hostname = False  # the server's certificate is the business of another test
    settings.verify_mode = ssl.CERT_NONE
    if protocols:
        settings.set_alpn_protocols(protocols)
    if attempt.get("certificate"):
        settings.load_cert_chain(HERE / f"{attempt['certificate']}.pem", HERE / f"{attempt['certificate']}.key")
    return settings


def connect(attempt: dict, settings: ssl.SSLContext) -> ssl.SSLSocket:
    plain = socket.create_connection((attempt["address"], attempt["port"]), LIMIT)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return settings.wrap_socket(plain, server_hostname=attempt.get("name"))


def raw(attempt: dict) -> dict:
    with connect(attempt, context(attempt)) as sock:
        # A server may say no and hang up before it has read all.
        with contextlib.suppress(ConnectionError):
            sock.sendall(attempt["data"].encode("latin-1"))
        answer, closed = b"", False
        deadline = time.monotonic() + attempt.get("wait", 1)
        while (left := deadline - time.monotonic()) > 0:
            sock.settimeout(min(left, QUIET) if answer else left)
            try:
                data = sock.recv(65536)
            except TimeoutError:
                break
            except OSError:
                data = b""
            if not data:
                closed = True
                break
            answer += data
        return {"answer": answer.decode("latin-1"), "closed": closed}


class Connection(http.client.HTTPConnection):
    """One that takes any target and any certificate."""

    def __init__(self, attempt: dict) -> None:
        super().__init__(attempt["address"], attempt["port"], timeout=LIMIT)
        self.attempt = attempt

    def connect(self) -> None:
        self.sock = connect(self.attempt, context(self.attempt))


def calls(attempt: dict) -> dict:
    connection = Connection(attempt)
    answers = []
    for method, target, headers, body in attempt["calls"]:
        connection.request(method, target, body.encode() if body else None, headers)
        answer = connection.getresponse()
        answers.append([answer.status, answer.read().decode("latin-1")])
    connection.close()
    return {"answers": answers}


def h2(attempt: dict) -> dict:
    from hpack import Decoder, Encoder
    from hyperframe.frame import DataFrame, Frame, GoAwayFrame, HeadersFrame, RstStreamFrame, SettingsFrame

    with connect(attempt, context(attempt, "h2")) as sock:
        if sock.selected_alpn_protocol() != "h2":
            return {"error": "no h2"}
        encoder, decoder = Encoder(), Decoder()
        sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SettingsFrame(0).serialize()
        answers = {}
        for index, stream in enumerate(attempt["streams"]):
            number = 2 * index + 1
            answers[number] = None
            frame = HeadersFrame(number, encoder.encode([tuple(pair) for pair in stream["headers"]]))
            frame.flags.add("END_HEADERS")
            if "data" not in stream:
                frame.flags.add("END_STREAM")
            sent += frame.serialize()
            if "data" in stream:
                frame = DataFrame(number, stream["data"].encode("latin-1"))
                frame.flags.add("END_STREAM")
                sent += frame.serialize()
        sock.sendall(sent)
        received, deadline = b"", time.monotonic() + attempt.get("wait", 2)
        while None in answers.values() and (left := deadline - time.monotonic()) > 0:
            sock.settimeout(left)
            try:
                data = sock.recv(65536)
            except OSError:
                break
            if not data:
                break
            received += data
            while len(received) >= 9:
                frame, length = Frame.parse_frame_header(memoryview(received[:9]))
                if len(received) < 9 + length:
                    break
                frame.parse_body(memoryview(received[9 : 9 + length]))
                received = received[9 + length :]
                if isinstance(frame, HeadersFrame):
                    answers[frame.stream_id] = dict(decoder.decode(frame.data))[":status"]
                elif isinstance(frame, RstStreamFrame):
                    answers[frame.stream_id] = answers.get(frame.stream_id) or "reset"
                elif isinstance(frame, GoAwayFrame):
                    answers = {number: answer or "go away" for number, answer in answers.items()}
        return {"answers": [answer or "nothing" for answer in answers.values()]}


def handshake(attempt: dict) -> dict:
    settings = context(attempt)
    settings.set_ciphers("ALL:@SECLEVEL=0")
    settings.minimum_version = ssl.TLSVersion[attempt["least"]]
    settings.maximum_version = ssl.TLSVersion[attempt["most"]]
    with connect(attempt, settings) as sock:
        return {"answer": f"{sock.version()} {sock.cipher()[0]}"}


def attempted(attempt: dict) -> dict:
    try:
        return {"raw": raw, "calls": calls, "h2": h2, "handshake": handshake}[attempt["kind"]](attempt)
    except (OSError, ssl.SSLError, http.client.HTTPException) as error:
        return {"error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        json.dump(list(pool.map(attempted, json.load(sys.stdin))), sys.stdout)
