"""A relay that forgets to close something, which is what the soak is there to find.

    python leaky.py UPSTREAM FAULT

It says its port, and then relays from there to the port UPSTREAM. FAULT is what it forgets of each client:
`client`: the client's connection, once it has left · `twice`: a second descriptor of that · `upstream`: the
connection to the upstream, which says nothing any more · `file`: a file · `none`: it forgets nothing.
"""

from __future__ import annotations

import os
import socket
import sys

FORGOTTEN: list[object] = []


def main() -> None:
    """One client after the other, a connection to the upstream for each."""
    upstream_port, fault = int(sys.argv[1]), sys.argv[2]
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    while True:
        client, _ = listener.accept()
        upstream = socket.create_connection(("127.0.0.1", upstream_port))
        while request := client.recv(65536):
            upstream.sendall(request)
            client.sendall(upstream.recv(65536))
        match fault:
            case "client":
                FORGOTTEN.append(client)
            case "twice":
                FORGOTTEN.append(client.dup())
            case "upstream":
                FORGOTTEN.append(upstream)
            case "file":
                FORGOTTEN.append(open(os.devnull))  # noqa: SIM115
        del client, upstream  # closes what nobody keeps


main()
