"""Connects in every way that Python code is run, each to a port of its own where nobody listens.

The comment behind a call says to which port it goes and in which function it stands; `-` is a function that not all
versions have. The test reads them, so the file is its own truth.
"""
import asyncio
import contextlib
import http.client
import multiprocessing
import os
import socket
import sys
import threading
import urllib.request

HOST = "127.0.0.1"


def plain():
    with socket.socket() as s:
        s.connect_ex((HOST, 21001))  # 21001 plain


def library():
    with contextlib.suppress(OSError):
        socket.create_connection((HOST, 21002))  # 21002 library


def nested():
    def inner():
        with contextlib.suppress(OSError):
            socket.create_connection((HOST, 21003))  # 21003 nested.<locals>.inner

    inner()


class Client:
    def fetch(self, depth):
        if depth:
            return self.fetch(depth - 1)
        with contextlib.suppress(OSError):
            http.client.HTTPConnection(HOST, 21004).request("GET", "/")  # 21004 Client.fetch

    @staticmethod
    def url():
        with contextlib.suppress(OSError):
            urllib.request.urlopen("http://127.0.0.1:21005/")  # 21005 Client.url

    @property
    def value(self):
        socket.socket().connect_ex((HOST, 21006))  # 21006 Client.value
        return 1


def callbacks():
    list(map(lambda n: socket.socket().connect_ex((HOST, n)), [21007]))  # 21007 callbacks.<locals>.<lambda>
    sorted([2, 1], key=lambda n: socket.socket().connect_ex((HOST, 21008)))  # 21008 callbacks.<locals>.<lambda>
    [socket.socket().connect_ex((HOST, 21009)) for _ in range(2)]  # 21009 -
    next(socket.socket().connect_ex((HOST, 21010)) for _ in range(2))  # 21010 callbacks.<locals>.<genexpr>
    {socket.socket().connect_ex((HOST, 21011)) for _ in range(2)}  # 21011 -


def generator():
    yield 1
    yield socket.socket().connect_ex((HOST, 21012))  # 21012 generator


def delegating():
    yield from generator()


async def coroutine():
    with contextlib.suppress(OSError):
        await asyncio.open_connection(HOST, 21013)  # 21013 coroutine


async def gathered():
    async def one():
        await asyncio.sleep(0)
        with contextlib.suppress(OSError):
            await asyncio.open_connection(HOST, 21014)  # 21014 gathered.<locals>.one

    await asyncio.gather(*(one() for _ in range(3)))


async def offloaded():
    await asyncio.get_running_loop().run_in_executor(None, in_executor)


def in_executor():
    socket.socket().connect_ex((HOST, 21015))  # 21015 in_executor


def in_thread():
    socket.socket().connect_ex((HOST, 21016))  # 21016 in_thread


def in_child():
    socket.socket().connect_ex((HOST, 21017))  # 21017 in_child


def in_worker():
    socket.socket().connect_ex((HOST, 21018))  # 21018 in_worker


def handling():
    try:
        raise ValueError
    except ValueError:
        try:
            socket.socket().connect_ex((HOST, 21019))  # 21019 handling
        finally:
            socket.socket().connect_ex((HOST, 21020))  # 21020 handling


def größe():
    socket.socket().connect_ex((HOST, 21021))  # 21021 größe


def recursive(depth):
    if depth:
        recursive(depth - 1)
    else:
        socket.socket().connect_ex((HOST, 21022))  # 21022 recursive


def binding():
    with socket.socket() as s:
        # Here it asks for its port.
        s.bind((HOST, 0))  # 21023 binding
        s.connect_ex((HOST, 21023))


def decorated_with(function):
    def wrapper(*args):
        return function(*args)

    return wrapper


@decorated_with
def decorated():
    socket.socket().connect_ex((HOST, 21024))  # 21024 decorated


def made_again():
    # Code objects that come and go, some of them in the memory of earlier ones.
    for lines in range(30):
        source = "\n" * lines + "import socket; socket.socket().connect_ex(('127.0.0.1', %d))" % (22000 + lines)
        exec(compile(source, "/srv/made.py", "exec"), {})


def replaced():
    with open(__file__, "w") as file:
        file.write("# Another program.\n" * 3)
    socket.socket().connect_ex((HOST, 21025))  # 21025 replaced


def main():
    plain()
    library()
    nested()
    Client().fetch(3)
    Client.url()
    Client().value
    callbacks()
    list(delegating())
    asyncio.run(coroutine())
    asyncio.run(gathered())
    asyncio.run(offloaded())
    threads = [threading.Thread(target=in_thread) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in range(5):
        child = os.fork()
        if child == 0:
            in_child()
            os._exit(0)
        os.waitpid(child, 0)
    workers = [multiprocessing.get_context("fork").Process(target=in_worker) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    handling()
    größe()
    recursive(20)
    binding()
    decorated()
    made_again()
    replaced()


main()
socket.socket().connect_ex((HOST, 21026))  # 21026 <module>
with open(sys.argv[1], "w") as file:
    file.write("done")
