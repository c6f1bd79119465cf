"""Clients with one bad habit each, and the same without it: HABIT SERVER-ADDRESS SERVER-PORT."""
import http.client
import socket
import sys
import time

habit, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
REQUEST = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"


def connect():
    return socket.create_connection((host, port))


def ask(connection):
    connection.sendall(REQUEST)
    assert connection.recv(4096).startswith(b"HTTP/1.1 200")


def exchange(connection):
    connection.request("GET", "/")
    assert connection.getresponse().read() == b"ok"


if habit == "http-each":
    for _ in range(60):
        connection = http.client.HTTPConnection(host, port)
        exchange(connection)
        connection.close()
elif habit == "http-kept":
    connection = http.client.HTTPConnection(host, port)
    for _ in range(60):
        exchange(connection)
elif habit == "server-closes":
    for _ in range(60):
        with connect() as connection:
            connection.sendall(REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            while connection.recv(4096):
                pass
elif habit == "server-resets":
    import struct

    for _ in range(60):
        with connect() as connection:
            ask(connection)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
elif habit == "leak":
    kept = []
    for _ in range(60):
        kept.append(connect())
        ask(kept[-1])
        time.sleep(0.04)
elif habit == "pool":
    kept = [connect() for _ in range(30)]
    for _ in range(20):
        for connection in kept:
            ask(connection)
        time.sleep(0.1)
elif habit == "ramp":
    kept = []
    for _ in range(30):
        kept.append(connect())
        ask(kept[-1])
        time.sleep(0.04)
    for _ in range(40):
        for connection in kept:
            ask(connection)
        time.sleep(0.08)
elif habit == "reconnects":
    for _ in range(6):
        with connect() as connection:
            for _ in range(50):
                ask(connection)
        time.sleep(0.5)
elif habit == "health-check":
    for _ in range(4):
        with connect() as connection:
            ask(connection)
        time.sleep(1)
elif habit == "storm":
    for _ in range(80):
        try:
            connect()
        except ConnectionRefusedError:
            pass
        time.sleep(0.01)
elif habit == "patient":
    for attempt in range(5):
        try:
            connect()
        except ConnectionRefusedError:
            time.sleep(0.1 * 2**attempt)
elif habit == "spread":
    listeners = []
    for number in range(1, 41):
        listener = socket.create_server(("127.0.2.%d" % number, 0))
        listeners.append(listener)
        with socket.create_connection(listener.getsockname()):
            pass
elif habit == "threads-each":
    from concurrent.futures import ThreadPoolExecutor

    def one(_):
        with connect() as connection:
            ask(connection)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(80)))
elif habit == "forks-each":
    import os

    for _ in range(30):
        if os.fork() == 0:
            with connect() as connection:
                ask(connection)
            os._exit(0)
        os.wait()
else:
    sys.exit("no such habit")
