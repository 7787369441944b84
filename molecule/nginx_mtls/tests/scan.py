# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Scans the TLS of a server by sslyze: scan.py ADDRESS NAME, prints the result of each check in JSON.

For the Python of sslyze, which is not that of the tests. Its command would do, but that it waits five seconds for a
server to say that it wants a certificate, as long as ours waits for a request; who gives up first is a matter of luck.
"""

from __future__ import annotations

import sys

import sslyze
from sslyze.json.json_output import ServerScanResultAsJson

CHECKS = {check for check in sslyze.ScanCommand if check not in ("session_resumption",)}

scanner = sslyze.Scanner()
scanner.queue_scans(
    [
        sslyze.ServerScanRequest(
            server_location=sslyze.ServerNetworkLocation(hostname=sys.argv[2], ip_address=sys.argv[1], port=443),
            network_configuration=sslyze.ServerNetworkConfiguration(
                tls_server_name_indication=sys.argv[2], network_timeout=3
            ),
            scan_commands=CHECKS,
        )
    ]
)
(result,) = scanner.get_results()
print(ServerScanResultAsJson.model_validate(result).model_dump_json())
