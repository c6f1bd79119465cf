"""Requests to a server and to a port where nobody listens; then says what it saw."""
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import requests

mode, server, closed, count, told = sys.argv[1:]
count = int(count)
refusals = 0


def ask(get):
    response = get(server, timeout=60)
    assert response.text == "ok", response


if mode == "each":
    for number in range(count):
        ask(requests.get)
        if number % 8 == 0:
            try:
                requests.get(closed, timeout=60)
            except requests.exceptions.ConnectionError as error:
                assert "refused" in str(error), error
                refusals += 1
elif mode == "session":
    with requests.Session() as session:
        for number in range(count):
            ask(session.get)
elif mode == "threads":
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: ask(requests.get), range(count)))

with open("/proc/self/comm") as file:
    comm = file.read().strip()
with open(told, "w") as file:
    json.dump({"pid": os.getpid(), "comm": comm, "refused": refusals}, file)
sys.exit(3)
