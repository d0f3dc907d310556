"""The binary protocol by hand, as little of it as the tests need: to say what no honest client says."""

import socket
import struct
import time

CLOSED = "closed"

# command -> (type and field number in BaseCommand)
CONNECT, CONNECTED, SUBSCRIBE, PRODUCER, SEND, SEND_RECEIPT, SEND_ERROR, MESSAGE, ACK, FLOW = range(2, 12)
UNSUBSCRIBE, SUCCESS, ERROR, CLOSE_PRODUCER, CLOSE_CONSUMER, PRODUCER_SUCCESS, PING, PONG = range(12, 20)
LOOKUP, LOOKUP_RESPONSE, SEEK, GET_LAST_MESSAGE_ID, ACK_RESPONSE = 23, 24, 28, 29, 38

CHECKSUM_ERROR = 9
MAX_FRAME = 5 * (1 << 20) + 10_240


def varint(number):
    number &= (1 << 64) - 1
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def message(fields):
    """Protobuf from {field number: int | bytes | str | dict | list of these}."""
    out = b""
    for number, value in fields.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, int):
                out += varint(number << 3) + varint(item)
            else:
                data = message(item) if isinstance(item, dict) else item.encode() if isinstance(item, str) else item
                out += varint(number << 3 | 2) + varint(len(data)) + data
    return out


def parse(data):
    """{field number: [values]}; a length-delimited value stays bytes."""
    fields, at = {}, 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
    while at < len(data):
        key = number()
        if key & 7 == 0:
            value = number()
        elif key & 7 == 2:
            size = number()
            value = data[at:at + size]
            at += size
        elif key & 7 == 1:
            value, at = data[at:at + 8], at + 8
        else:
            value, at = data[at:at + 4], at + 4
        fields.setdefault(key >> 3, []).append(value)
    return fields


def _table():
    table = []
    for n in range(256):
        for _ in range(8):
            n = n >> 1 ^ (0x82F63B78 if n & 1 else 0)
        table.append(n)
    return table


_CRC32C = _table()


def crc32c(data):
    value = 0xFFFFFFFF
    for byte in data:
        value = _CRC32C[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFFFFFF


def frame(command, fields, tail=b""):
    base = message({1: command, command: fields})
    return struct.pack(">II", 4 + len(base) + len(tail), len(base)) + base + tail


def payload(sequence, content, producer="p", checksum=None, metadata=None):
    """The part of a SEND behind the command; `checksum` replaces the right one."""
    if metadata is None:
        metadata = message({1: producer, 2: sequence, 3: int(time.time() * 1000)})
    block = struct.pack(">I", len(metadata)) + metadata + content
    return struct.pack(">HI", 0x0E01, crc32c(block) if checksum is None else checksum) + block


class Connection:
    def __init__(self, server, connect=True, seconds=10):
        host, port = server.service_url.split("://")[1].rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=seconds)
        self.buffer = b""
        if connect:
            self.send(CONNECT, {1: "conformance", 4: 21})
            self.connected = self.expect(CONNECTED)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def raw(self, data):
        """False when the peer has closed."""
        try:
            self.socket.sendall(data)
            return True
        except (BrokenPipeError, ConnectionResetError):
            return False

    def send(self, command, fields, tail=b""):
        return self.raw(frame(command, fields, tail))

    def next(self):
        """(command, its fields, what is behind the command), or CLOSED. Pings are answered."""
        while True:
            if len(self.buffer) >= 4:
                total = struct.unpack(">I", self.buffer[:4])[0]
                if len(self.buffer) >= 4 + total:
                    body, self.buffer = self.buffer[4:4 + total], self.buffer[4 + total:]
                    size = struct.unpack(">I", body[:4])[0]
                    base = parse(body[4:4 + size])
                    command = base[1][0]
                    if command == PING:
                        self.send(PONG, {})
                        continue
                    return command, parse(base[command][0]), body[4 + size:]
            try:
                data = self.socket.recv(1 << 16)
            except (ConnectionResetError, BrokenPipeError):
                return CLOSED
            if not data:
                return CLOSED
            self.buffer += data

    def expect(self, command):
        got = self.next()
        assert got != CLOSED, f"closed, where command {command} was expected"
        assert got[0] == command, f"command {got[0]} {got[1]}, where {command} was expected"
        return got[1]

    def expect_closed(self):
        """Replies may come first; the end must be a closed connection, before the time-out of the socket."""
        try:
            while True:
                got = self.next()
                if got == CLOSED:
                    return
                assert got[0] in (ERROR, SEND_ERROR), f"command {got[0]} {got[1]}, where the connection was to be closed"
        except TimeoutError:
            raise AssertionError("the connection was not closed") from None

    # -- the honest commands --

    def producer(self, topic, producer_id=1, request=1, **more):
        self.send(PRODUCER, {1: topic, 2: producer_id, 3: request, **more})
        return self.expect(PRODUCER_SUCCESS)

    def publish(self, content, sequence=0, producer_id=1):
        self.send(SEND, {1: producer_id, 2: sequence}, payload(sequence, content))
        return parse(self.expect(SEND_RECEIPT)[3][0])

    def subscribe(self, topic, subscription, kind=0, consumer_id=1, request=1, **more):
        self.send(SUBSCRIBE, {1: topic, 2: subscription, 3: kind, 4: consumer_id, 5: request, **more})
        while True:
            got = self.next()
            assert got != CLOSED
            if got[0] == SUCCESS:
                return got[1]
            assert got[0] == 31, got               # ACTIVE_CONSUMER_CHANGE may come first

    def ping(self):
        """True when the server still answers on this connection."""
        if not self.send(PING, {}):
            return False
        while True:
            got = self.next()
            if got == CLOSED:
                return False
            if got[0] == PONG:
                return True
