"""A worker process without a mind: it passes every byte between the pool's socket and the test's.

So the test decides about every answer while the process can really be stopped, killed and waited for. Imports nothing
of ours: it starts fast.
"""

import os
import socket
import sys
import threading


def pump(source: socket.socket, sink: socket.socket) -> None:
    """Until either side ends; then all of us."""
    while True:
        try:
            data = source.recv(65536)
            if not data:
                break
            sink.sendall(data)
        except OSError:
            break
    os._exit(0)


def main() -> None:
    """`relay_worker.py CONTROL --fd N ...`: the rest of the arguments is for the test to read."""
    pool = socket.socket(fileno=int(sys.argv[sys.argv.index("--fd") + 1]))
    test = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    test.connect(sys.argv[1])
    test.sendall(f"{os.getpid()}\n".encode())
    threading.Thread(target=pump, args=(test, pool), daemon=True).start()
    pump(pool, test)


if __name__ == "__main__":
    main()
