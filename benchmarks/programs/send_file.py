"""Sends the front of a file to each of so many connections, by sendfile(2), and ends. Settings: JSON in REQUEST.

A thread for each connection and 256 KiB a call, as peers send it, and nothing else: what the kernel takes for it.
"""

import json
import os
import socket
import threading

CHUNK_BYTES = 256 * 1024

request = json.loads(os.environ["REQUEST"])
path: str = request["path"]
length: int = request["length"]


def send(sock: socket.socket) -> None:
    """As much as is wanted."""
    with sock, open(path, "rb") as file:
        offset, size = 0, length
        while offset < size:
            offset += os.sendfile(sock.fileno(), file.fileno(), offset, min(CHUNK_BYTES, size - offset))


if __name__ == "__main__":
    listening = socket.socket(fileno=request["fd"])
    print("ready", flush=True)
    threads = [threading.Thread(target=send, args=(listening.accept()[0],)) for _ in range(request["connections"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
