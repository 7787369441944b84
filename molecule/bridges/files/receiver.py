"""An HTTPS server that notes each request as a line of JSON. Arguments: certificate and key in one file, the notes."""

import http.server
import json
import ssl
import sys

PAIR, NOTES = sys.argv[1:]


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers 200 to every POST."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        headers = {name.lower(): value for name, value in self.headers.items()}
        with open(NOTES, "a", encoding="utf-8") as notes:
            print(json.dumps({"path": self.path, "headers": headers, "body": body}), file=notes)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()


server = http.server.ThreadingHTTPServer(("", 8443), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(PAIR)
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
server.serve_forever()
