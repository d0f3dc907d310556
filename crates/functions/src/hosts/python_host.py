"""Geminga's host for Python: the standard library and nothing else.

It runs `process(input)` modules and `pulsar.Function` classes as Pulsar's own instance does, over
the socket binding of the host protocol (docs/host-protocol.md). Standard output and standard error
stay the function's own; they become logs. The imports are few because they are the cold start.
"""

import os
import sys
from collections import deque
from struct import pack, unpack, unpack_from
from time import monotonic, sleep

import _thread

PROTOCOL = 1
HEAD = 12
DONE, FAILED, DATA, TEMPORARY, DROP, HOLD = range(6)
FLUSH_BYTES = 1 << 18


class BadData(Exception):
    """Raise it for a message that can never be processed: it goes to the dead-letter topic."""


class Retry(Exception):
    """Raise it when the same message may work later."""


class Drop(Exception):
    """Raise it to acknowledge a message and publish nothing."""


# ---- header blocks -------------------------------------------------------------------------------


def unescape(text):
    if "\\" not in text:
        return text
    out, i = [], 0
    while i < len(text):
        c = text[i]
        if c != "\\":
            out.append(c)
            i += 1
        elif text[i + 1] == "\\":
            out.append("\\")
            i += 2
        elif text[i + 1] == "n":
            out.append("\n")
            i += 2
        else:
            out.append(chr(int(text[i + 1 : i + 4], 8)))
            i += 4
    return "".join(out)


def escape(text, name=False):
    text = text.replace("\\", "\\\\").replace("\n", "\\n").replace("\0", "\\000").replace("\x1f", "\\037")
    return text.replace(":", "\\072") if name else text


def parse_block(block):
    pairs = []
    for line in block.decode("utf-8", "surrogateescape").split("\n"):
        name, colon, value = line.partition(":")
        if colon:
            pairs.append((unescape(name), unescape(value)))
    return pairs


def make_block(pairs):
    return "".join(
        escape(name, True) + ":" + escape(str(value)) + "\n" for name, value in pairs
    ).encode("utf-8", "surrogateescape")


# ---- the wire ------------------------------------------------------------------------------------


class Wire:
    """The socket, what was read ahead, and the outcomes that wait to be sent."""

    def __init__(self, fd):
        self.fd = fd
        self.buffer = bytearray()
        self.stash = deque()
        self.outcomes = deque()
        self.lock = _thread.allocate_lock()
        # Of reading: one thread reads at a time, for all of them.
        self.turn = _thread.allocate_lock()
        self.reading = False
        self.sleepers = []
        self.asks = 0
        self.answers = {}

    def write_all(self, data):
        view = memoryview(data)
        while view:
            view = view[os.write(self.fd, view) :]

    def send(self, kind, body):
        """One frame; outcomes that wait go first, so that the order of events stays true."""
        with self.lock:
            self._flush()
            self.write_all(b"%c %09d\n" % (kind, len(body)) + body)

    def flush(self):
        with self.lock:
            self._flush()

    def _flush(self):
        waiting = self.outcomes
        count = len(waiting)
        if count:
            body = b"".join([waiting.popleft() for _ in range(count)])
            self.write_all(b"O %09d\n" % (len(body) + 4) + pack("<I", count) + body)

    def fill(self, size):
        buffer = self.buffer
        while len(buffer) < size:
            got = os.read(self.fd, 1 << 18)
            if not got:
                raise EOFError
            buffer += got

    def read(self):
        """The next frame: kind and body."""
        self.fill(HEAD)
        kind, size = self.buffer[0], int(self.buffer[2:11])
        self.fill(HEAD + size)
        body = bytes(memoryview(self.buffer)[HEAD : HEAD + size])
        del self.buffer[: HEAD + size]
        return kind, body

    def next(self):
        """The next frame that is not an answer."""
        return self.await_frame(None)

    def await_frame(self, number):
        """The answer to a question, or without a number the next frame of another kind. The function may
        ask from several threads, also while the loop waits for its next batch: whoever comes first reads,
        hands the others what is theirs, and leaves the turn to one of them when it has its own."""
        while True:
            bell = None
            with self.turn:
                if number is None:
                    found = self.stash.popleft() if self.stash else None
                else:
                    found = self.answers[number]
                if found is not None:
                    if number is not None:
                        del self.answers[number]
                    if not self.reading:
                        self.wake()
                    return found
                if self.reading:
                    bell = _thread.allocate_lock()
                    bell.acquire()
                    self.sleepers.append(bell)
                else:
                    self.reading = True
            if bell is not None:
                bell.acquire()
                continue
            frame = None
            try:
                frame = self.read()
            finally:
                with self.turn:
                    self.reading = False
                    if frame is not None:
                        self.sort(*frame)
                    self.wake()

    def wake(self):
        for bell in self.sleepers:
            bell.release()
        self.sleepers.clear()

    def sort(self, kind, body):
        """Puts a frame where whoever waits for it looks."""
        if kind != ord("A"):
            self.stash.append((kind, body))
            return
        (size,) = unpack_from("<I", body)
        block = dict(parse_block(body[4 : 4 + size]))
        number = int(block.get("ask", 0))
        if number in self.answers:
            self.answers[number] = (block.get("found") == "1", body[4 + size :])

    def request(self, pairs, payload=b""):
        block = make_block(pairs)
        self.send(ord("Q"), pack("<I", len(block)) + block + payload)

    def ask(self, pairs):
        """A question, and its answer; batches that arrive meanwhile wait."""
        with self.turn:
            self.asks += 1
            number = self.asks
            self.answers[number] = None
        self.request([("ask", number)] + pairs)
        found, value = self.await_frame(number)
        return value if found else None


# ---- values --------------------------------------------------------------------------------------


class SerDe:
    """Turns values into bytes and back."""

    def serialize(self, input):
        raise NotImplementedError

    def deserialize(self, input_bytes):
        raise NotImplementedError


class IdentitySerDe(SerDe):
    """Pulsar's default: numbers and text become text, bytes stay, and input is guessed."""

    # The first bytes that a number can begin with: digits, sign, dot, bracket, space, inf, nan, j,
    # and everything beyond ASCII (other scripts have digits too).
    NUMBER = frozenset(b"0123456789+-.( \t\n\r\x0b\x0c\x1c\x1d\x1e\x1finINjJ") | frozenset(range(128, 256))

    def deserialize(self, input_bytes):
        try:
            text = input_bytes.decode()
        except UnicodeDecodeError:
            return bytes(input_bytes)
        if input_bytes and input_bytes[0] in self.NUMBER:
            for kind in (int, float, complex):
                try:
                    return kind(text)
                except ValueError:
                    pass
        return text

    def serialize(self, input):
        kind = type(input)
        if kind is str:
            return input.encode()
        if kind is bytes:
            return input
        if kind in (int, float, complex):
            return str(input).encode()
        raise TypeError("IdentitySerDe can not serialize %s: return str, bytes or a number" % kind)


class PickleSerDe(SerDe):
    def deserialize(self, input_bytes):
        import pickle

        return pickle.loads(input_bytes)

    def serialize(self, input):
        import pickle

        return pickle.dumps(input)


class BytesSchema(SerDe):
    def deserialize(self, input_bytes):
        return input_bytes

    def serialize(self, input):
        return bytes(input)


class StringSchema(SerDe):
    def deserialize(self, input_bytes):
        return input_bytes.decode("utf-8")

    def serialize(self, input):
        return str(input).encode("utf-8")


class JsonSchema(SerDe):
    def deserialize(self, input_bytes):
        import json

        return json.loads(input_bytes)

    def serialize(self, input):
        import json

        value = input if isinstance(input, (dict, list, str, int, float, bool, type(None))) else vars(input)
        return json.dumps(value, separators=(",", ":")).encode("utf-8")


class NumberSchema(SerDe):
    """Numbers as Pulsar writes them: most significant byte first."""

    def __init__(self, form):
        self.form = ">" + form

    def deserialize(self, input_bytes):
        (value,) = unpack(self.form, input_bytes)
        return value

    def serialize(self, input):
        return pack(self.form, input)


class PulsarSchema(SerDe):
    """A schema of Pulsar's client, or a class of its shape: `encode` and `decode`."""

    def __init__(self, schema):
        self.schema = schema
        self.serialize = schema.encode
        self.deserialize = schema.decode

    def definition(self):
        """Type, name and definition, for the worker to declare; `None` for bytes."""
        info = getattr(self.schema, "schema_info", None)
        info = info() if info else None
        if info is None:
            return None
        kind = info.schema_type()
        kind = getattr(kind, "name", str(kind).rpartition(".")[2])
        data = info.schema()
        # Of a type without a definition it is the text null.
        return kind.upper(), info.name(), b"" if data == "null" else data.encode()


SCHEMAS = {"bytes": BytesSchema, "none": BytesSchema, "string": StringSchema, "json": JsonSchema}
# What goes by the schema of its topic is bytes here.
SCHEMAS.update({"auto": IdentitySerDe, "auto_consume": IdentitySerDe, "auto_publish": IdentitySerDe})
FORMS = {"bool": "?", "boolean": "?", "int8": "b", "int16": "h", "int32": "i", "int64": "q", "float": "f", "double": "d"}
SERDES = {
    "IdentitySerDe": IdentitySerDe,
    "serde.IdentitySerDe": IdentitySerDe,
    "pulsar.functions.serde.IdentitySerDe": IdentitySerDe,
    "PickleSerDe": PickleSerDe,
    "serde.PickleSerDe": PickleSerDe,
    "pulsar.functions.serde.PickleSerDe": PickleSerDe,
}


def import_name(name):
    module, _, attribute = name.rpartition(".")
    __import__(module)
    return getattr(sys.modules[module], attribute)


def schema_of(schema, record):
    """A schema by its name; `record` names the class of its values, where it has one."""
    plain = schema.lower()
    if plain in ("json", "avro") and record:
        try:
            import pulsar.schema
        except ImportError as error:
            raise ImportError("schema %r needs the package pulsar-client[avro] beside the function: %s" % (schema, error))
        kind = pulsar.schema.JsonSchema if plain == "json" else pulsar.schema.AvroSchema
        return PulsarSchema(kind(import_name(record)))
    if plain in SCHEMAS:
        return SCHEMAS[plain]()
    if plain in FORMS:
        return NumberSchema(FORMS[plain])
    if "." not in schema:
        raise ValueError("schema %r is not supported by the Python host: use string, json or bytes" % schema)
    kind = import_name(schema)
    # As Pulsar's instance makes them: with the class of the values, where they take one.
    takes = getattr(getattr(kind.__init__, "__code__", None), "co_argcount", 1)
    made = kind(import_name(record)) if takes > 1 and record else kind()
    return PulsarSchema(made) if hasattr(made, "encode") else made


def serde_of(name, schema=None, record=None):
    if schema:
        return schema_of(schema, record)
    if not name:
        return IdentitySerDe()
    return SERDES.get(name, None)() if name in SERDES else import_name(name)()


# ---- what the function sees ----------------------------------------------------------------------


class Context:
    """The context of Pulsar's Python functions."""

    def __init__(self, wire, hello):
        self._wire = wire
        self._hello = dict(hello)
        self._inputs = [value for name, value in hello if name == "input"]
        self._secrets = {n[7:]: v for n, v in hello if n.startswith("secret.")}
        self._conf = None
        self._block = b""
        self._headers = None
        # Threads of the function publish too: what they do while a message is in hand becomes part of it.
        self._lock = _thread.allocate_lock()
        self._outputs = []
        self._active = False
        self._serdes = {}
        self._logger = None
        self._pending = {}

    def _header(self, name, default=None):
        if self._headers is None:
            self._headers = dict(parse_block(self._block))
        return self._headers.get(name, default)

    # message
    def get_message_id(self):
        return self._header("id")

    def get_message_key(self):
        key = self._header("key")
        if key is None and self._header("key64") is not None:
            import base64

            return base64.b64decode(self._header("key64"))
        return key

    get_partition_key = get_message_key

    def get_ordering_key(self):
        return self._header("orderingKey")

    def get_message_eventtime(self):
        return int(self._header("eventTime", 0))

    def get_message_publish_time(self):
        return int(self._header("publishTime", 0))

    def get_message_properties(self):
        self._header("")
        return {n[5:]: v for n, v in self._headers.items() if n.startswith("prop.")}

    def get_message_sequence_id(self):
        return int(self._header("sequence", 0))

    def get_message_redelivery_count(self):
        return int(self._header("redelivery", 0))

    def get_message_partition_index(self):
        return int(self._header("partition", -1))

    def get_current_message_topic_name(self):
        return self._header("topic")

    # identity
    def get_function_name(self):
        return self._hello["name"]

    _window = ()

    def get_function_tenant(self):
        return self._hello["tenant"]

    def get_function_namespace(self):
        return self._hello["namespace"]

    def get_function_id(self):
        return self._hello["functionId"]

    def get_function_version(self):
        return self._hello["version"]

    def get_instance_id(self):
        return int(self._hello["instance"])

    def get_num_instances(self):
        return int(self._hello["instances"])

    def get_cluster_name(self):
        return self._hello["cluster"]

    # configuration
    def get_user_config_map(self):
        if self._conf is None:
            import json

            self._conf = json.loads(self._hello.get("userConfig", "{}"))
        return self._conf

    def get_user_config_value(self, key):
        return self.get_user_config_map().get(key)

    def get_secret(self, secret_name):
        return self._secrets.get(secret_name)

    def get_logger(self):
        if self._logger is None:
            import logging

            install_logging(self._wire)
            self._logger = logging.getLogger("function")
        return self._logger

    # windows
    def get_window(self):
        """The messages of the window in hand: each has its value, key, properties and times."""
        return self._window

    def get_window_start(self):
        return int(self._header("windowStart", 0))

    def get_window_end(self):
        return int(self._header("windowEnd", 0))

    # topics
    def get_input_topics(self):
        return list(self._inputs)

    def get_output_topic(self):
        return self._hello.get("output") or None

    def get_output_serde_class_name(self):
        return self._hello.get("outputSerde") or "serde.IdentitySerDe"

    # output
    def publish(
        self,
        topic_name,
        message,
        serde_class_name="serde.IdentitySerDe",
        properties=None,
        compression_type=None,
        callback=None,
        message_conf=None,
    ):
        if compression_type is not None:
            raise ValueError("compression_type is set per function in producerConfig, not per message")
        serde = self._serdes.get(serde_class_name)
        if serde is None:
            serde = self._serdes[serde_class_name] = serde_of(serde_class_name)
        conf = dict(message_conf or {})
        pairs = [("topic", topic_name)]
        for ours, theirs in (
            ("key", "partition_key"),
            ("orderingKey", "ordering_key"),
            ("sequence", "sequence_id"),
            ("eventTime", "event_timestamp"),
        ):
            value = conf.pop(theirs, None)
            if value is not None:
                pairs.append((ours, value))
        everything = dict(properties or {})
        everything.update(conf.pop("properties", None) or {})
        for refused in [n for n in ("replication_clusters", "disable_replication") if conf.pop(n, None)]:
            raise ValueError("%s is not supported" % refused)
        if conf:
            raise ValueError("unknown message_conf: %s" % ", ".join(sorted(conf)))
        pairs += [("prop." + name, value) for name, value in everything.items()]
        payload = serde.serialize(message)
        block = make_block(pairs)
        with self._lock:
            joins = self._active
            if joins:
                self._outputs.append((block, payload))
        if not joins:
            self._send(block, payload)
        if callback is not None:
            callback(None, None)

    def _send(self, block, payload):
        block = make_block([("op", "publish")]) + block
        self._wire.send(ord("Q"), pack("<I", len(block)) + block + payload)

    def _take(self, active=True):
        """What was published until now, all of it."""
        with self._lock:
            taken, self._outputs, self._active = self._outputs, [], active
        return taken

    def ack(self, msgid, topic=None):
        self._wire.request([("op", "ack"), ("id", msgid)])

    # metrics
    def record_metric(self, metric_name, metric_value):
        block = make_block([("name", metric_name), ("value", float(metric_value))])
        self._wire.send(ord("M"), pack("<I", len(block)) + block)

    # state
    def get_state(self, key):
        return self._wire.ask([("op", "state.get"), ("key", key)])

    def put_state(self, key, value):
        data = value.encode() if isinstance(value, str) else bytes(value)
        self._wire.request([("op", "state.put"), ("key", key)], data)

    def del_state(self, key):
        self._wire.request([("op", "state.delete"), ("key", key)])

    del_counter = del_state

    def incr_counter(self, key, amount):
        self._wire.request([("op", "state.increment"), ("key", key), ("by", int(amount))])

    def get_counter(self, key):
        value = self.get_state(key)
        return int.from_bytes(value, "big", signed=True) if value and len(value) == 8 else 0


class Function:
    """The base class of Pulsar's Python functions."""

    def process(self, input, context):
        raise NotImplementedError


_logging_installed = False


def install_logging(wire):
    """Sends what the logging module is told to the function's log."""
    global _logging_installed
    if _logging_installed:
        return
    _logging_installed = True
    import logging

    class Handler(logging.Handler):
        def emit(self, record):
            try:
                block = make_block([("level", record.levelname), ("logger", record.name)])
                text = self.format(record).encode("utf-8", "replace")
                wire.send(ord("L"), pack("<I", len(block)) + block + text)
            except Exception:
                self.handleError(record)

    root = logging.getLogger()
    root.addHandler(Handler())
    if root.level == logging.WARNING:
        root.setLevel(logging.INFO)


class StandIn:
    """Offers `pulsar` and `geminga` modules where no real ones are installed."""

    def __init__(self):
        self.modules = {
            "pulsar": {"Function": Function, "SerDe": SerDe, "Context": Context, "IdentitySerDe": IdentitySerDe, "PickleSerDe": PickleSerDe},
            "pulsar.functions": {"Function": Function, "SerDe": SerDe, "Context": Context},
            "pulsar.functions.function": {"Function": Function},
            "pulsar.functions.context": {"Context": Context},
            "pulsar.functions.serde": {"SerDe": SerDe, "IdentitySerDe": IdentitySerDe, "PickleSerDe": PickleSerDe},
            "geminga": {"BadData": BadData, "Retry": Retry, "Drop": Drop, "Function": Function, "Context": Context},
        }

    def find_spec(self, name, path=None, target=None):
        if name not in self.modules:
            spec = getattr(sys.modules.get("pulsar"), "__spec__", None)
            if name.startswith("pulsar.") and spec and spec.loader is self:
                raise ModuleNotFoundError(
                    "`%s` is a part of Pulsar's client, which is not installed: name `pulsar-client[avro]` in the package's "
                    "requirements (`geminga lock` pins them), or install it for this Python" % name, name=name
                )
            return None
        from importlib.machinery import ModuleSpec

        return ModuleSpec(name, self, is_package=name in ("pulsar", "pulsar.functions"))

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        module.__dict__.update(self.modules[module.__name__])
        module.__doc__ = "A stand-in by Geminga's host; install the real module for the rest of it."


# ---- loading -------------------------------------------------------------------------------------


def load(path, class_name):
    """The callable of the function, and how many arguments it takes."""
    if not os.path.exists(path):
        raise FileNotFoundError("`%s` does not exist" % path)
    # Where a package was made ready: a zip, a wheel, or a folder.
    folders = os.environ.pop("GMG_PYTHON_PATH", "")
    if folders:
        sys.path[0:1] = folders.split(os.pathsep)
        module_name = None
    else:
        sys.path[0] = os.path.dirname(os.path.abspath(path))
        module_name = os.path.basename(path).rsplit(".", 1)[0]
    name = class_name or module_name
    if not name:
        raise ValueError("`className` is needed: `module.Class` or `module`")
    module = None
    if module_name and (not class_name or class_name.split(".")[0] == module_name or "." not in class_name):
        module = load_file(module_name, path)
    if class_name and "." in class_name:
        found = import_name(class_name)
    elif class_name and module is not None and class_name != module_name:
        found = getattr(module, class_name)
    elif module is not None:
        found = module
    else:
        found = __import__(name)
    if isinstance(found, type):
        return found().process, 2
    if not hasattr(found, "process"):
        if callable(found):
            return found, found.__code__.co_argcount
        classes = [
            c for c in vars(found).values()
            if isinstance(c, type) and c.__module__ == found.__name__ and hasattr(c, "process")
        ]
        if len(classes) != 1:
            raise AttributeError("`%s` has neither `process` nor exactly one class with it" % name)
        return classes[0]().process, 2
    return found.process, min(2, getattr(getattr(found.process, "__code__", None), "co_argcount", 1))


def load_file(name, path):
    """Imports a file by its path: its name need not end in `.py`."""
    from importlib.machinery import ModuleSpec, SourceFileLoader

    loader = SourceFileLoader(name, path)
    spec = ModuleSpec(name, loader, origin=path)
    spec.has_location = True
    from importlib._bootstrap import _load

    return _load(spec)


def reason_of(error):
    text = str(error)
    return (type(error).__name__ + ": " + text if text else type(error).__name__)[:4000]


def print_traceback():
    import traceback

    traceback.print_exc()
    sys.stderr.flush()


# ---- serving -------------------------------------------------------------------------------------


def values(hello):
    """How inputs are read, by their names, and how outputs are written."""
    facts = dict(hello)
    serdes = {n[11:]: serde_of(v) for n, v in hello if n.startswith("inputSerde.")}
    record = facts.get("inputType")
    serdes.update({n[12:]: serde_of(None, v, record) for n, v in hello if n.startswith("inputSchema.")})
    return serdes, serde_of(facts.get("outputSerde"), facts.get("outputSchema"), facts.get("outputType"))


def declare(wire, serdes, output):
    """Tells the worker what topics are, where a class has the definition."""
    uses = [("input." + topic, serde) for topic, serde in serdes.items()] + [("output", output)]
    number = 0
    for use, serde in uses:
        definition = serde.definition() if isinstance(serde, PulsarSchema) else None
        if definition:
            kind, name, data = definition
            block = make_block([("id", number), ("type", kind), ("name", name), ("of", use)])
            wire.send(ord("S"), pack("<I", len(block)) + block + data)
            number += 1


def serve(wire, hello, call, arguments, context, serdes, output):
    facts = dict(hello)
    deserialize = IdentitySerDe().deserialize
    serialize = output.serialize
    hold = facts.get("manualAck") == "1"
    done = HOLD if hold else DONE
    with_context = arguments >= 2
    windows = facts.get("windows") == "1"
    outcomes = wire.outcomes
    append = outcomes.append
    busy = _thread.allocate_lock()
    busy.acquire()

    def flusher():
        # Outcomes of a batch wait for each other only this long, so that a slow message does not
        # keep those before it, and a time-out finds the right one.
        while True:
            busy.acquire()
            busy.release()
            sleep(0.005)
            try:
                wire.flush()
            except OSError:
                return

    _thread.start_new_thread(flusher, ())

    while True:
        kind, body = wire.next()
        if kind != 66:  # B
            if kind == 80:  # P
                wire.send(ord("G"), b"")
            elif kind == 68:  # D
                return
            continue
        busy.release()
        first, count = unpack_from("<QI", body)
        sizes = unpack_from("<%dI" % (2 * count), body, 12)
        at = 12 + 8 * count
        waiting = 0
        for index in range(count):
            size = sizes[2 * index]
            block_at = at
            at += size
            size = sizes[2 * index + 1]
            payload = body[at : at + size]
            context._block = body[block_at:at]
            context._headers = None
            context._active = True
            at += size
            try:
                if windows:
                    value = open_window(payload, context, serdes, deserialize)
                elif serdes:
                    serde = serdes.get(input_of(context._header, serdes))
                    value = serde.deserialize(payload) if serde else deserialize(payload)
                else:
                    value = deserialize(payload)
                result = call(value, context) if with_context else call(value)
                data = None if result is None else serialize(result)
                outputs = context._take() if context._outputs else []
                if data is not None:
                    if not outputs:
                        append(pack("<QBIIII", first + index, done, 1, 0, 0, len(data)) + data)
                        waiting += len(data)
                        if waiting > FLUSH_BYTES:
                            wire.flush()
                            waiting = 0
                        continue
                    outputs.insert(0, (b"", data))
                parts = [pack("<QBII", first + index, done, len(outputs), 0)]
                for block, data in outputs:
                    parts += (pack("<II", len(block), len(data)), block, data)
                    waiting += len(data)
                append(b"".join(parts))
            except BaseException as error:
                if isinstance(error, Drop):
                    verdict, reason = DROP, b""
                else:
                    names = [c.__name__ for c in type(error).__mro__ if c.__module__ in ("__main__", "geminga")]
                    verdict = DATA if "BadData" in names else TEMPORARY if "Retry" in names else FAILED
                    reason = reason_of(error).encode("utf-8", "replace")
                    if verdict == FAILED:
                        print_traceback()
                append(pack("<QBII", first + index, verdict, 0, len(reason)) + reason)
                context._take()
            if waiting > FLUSH_BYTES:
                wire.flush()
                waiting = 0
        late = context._take(active=False)
        busy.acquire()
        wire.flush()
        for block, payload in late:
            context._send(block, payload)


class Record:
    """A message of a window."""

    __slots__ = ("value", "headers")

    def __init__(self, value, headers):
        self.value = value
        self.headers = headers

    def get_value(self):
        return self.value

    def get_key(self):
        return self.headers.get("key") or self.headers.get("key64")

    def get_topic_name(self):
        return self.headers.get("topic")

    def get_message_id(self):
        return self.headers.get("id")

    def get_event_time(self):
        return int(self.headers.get("eventTime", 0))

    def get_publish_time(self):
        return int(self.headers.get("publishTime", 0))

    def get_properties(self):
        return {n[5:]: v for n, v in self.headers.items() if n.startswith("prop.")}


def open_window(payload, context, serdes, deserialize):
    """The values of a window's messages; the messages themselves go to the context."""
    (count,) = unpack_from("<I", payload)
    sizes = unpack_from("<%dI" % (2 * count), payload, 4)
    at = 4 + 8 * count
    records = []
    for index in range(count):
        middle = at + sizes[2 * index]
        end = middle + sizes[2 * index + 1]
        headers = dict(parse_block(payload[at:middle]))
        serde = serdes.get(input_of(headers.get, serdes)) if serdes else None
        data = payload[middle:end]
        records.append(Record(serde.deserialize(data) if serde else deserialize(data), headers))
        at = end
    context._window = records
    return [record.value for record in records]


def input_of(header, serdes):
    """The name under which the input was configured: a partition is its parent's; a pattern is said."""
    topic = header("input", "") or header("topic", "")
    if topic in serdes:
        return topic
    parent, partition, number = topic.rpartition("-partition-")
    return parent if partition and number.isdigit() else topic


def main():
    fd = os.dup(int(os.environ.pop("GMG_HOST_FD", "0")))
    os.set_inheritable(fd, False)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    sys.dont_write_bytecode = True
    sys.stdout.reconfigure(line_buffering=True)
    sys.meta_path.append(StandIn())
    wire = Wire(fd)
    _, body = wire.read()
    hello = parse_block(body)
    facts = dict(hello)
    context = Context(wire, hello)
    try:
        if facts.get("protocol") != str(PROTOCOL):
            raise RuntimeError("host protocol %s is not %d" % (facts.get("protocol"), PROTOCOL))
        call, arguments = load(facts["code"], facts.get("className"))
        serdes, output = values(hello)
        declare(wire, serdes, output)
    except BaseException as error:
        print_traceback()
        wire.send(ord("F"), reason_of(error).encode("utf-8", "replace"))
        return 1
    if "logging" in sys.modules:
        install_logging(wire)
    block = make_block([("protocol", PROTOCOL), ("language", "python " + sys.version.split()[0])])
    wire.send(ord("R"), pack("<I", len(block)) + block)
    try:
        serve(wire, hello, call, arguments, context, serdes, output)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
    # Threads of the function must not keep the process.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
