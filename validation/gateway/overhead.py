#!/usr/bin/env python3
"""What a gateway adds: its CPU time per request and per streamed token, its memory and its start, beside other gateways in
the same run. Standard library only.

  overhead.py [--boute BOUTE] [--rounds N] [--seconds S] [--peer 'NAME=COMMAND with {port}, {admin} and {engine}']...

An engine that costs nothing, the gateways and the load run on this machine, in interleaved rounds: on a shared machine only
the ratios between gateways of one run mean much. First 64 connections, each of which sends its next small request when it has
its answer; then 100 streams (`--streams`) of 50 tokens, one each 20 ms (`--gap`). CPU time is what /proc says of the gateway's processes.
Exits 1 if boute needs more CPU than the best peer, or misses 60 MiB or a start of 0.3 s (0.5 s are allowed on a busy machine).
"""

import argparse
import asyncio
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import time

TICK = os.sysconf("SC_CLK_TCK")
BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello there " * 8}], "max_tokens": 4})
STREAM = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": "hello"}]})
ANSWER = json.dumps(
    {
        "id": "x", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6},
    }
).encode()
CHUNK = b'data: {"id":"x","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"word "},"finish_reason":null}]}\n\n'
TOKENS = 50


def chunk(data):
    return b"%x\r\n%s\r\n" % (len(data), data)


class Engine(asyncio.Protocol):
    """Answers at once, or streams with `gap` seconds before each token."""

    gap = 0.02

    def connection_made(self, transport):
        self.transport, self.data = transport, b""

    def data_received(self, data):
        self.data += data
        while b"\r\n\r\n" in self.data:
            head, _, rest = self.data.partition(b"\r\n\r\n")
            lower = head.lower()
            length = int(lower.split(b"content-length:")[1].split(b"\r\n")[0]) if b"content-length:" in lower else 0
            if len(rest) < length:
                return
            body, self.data = rest[:length], rest[length:]
            if head.startswith(b"GET"):
                models = b'{"object":"list","data":[{"id":"m","object":"model"}]}' if b"/v1/models" in head else b"{}"
                self.whole(models)
            elif b'"stream":true' in body.replace(b" ", b""):
                asyncio.get_running_loop().create_task(self.stream())
            else:
                self.whole(ANSWER)

    def whole(self, body):
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        self.transport.write(head + body)

    async def stream(self):
        self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(TOKENS):
            await asyncio.sleep(self.gap)
            if self.transport.is_closing():
                return
            self.transport.write(chunk(CHUNK))
        self.transport.write(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


class Client(asyncio.Protocol):
    """One connection of a closed loop."""

    def __init__(self, request, ends, counts):
        self.request, self.ends, self.counts, self.data = request, ends, counts, b""

    def connection_made(self, transport):
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data):
        self.counts["tokens"] += data.count(b'"content":"word')
        self.data = (self.data + data)[-4096:] if self.ends == b"0\r\n\r\n" else self.data + data
        if self.ended():
            self.counts["requests"] += 1
            self.data = b""
            if not self.counts["stop"]:
                self.transport.write(self.request)

    def ended(self):
        if self.ends == b"0\r\n\r\n":
            return self.data.endswith(self.ends)
        head, found, body = self.data.partition(b"\r\n\r\n")
        lower = head.lower()
        if not found:
            return False
        if b"content-length:" in lower:
            return len(body) >= int(lower.split(b"content-length:")[1].split(b"\r\n")[0])
        return body.endswith(b"0\r\n\r\n")


def processes(pid):
    """A process and its children."""
    found, left = [], [pid]
    while left:
        pid = left.pop()
        found.append(pid)
        for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                left += [int(child) for child in task.read_text().split()]
            except OSError:
                pass
    return found


def cpu_s(pid):
    total = 0
    for one in processes(pid):
        fields = pathlib.Path(f"/proc/{one}/stat").read_text().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICK


def rss_mib(pid):
    total = 0
    for one in processes(pid):
        for line in pathlib.Path(f"/proc/{one}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1]) / 1024
    return total


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


async def load(port, pid, connections, body, ends, seconds):
    """CPU µs per request and per token of the gateway, and requests per second."""
    request = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}"
    ).encode()
    counts = {"requests": 0, "tokens": 0, "stop": False}
    loop = asyncio.get_running_loop()
    made = [
        await loop.create_connection(lambda: Client(request, ends, counts), "127.0.0.1", port)
        for _ in range(connections)
    ]
    await asyncio.sleep(1.0)
    before, began = dict(counts), cpu_s(pid)
    await asyncio.sleep(seconds)
    used = cpu_s(pid) - began
    requests, tokens = counts["requests"] - before["requests"], counts["tokens"] - before["tokens"]
    counts["stop"] = True
    for transport, _ in made:
        transport.abort()
    await asyncio.sleep(0.3)
    return used / max(requests, 1) * 1e6, used / max(tokens, 1) * 1e6, requests / seconds


async def ready(port):
    """Waits for the first answer."""
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {len(BODY)}\r\n\r\n{BODY}".encode())
            line = await asyncio.wait_for(reader.readline(), 2)
            writer.close()
            if b" 200 " in line:
                return
        except (OSError, asyncio.TimeoutError):
            pass
        await asyncio.sleep(0.02)


async def measure(command, engine, seconds, streams):
    port = free_port()
    ports = {"port": port, "admin": free_port(), "engine": f"http://127.0.0.1:{engine}"}
    words = [word.format(**ports) for word in command.split()]
    started = time.monotonic()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        await asyncio.wait_for(ready(port), 60)
        start_s = time.monotonic() - started
        request_us, _, rate = await load(port, process.pid, 64, BODY, b"", seconds)
        _, token_us, _ = await load(port, process.pid, streams, STREAM, b"0\r\n\r\n", seconds)
        return {"request_us": request_us, "rate": rate, "token_us": token_us, "rss_mib": rss_mib(process.pid), "start_s": start_s}
    finally:
        process.terminate()
        while process.poll() is None:
            await asyncio.sleep(0.05)


async def main():
    parser = argparse.ArgumentParser()
    here = pathlib.Path(__file__).resolve().parent
    parser.add_argument("--boute", default=str(here / "../../target/release/boute"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--gap", type=float, default=Engine.gap)
    parser.add_argument("--peer", action="append", default=[])
    arguments = parser.parse_args()
    Engine.gap = arguments.gap
    gateways = {"boute": f"{arguments.boute} serve --replica m={{engine}} --listen 127.0.0.1:{{port}} --admin 127.0.0.1:{{admin}}"}
    gateways.update(peer.split("=", 1) for peer in arguments.peer)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Engine, "127.0.0.1", 0, backlog=4096)
    engine = server.sockets[0].getsockname()[1]
    found = {name: [] for name in gateways}
    for _ in range(arguments.rounds):
        for name, command in gateways.items():
            found[name].append(await measure(command, engine, arguments.seconds, arguments.streams))
    median = {
        name: {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
        for name, rounds in found.items()
    }
    print("| gateway | CPU µs/request | CPU µs/token | requests/s | RSS MiB | start s |")
    print("|---|---|---|---|---|---|")
    for name, it in median.items():
        print(f"| {name} | {it['request_us']:.0f} | {it['token_us']:.1f} | {it['rate']:.0f} | {it['rss_mib']:.0f} | {it['start_s']:.2f} |")
    ours = median.pop("boute")
    missed = [key for key in ("request_us", "token_us") if any(peer[key] < ours[key] for peer in median.values())]
    missed += ["rss_mib"] if ours["rss_mib"] > 60 else []
    missed += ["start_s"] if ours["start_s"] > 0.5 else []
    if missed:
        sys.exit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    asyncio.run(main())
