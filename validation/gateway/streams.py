#!/usr/bin/env python3
"""How many streams a gateway holds at once, and in how much memory. Standard library only.

  streams.py [--boute BOUTE] [--streams N] [--gap S] [--unread N]

Engine, clients and gateway are processes of their own, since each has a limit of descriptors (`ulimit -Hn`), of which the
gateway needs two per stream and the others one. First N streams at once, a token each S seconds and ten in all: every one must
come whole. Then clients that do not read what an engine gives as fast as it is taken: the gateway's memory must stay as it is.
Exits 1 if a stream is not whole, one takes more than 64 KiB, or one that is not read more than 256 KiB or memory that grows.
"""

import argparse
import asyncio
import multiprocessing
import pathlib
import resource
import subprocess
import sys
import time

from overhead import CHUNK, chunk, cpu_s, free_port, ready, rss_mib

TOKENS = 10
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
BODY = '{"model":"m","stream":true,"messages":[{"role":"user","content":"%s"}]}'
MOST_KIB, MOST_UNREAD_KIB = 64, 256


def raise_limit():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Engine(asyncio.Protocol):
    """Streams a token each `gap` seconds, or without end to who says `flood`; answers all else at once."""

    gap = 1.0

    def connection_made(self, transport):
        self.transport, self.data, self.flooding = transport, b"", None

    def data_received(self, data):
        self.data += data
        head, found, body = self.data.partition(b"\r\n\r\n")
        lower = head.lower()
        length = int(lower.split(b"content-length:")[1].split(b"\r\n")[0]) if b"content-length:" in lower else 0
        if not found or len(body) < length:
            return
        self.data = b""
        if b"flood" in body:
            self.transport.write(HEAD)
            self.flooding = asyncio.get_running_loop().create_task(self.flood())
        elif b'"stream":true' in body:
            self.transport.write(HEAD)
            self.token(TOKENS)
        else:
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

    def token(self, left):
        if self.transport.is_closing():
            return
        if left:
            self.transport.write(chunk(CHUNK))
            asyncio.get_running_loop().call_later(self.gap, self.token, left - 1)
        else:
            self.transport.write(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    async def flood(self):
        while not self.transport.is_closing():
            if self.transport.get_write_buffer_size() == 0:
                self.transport.write(chunk(CHUNK) * 100)
            await asyncio.sleep(0.001 if self.transport.get_write_buffer_size() == 0 else 0.1)


def engine(port, gap):
    async def run():
        Engine.gap = gap
        server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", port, backlog=4096)
        await server.serve_forever()

    raise_limit()
    asyncio.run(run())


class Client(asyncio.Protocol):
    """Sends a request, and reads the answer or does not."""

    def __init__(self, request, reads, counts):
        self.request, self.reads, self.counts, self.begun, self.end = request, reads, counts, False, b""

    def connection_made(self, transport):
        transport.write(self.request)
        if not self.reads:
            transport.pause_reading()

    def data_received(self, data):
        if not self.begun and b'"content":"word' in data:
            self.begun = True
            self.counts["begun"] += 1
        self.end = (self.end + data)[-64:]
        if self.end.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n") or self.end.endswith(b"0\r\n\r\n"):
            self.counts["whole"] += 1


def clients(port, streams, says, reads, tell):
    """Opens `streams` streams, and tells how many have begun and are whole, four times a second, until it is killed."""

    async def run():
        body = BODY % says
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        counts = {"made": 0, "begun": 0, "whole": 0}
        loop = asyncio.get_running_loop()
        made = []
        for _ in range(streams):
            made.append(await loop.create_connection(lambda: Client((head + body).encode(), reads, counts), "127.0.0.1", port))
            counts["made"] += 1
        while True:
            tell.send(dict(counts))
            await asyncio.sleep(0.25)

    raise_limit()
    asyncio.run(run())


def opened(port, streams, says, reads):
    """A process of clients, and a function that gives its last counts."""
    hear, tell = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.Process(target=clients, args=(port, streams, says, reads, tell), daemon=True)
    process.start()
    last = {"made": 0, "begun": 0, "whole": 0}

    def counts():
        while hear.poll():
            last.update(hear.recv())
        return last

    return process, counts


def until(holds, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.25)
    return False


class Gateway:
    """A gateway before an engine, each anew."""

    def __init__(self, boute, gap, streams):
        self.port, admin, behind = free_port(), free_port(), free_port()
        self.engine = multiprocessing.Process(target=engine, args=(behind, gap), daemon=True)
        self.engine.start()
        command = [boute, "serve", "--replica", f"m=http://127.0.0.1:{behind}", "--listen", f"127.0.0.1:{self.port}"]
        command += ["--admin", f"127.0.0.1:{admin}", "--max-in-flight", str(streams + 100)]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def __enter__(self):
        asyncio.run(asyncio.wait_for(ready(self.port), 60))
        self.idle = self.rss()
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.engine.kill()

    def rss(self):
        return rss_mib(self.process.pid)

    def each_kib(self, rss, streams):
        return (rss - self.idle) * 1024 / max(streams, 1)


def many(gateway, streams, gap):
    """Streams that are read: all whole, and in how much memory."""
    process, counts = opened(gateway.port, streams, "hello", True)
    most, at_once = 0.0, 0

    def whole():
        nonlocal most, at_once
        now = counts()
        most, at_once = max(most, gateway.rss()), max(at_once, now["begun"] - now["whole"])
        return now["whole"] == streams

    until(whole, gap * TOKENS * 4 + 60)
    process.kill()
    each = gateway.each_kib(most, at_once)
    token_us = cpu_s(gateway.process.pid) / (streams * TOKENS) * 1e6
    print(f"{counts()['whole']} of {streams} streams whole, {at_once} at once: {most:.0f} MiB, {each:.0f} KiB each")
    print(f"{token_us:.0f} µs of CPU per token, all else of a stream included")
    return (["streams"] if counts()["whole"] < streams else []) + (["memory of a stream"] if each > MOST_KIB else [])


def unread(gateway, streams):
    """Streams that are not read: the gateway's memory comes to rest."""
    process, counts = opened(gateway.port, streams, "flood", False)
    until(lambda: counts()["made"] == streams, 60)
    seen = [gateway.rss()]

    def rests():
        time.sleep(10)
        seen.append(gateway.rss())
        return seen[-1] < seen[-2] + 1

    rested = until(rests, 120)
    process.kill()
    each = gateway.each_kib(seen[-1], streams)
    print(f"{streams} clients that do not read: {seen[-1]:.0f} MiB after {len(seen) * 10 - 10} s, {each:.0f} KiB each")
    return (["memory that grows"] if not rested else []) + (["memory of who does not read"] if each > MOST_UNREAD_KIB else [])


def main():
    parser = argparse.ArgumentParser()
    here = pathlib.Path(__file__).resolve().parent
    parser.add_argument("--boute", default=str(here / "../../target/release/boute"))
    parser.add_argument("--streams", type=int, default=9980)
    parser.add_argument("--gap", type=float, default=5.0)
    parser.add_argument("--unread", type=int, default=500)
    arguments = parser.parse_args()
    raise_limit()
    with Gateway(arguments.boute, arguments.gap, arguments.streams) as gateway:
        missed = many(gateway, arguments.streams, arguments.gap)
    with Gateway(arguments.boute, arguments.gap, arguments.unread) as gateway:
        missed += unread(gateway, arguments.unread)
    if missed:
        sys.exit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
