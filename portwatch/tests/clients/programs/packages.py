"""As sites.py, through packages: no line of theirs may be the call site."""
import asyncio
import contextlib
import sys

import aiohttp
import gevent
import gevent.socket
import httpx
import psycopg
import redis
import requests
import urllib3


def of_requests():
    with contextlib.suppress(OSError):
        requests.get("http://127.0.0.1:21101/")  # 21101 of_requests


def of_session():
    with requests.Session() as session, contextlib.suppress(OSError):
        session.post("http://127.0.0.1:21102/", data="x")  # 21102 of_session


def of_urllib3():
    with contextlib.suppress(urllib3.exceptions.HTTPError):
        urllib3.PoolManager().request("GET", "http://127.0.0.1:21103/", retries=False)  # 21103 of_urllib3


def of_httpx():
    with contextlib.suppress(httpx.HTTPError):
        httpx.get("http://127.0.0.1:21104/")  # 21104 of_httpx


async def of_async_httpx():
    async with httpx.AsyncClient() as client:
        with contextlib.suppress(httpx.HTTPError):
            await client.get("http://127.0.0.1:21105/")


async def of_aiohttp():
    async with aiohttp.ClientSession() as session:
        with contextlib.suppress(OSError):
            await session.get("http://127.0.0.1:21106/")  # 21106 of_aiohttp


def of_redis():
    with contextlib.suppress(redis.ConnectionError):
        redis.Redis(port=21107).ping()  # 21107 of_redis


def of_psycopg():
    with contextlib.suppress(psycopg.OperationalError):
        psycopg.connect("host=127.0.0.1 port=21108 user=x")  # 21108 of_psycopg


def of_gevent():
    def green():
        with contextlib.suppress(OSError):
            gevent.socket.create_connection(("127.0.0.1", 21109))  # 21109 of_gevent.<locals>.green

    gevent.joinall([gevent.spawn(green) for _ in range(5)])


of_requests()
of_session()
of_urllib3()
of_httpx()
# It connects in a task of its own, and below that is nothing but the loop.
asyncio.run(of_async_httpx())  # 21105 <module>
asyncio.run(of_aiohttp())
of_redis()
of_psycopg()
of_gevent()
with open(sys.argv[1], "w") as file:
    file.write("done")
