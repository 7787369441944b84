# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Takes reports by HTTPS, with a token, and writes them down one a line."""

from __future__ import annotations

import http.server
import pathlib
import ssl

TOKEN = pathlib.Path("/root/collector_token").read_text().strip()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        good = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if good:
            with open("/root/reports.jsonl", "ab") as handle:
                handle.write(body + b"\n")
        self.send_response(204 if good else 401)
        self.end_headers()


server = http.server.HTTPServer(("0.0.0.0", 9443), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/root/collector.pem", "/root/collector.key")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
