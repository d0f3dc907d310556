"""Load by hand: frames built as bytes and answers counted, as fast as Python goes. The protocol itself is in
tests/conformance/python/wire.py; here is what has to be done a million times."""

import pathlib
import selectors
import socket
import struct
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests" / "conformance" / "python"), str(ROOT / "bench")]
import wire  # noqa: E402

_LENGTH = struct.Struct(">I")
_PAD = 5


def full_name(topic):
    return f"persistent://public/default/{topic}"


def padded(number, size=_PAD):
    """A varint of a fixed size, so that it can be replaced within a frame."""
    out = bytearray()
    for at in range(size):
        out.append(number & 0x7F | (0x80 if at < size - 1 else 0))
        number >>= 7
    return bytes(out)


def make_and_close(topic, number):
    """A producer that comes and goes: what makes a topic. Built by hand, since the load must be cheaper than the server."""
    name = topic.encode()
    body = b"\x0a" + wire.varint(len(name)) + name + b"\x10" + wire.varint(number) + b"\x18" + wire.varint(number)
    made = b"\x08\x05\x2a" + wire.varint(len(body)) + body
    body = b"\x08" + wire.varint(number) + b"\x10" + wire.varint(number)
    closed = b"\x08\x0f\x7a" + wire.varint(len(body)) + body
    pack = _LENGTH.pack
    return pack(4 + len(made)) + pack(len(made)) + made + pack(4 + len(closed)) + pack(len(closed)) + closed


class Frames:
    """SEND frames of which only the sequence id (and a second number in the metadata) differs."""

    def __init__(self, producer_id, content, metadata=b"", number=None):
        """`metadata`: more fields, encoded; `number`: (field, size of its varint) that each frame sets anew."""
        head = wire.message({1: "p", 2: 0, 3: int(time.time() * 1000)}) + metadata
        size = len(head) + (len(wire.varint(number[0] << 3)) + number[1] if number else 0)
        command = wire.varint(1 << 3) + wire.varint(producer_id) + wire.varint(2 << 3)
        base = b"\x08\x06\x32" + wire.varint(len(command) + _PAD) + command
        tail = _LENGTH.pack(size) + head + (wire.varint(number[0] << 3) if number else b"")
        whole = len(base) + _PAD + len(tail) + (number[1] if number else 0) + len(content)
        self.before = _LENGTH.pack(4 + whole) + _LENGTH.pack(len(base) + _PAD) + base
        self.middle, self.after, self.size = tail, content, number[1] if number else 0

    def many(self, first, count):
        before, after = self.before, self.middle + self.after
        return b"".join(before + padded(n) + after for n in range(first, first + count))

    def one(self, sequence, number):
        return self.before + padded(sequence) + self.middle + padded(number, self.size) + self.after


class Pipe:
    """A connection whose answers are counted by command, and looked into only where a test asks for it."""

    def __init__(self, system, look=None):
        host, port = system.service_url.split("://")[1].rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.counts, self.rest, self.look = {}, b"", look
        self.send(wire.CONNECT, {1: "scale", 4: 21})
        self.wait(wire.CONNECTED, 1)
        self.socket.setblocking(False)
        self.out = bytearray()

    def send(self, command, fields, tail=b""):
        self.socket.sendall(wire.frame(command, fields, tail))

    def queue(self, data):
        self.out += data

    def pump(self, wait=0.0):
        """Writes what it can and reads what is there."""
        if self.out:
            try:
                sent = self.socket.send(memoryview(self.out)[:1 << 18])
                del self.out[:sent]
            except BlockingIOError:
                pass
        try:
            data = self.socket.recv(1 << 20)
        except BlockingIOError:
            if wait:
                time.sleep(wait)
            return False
        if not data:
            raise ConnectionError("closed by the server")
        self.take(data)
        return True

    def take(self, data):
        data = self.rest + data if self.rest else data
        at, end, counts, look = 0, len(data), self.counts, self.look
        unpack = _LENGTH.unpack_from
        while end - at >= 4:
            total = unpack(data, at)[0]
            if end - at < 4 + total:
                break
            command = data[at + 9]
            counts[command] = counts.get(command, 0) + 1
            if command == wire.PING:
                self.socket.setblocking(True)
                self.send(wire.PONG, {})
                self.socket.setblocking(False)
            elif command in (wire.ERROR, wire.SEND_ERROR):
                raise SystemExit(f"refused: {data[at:at + 4 + total]}")
            elif look:
                look(command, data, at)
            at += 4 + total
        self.rest = data[at:]

    def count(self, command):
        return self.counts.get(command, 0)

    def wait(self, command, count, seconds=120):
        """Until so many of this command have come in all."""
        until = time.monotonic() + seconds
        while self.count(command) < count:
            if self.socket.gettimeout() == 0.0:
                self.pump(0.0005)
            else:
                data = self.socket.recv(1 << 16)
                if not data:
                    raise ConnectionError("closed by the server")
                self.take(data)
            if time.monotonic() > until:
                raise SystemExit(f"command {command}: {self.count(command)} of {count} in {seconds} s")

    def ask(self, command, fields, answer):
        """One request, and its answer's arrival."""
        before = self.count(answer)
        self.queue(wire.frame(command, fields))
        self.wait(answer, before + 1)

    def producer(self, topic, producer_id=1, more=None):
        self.ask(wire.PRODUCER, {1: full_name(topic), 2: producer_id, 3: 1, **(more or {})}, wire.PRODUCER_SUCCESS)

    def subscribe(self, topic, subscription, kind, consumer_id=1, more=None):
        self.ask(wire.SUBSCRIBE, {1: full_name(topic), 2: subscription, 3: kind, 4: consumer_id, 5: 1, **(more or {})}, wire.SUCCESS)

    def close(self):
        self.socket.close()


def pump_all(pipes, done, seconds=170):
    """Serves many connections until `done()`."""
    with selectors.DefaultSelector() as selector:
        for pipe in pipes:
            selector.register(pipe.socket, selectors.EVENT_READ, pipe)
        until = time.monotonic() + seconds
        while not done():
            for pipe in pipes:
                if pipe.out:
                    pipe.pump()
            for key, _ in selector.select(0.001):
                key.data.pump()
            if time.monotonic() > until:
                raise SystemExit(f"not done in {seconds} s: {[pipe.counts for pipe in pipes[:3]]}")


def publish(pipe, frames, count, window=50_000, chunk=5_000):
    """Sends `count` messages with a window, and waits for all receipts."""
    base = pipe.count(wire.SEND_RECEIPT)
    sent = 0
    while pipe.count(wire.SEND_RECEIPT) - base < count:
        if sent < count and sent - (pipe.count(wire.SEND_RECEIPT) - base) < window and len(pipe.out) < 1 << 20:
            n = min(chunk, count - sent)
            pipe.queue(frames(sent, n))
            sent += n
        pipe.pump(0.0002)


def varint_at(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def message_id(data, at):
    """(ledger, entry) of a MESSAGE frame that begins at `at`: consumer id, then the id, as the first two fields."""
    at += 8 + 2                                        # the lengths, and the command's number
    at += 1                                            # the tag of CommandMessage
    _, at = varint_at(data, at)
    _, at = varint_at(data, at + 1)
    _, at = varint_at(data, at + 1)
    ledger, at = varint_at(data, at + 1)
    entry, at = varint_at(data, at + 1)
    return ledger, entry
