"""Every command of the protocol, with each field missing, wrong, oversize or hostile, and out of its turn.

The cases come from the protocol's descriptors: a command without a row here fails `test_every_command_has_a_row`. What a real
Apache Pulsar 4.0.8 answers to each stands in bad_commands.txt, which this file wrote:

    BAD_COMMANDS=record SERVICE_URL=... ADMIN_URL=... pytest test_bad_commands.py

Geminga must answer the same, or close where the bytes themselves are broken; where it does otherwise on purpose, the case is
in DIFFERENT with the reason. An honest client works beside it all the while."""

import os
import pathlib
import re
import struct

import pytest

from descriptors import COMMANDS, MESSAGES, NUMBER_OF
from server import is_outside
from test_bad_input import Bystander
from wire import CLOSED, PING, PONG, SEND, Connection, frame, message, parse, payload, varint

RECORDED = pathlib.Path(__file__).with_name("bad_commands.txt")
RECORDING = os.environ.get("BAD_COMMANDS") == "record"
ASKED = 77          # the request id of every honest command here
ERRORS = dict(enumerate("""UnknownError MetadataError PersistenceError AuthenticationError AuthorizationError ConsumerBusy
    ServiceNotReady ProducerBlockedQuotaExceededError ProducerBlockedQuotaExceededException ChecksumError
    UnsupportedVersionError TopicNotFound SubscriptionNotFound ConsumerNotFound TooManyRequests TopicTerminatedError
    ProducerBusy InvalidTopicName IncompatibleSchema ConsumerAssignError TransactionCoordinatorNotFound InvalidTxnStatus
    NotAllowedError TransactionConflict TransactionNotFound ProducerFenced""".split()))

TXN = {"txnid_most_bits": 0, "txnid_least_bits": 999_999}
LOW_WATERMARK = {"txnid_least_bits_of_low_watermark": 0}
# What an honest client sends; `$topic` is a topic of the case's own. `needs`: producer 1 or consumer 1 is there before.
ROWS = {
    "CONNECT": ({"client_version": "conformance", "protocol_version": 21}, ""),
    "SUBSCRIBE": ({"topic": "$topic", "subscription": "mine", "sub_type": 1, "consumer_id": 9, "request_id": ASKED}, ""),
    "PRODUCER": ({"topic": "$topic", "producer_id": 9, "request_id": ASKED}, ""),
    "SEND": ({"producer_id": 1, "sequence_id": 0}, "producer"),
    "ACK": ({"consumer_id": 1, "ack_type": 0, "message_id": {"ledger_id": 5, "entry_id": 0}, "request_id": ASKED}, "consumer"),
    "FLOW": ({"consumer_id": 1, "message_permits": 10}, "consumer"),
    "UNSUBSCRIBE": ({"consumer_id": 1, "request_id": ASKED}, "consumer"),
    "CLOSE_PRODUCER": ({"producer_id": 1, "request_id": ASKED}, "producer"),
    "CLOSE_CONSUMER": ({"consumer_id": 1, "request_id": ASKED}, "consumer"),
    "PING": ({}, ""),
    "PONG": ({}, ""),
    "REDELIVER_UNACKNOWLEDGED_MESSAGES": ({"consumer_id": 1, "message_ids": {"ledger_id": 5, "entry_id": 0}}, "consumer"),
    "PARTITIONED_METADATA": ({"topic": "$topic", "request_id": ASKED}, ""),
    "LOOKUP": ({"topic": "$topic", "request_id": ASKED}, ""),
    "CONSUMER_STATS": ({"request_id": ASKED, "consumer_id": 1}, "consumer"),
    "SEEK": ({"consumer_id": 1, "request_id": ASKED, "message_id": {"ledger_id": 0, "entry_id": 0}}, "consumer"),
    "GET_LAST_MESSAGE_ID": ({"consumer_id": 1, "request_id": ASKED}, "consumer"),
    "GET_TOPICS_OF_NAMESPACE": ({"request_id": ASKED, "namespace": "public/functions"}, ""),
    "GET_SCHEMA": ({"request_id": ASKED, "topic": "$topic"}, "producer"),
    "GET_OR_CREATE_SCHEMA": ({"request_id": ASKED, "topic": "$topic", "schema": {"name": "s", "schema_data": "", "type": 1}}, "producer"),
    "AUTH_RESPONSE": ({"client_version": "conformance", "response": {"auth_method_name": "none", "auth_data": ""}}, ""),
    "NEW_TXN": ({"request_id": ASKED, "txn_ttl_millis": 60_000, "tc_id": 0}, ""),
    "ADD_PARTITION_TO_TXN": ({"request_id": ASKED, **TXN, "partitions": "$topic"}, ""),
    "ADD_SUBSCRIPTION_TO_TXN": ({"request_id": ASKED, **TXN, "subscription": {"topic": "$topic", "subscription": "mine"}}, ""),
    "END_TXN": ({"request_id": ASKED, **TXN, "txn_action": 0}, ""),
    "END_TXN_ON_PARTITION": ({"request_id": ASKED, **TXN, "topic": "$topic", "txn_action": 0, **LOW_WATERMARK}, "producer"),
    "END_TXN_ON_SUBSCRIPTION": ({"request_id": ASKED, **TXN, "subscription": {"topic": "$topic", "subscription": "mine"}, "txn_action": 0,
                                 **LOW_WATERMARK}, "consumer"),
    "TC_CLIENT_CONNECT_REQUEST": ({"request_id": ASKED, "tc_id": 0}, ""),
    "WATCH_TOPIC_LIST": ({"request_id": ASKED, "watcher_id": 3, "namespace": "public/functions", "topics_pattern": "a.*"}, ""),
    "WATCH_TOPIC_LIST_CLOSE": ({"request_id": ASKED, "watcher_id": 3}, ""),
}
# what a client never says
FROM_SERVERS = {
    "CONNECTED", "SEND_RECEIPT", "SEND_ERROR", "MESSAGE", "SUCCESS", "ERROR", "PRODUCER_SUCCESS", "PARTITIONED_METADATA_RESPONSE",
    "LOOKUP_RESPONSE", "CONSUMER_STATS_RESPONSE", "REACHED_END_OF_TOPIC", "GET_LAST_MESSAGE_ID_RESPONSE", "ACTIVE_CONSUMER_CHANGE",
    "GET_TOPICS_OF_NAMESPACE_RESPONSE", "GET_SCHEMA_RESPONSE", "AUTH_CHALLENGE", "ACK_RESPONSE", "GET_OR_CREATE_SCHEMA_RESPONSE",
    "NEW_TXN_RESPONSE", "ADD_PARTITION_TO_TXN_RESPONSE", "ADD_SUBSCRIPTION_TO_TXN_RESPONSE", "END_TXN_RESPONSE",
    "END_TXN_ON_PARTITION_RESPONSE", "END_TXN_ON_SUBSCRIPTION_RESPONSE", "TC_CLIENT_CONNECT_RESPONSE", "WATCH_TOPIC_LIST_SUCCESS",
    "WATCH_TOPIC_UPDATE", "TOPIC_MIGRATED",
}
# the part of an honest sub-message that must be there
HONEST = {"MessageIdData": {"ledger_id": 5, "entry_id": 0}, "KeyValue": {"key": "k", "value": "v"},
          "KeyLongValue": {"key": "k", "value": 1}, "Schema": {"name": "s", "schema_data": "", "type": 1},
          "KeySharedMeta": {"key_shared_mode": 0}, "IntRange": {"start": 0, "end": 65535},
          "EncryptionKeys": {"key": "k", "value": "v"}, "Subscription": {"topic": "$topic", "subscription": "mine"}}
METADATA = {"producer_name": "p", "sequence_id": 0, "publish_time": 1_700_000_000_000}

# Bytes that no encoder makes: closing is always a right answer.
BROKEN = {"missing", "as-number", "as-text", "overlong", "garbage", "not-utf8", "unknown-value", "negative-value"}
# What Geminga does otherwise on purpose: pattern of cases -> (pattern of its answer, why). An error that says what is wrong,
# where Apache Pulsar gives the connection up, needs no line.
DIFFERENT = {
    r".* two": (".*", "a bool of 2 is true in protobuf, and false in Apache Pulsar's decoder"),
    r".* many": (".*", "Apache Pulsar puts pairs into a map and gives up where a key comes twice"),
    r".* long": (r"\w+:\w+", "names, pairs and definitions have a limit"),
    r"SEND (batch of|num_messages|marker) .*": (r"SEND_ERROR:\w+", "a batch has a million messages at most, and markers are for other clusters"),
    r"(SUBSCRIBE subscription|PRODUCER initial_subscription_name) unicode": (r"(PRODUCER_)?SUCCESS", "Apache Pulsar never answers"),
    r"SUBSCRIBE schema\.(schema_data|type) .*": (r"ERROR:IncompatibleSchema", "a definition that cannot be read is refused to consumers too"),
    r"SEND metadata\..*": (r"SEND_ERROR:\w+", "what no consumer could read is not stored, nor what only other clusters may say"),
    r"SEND message .*": (r"SEND_ERROR:(ChecksumError|MetadataError)", "a message without readable headers is refused"),
    r"GET_SCHEMA schema_version .*": (r"GET_SCHEMA_RESPONSE:IncompatibleSchema", "a version has eight bytes"),
    r"(GET_TOPICS_OF_NAMESPACE|WATCH_TOPIC_LIST) topics_pattern odd": (".*", "RE2J takes no operator twice, as in `0?*`"),
    r"(ADD_\w+|END_TXN) txnid_least_bits (missing|zero|as-text)": (r"\w+_RESPONSE(:\w+)?", "whether transaction 0 is open depends on what ran before"),
    r"END_TXN_ON_\w+ txnid_most_bits .*": (r"\w+:TransactionCoordinatorNotFound", "the coordinator is asked, and is not here"),
    r"END_TXN_ON_\w+ txnid_least_bits_of_low_watermark missing": (r"END_TXN_ON_\w+_RESPONSE", "it is not needed where all is on one broker"),
    r"TC_CLIENT_CONNECT_REQUEST tc_id .*": (r"\w+:TransactionCoordinatorNotFound", "Apache Pulsar says so with the first transaction"),
    # The first seek is done before or after the second command is read: both are answered either way.
    r"SEEK \(twice\)": (r"CLOSE_CONSUMER (ERROR:MetadataError SUCCESS|SUCCESS ERROR:MetadataError)", "as below"),
    r"SEEK (?!\(twice\)).*": (r"CLOSE_CONSUMER SUCCESS", "the success follows the close on both; the recording stopped after the first"),
    r"AUTH_RESPONSE \(before CONNECT\)": ("closed", "who is not connected is not answered"),
}


# -- cases --------------------------------------------------------------------------------------------------------------

def encoded(kind, fields, topic):
    """Protobuf of a message from the names of its fields; a value of bytes-in-a-tuple is put there as it is."""
    out = b""
    for name, value in fields.items():
        if isinstance(value, tuple):
            out += value[0]
            continue
        field = MESSAGES[kind][name]
        for item in value if isinstance(value, list) else [value]:
            if field.kind == "message":
                item = encoded(field.of, item, topic)
            elif isinstance(item, str):
                item = item.replace("$topic", topic)
            out += message({field.number: item})
    return out


def text(number, data):
    return varint(number << 3 | 2) + varint(len(data)) + data


def plain(number, value):
    return varint(number << 3) + varint(value)


def hostile(field):
    """(what is wrong, the bytes of the whole field)"""
    number = field.number
    if field.kind in ("string", "bytes"):
        values = {"empty": b"", "nul": b"a\0b", "long": b"x" * 70_000, "not-utf8": b"\xff\xfe\xc0"}
        if field.kind == "string":
            values |= {"path": b"../../../etc/passwd", "unicode": "\u202eключ/日本".encode(), "odd": b"a//b:%00?*#"}
        cases = {label: text(number, value) for label, value in values.items()}
        cases["as-number"] = plain(number, 5)
    elif field.kind in ("uint64", "int64"):
        cases = {label: plain(number, value) for label, value in {
            "zero": 0, "unknown": 4242, "largest-signed": 2**63 - 1, "smallest-signed": 2**63, "minus-one": 2**64 - 1}.items()}
    elif field.kind in ("int32", "uint32"):
        cases = {label: plain(number, value) for label, value in {
            "zero": 0, "minus-one": 2**64 - 1, "largest-signed": 2**31 - 1, "smallest-signed": 2**64 - 2**31,
            "largest-unsigned": 2**32 - 1}.items()}
    elif field.kind == "bool":
        cases = {"false": plain(number, 0), "true": plain(number, 1), "two": plain(number, 2)}
    elif field.kind == "enum":
        cases = {"unknown-value": plain(number, 99), "negative-value": plain(number, 2**64 - 1)}
        cases |= {f"value-{value}": plain(number, value) for value in range(4)}
    else:
        cases = {"garbage": text(number, b"\xff" * 9)}
    if field.kind not in ("string", "bytes", "message"):
        cases |= {"as-text": text(number, b"x"), "overlong": varint(number << 3) + b"\xff" * 11}
    return cases


def variants(kind, honest, within=()):
    """(name of the field, what is wrong, fields) for every field of a message, and of the messages in it."""
    for name, field in MESSAGES[kind].items():
        path = ".".join((*within, name))
        if name in honest:
            yield path, "missing", {key: value for key, value in honest.items() if key != name}
        for label, data in hostile(field).items():
            yield path, label, {**honest, name: (data,)}
        if field.label == "repeated" and field.kind != "message":
            yield path, "many", {**honest, name: (hostile(field).get("nul", plain(field.number, 7)) * 20_000,)}
        if field.kind == "message" and field.of not in (kind, *within) and len(within) < 2:
            inside = honest.get(name) or HONEST.get(field.of, {})
            if field.label == "repeated":
                yield path, "many", {**honest, name: [inside] * 20_000}
            for inner, label, fields in variants(field.of, inside, (*within, name)):
                yield inner, label, {**honest, name: fields}


def cases(command):
    """(name, needs, list of frames to be made for a topic, whether it comes before CONNECT)"""
    honest, needs = ROWS[command]
    kind = COMMANDS[NUMBER_OF[command]][1]

    def made(fields):
        return lambda topic: raw(command, encoded(kind, fields, topic))
    yield "(honest)", needs, [made(honest)]
    if command != "CONNECT":
        yield "(before CONNECT)", None, [made(honest)]
    yield "(twice)", needs, [made(honest), made(honest)]
    yield "(no body)", needs, [lambda topic: bare(message({1: NUMBER_OF[command]}))]
    if needs:
        closing = "CLOSE_" + needs.upper()
        other = COMMANDS[NUMBER_OF[closing]][1]
        yield f"(after {closing})", needs, [
            lambda topic: raw(closing, encoded(other, {f"{needs}_id": 1, "request_id": 5}, topic)), made(honest)]
    for path, label, fields in variants(kind, honest):
        yield f"{path} {label}", needs, [made(fields)]
    if command == "SEND":
        yield from sends()


def sends():
    """What is wrong with the message and not with the command."""
    def send(tail):
        return [lambda topic: raw("SEND", message({1: 1, 2: 0}), tail)]
    for path, label, fields in variants("MessageMetadata", METADATA):
        metadata = encoded("MessageMetadata", fields, "t")
        yield f"metadata.{path} {label}", "both", send(payload(0, b"content", metadata=metadata))
    whole = payload(0, b"content")
    batch = struct.pack(">I", 2) + message({3: 1}) + b"x"
    for label, tail in {"wrong-checksum": payload(0, b"x", checksum=7), "no-checksum": whole[6:], "no-metadata": whole[:6],
                        "cut-metadata": whole[:14], "metadata-longer-than-frame": struct.pack(">I", 2**31 - 1) + b"x",
                        "metadata-of-minus-one": struct.pack(">i", -1) + b"x", "magic-only": b"\x0e\x01",
                        "broker-entry-magic": b"\x0e\x02" + whole, "nothing": b""}.items():
        yield f"message {label}", "both", send(tail)
    for count in (-1, 0, 1, 3, 2**31 - 1):
        for label, content in {"lies": batch, "is-empty": b"", "is-nested": batch * 2 + batch[:5]}.items():
            metadata = encoded("MessageMetadata", {**METADATA, "num_messages_in_batch": count}, "t")
            yield f"batch of {count} {label}", "both", send(payload(0, content, metadata=metadata))
    for codec in range(1, 5):
        metadata = encoded("MessageMetadata", {**METADATA, "compression": codec, "uncompressed_size": 2**32 - 1, "num_messages_in_batch": 5}, "t")
        yield f"bomb codec-{codec}", "both", send(payload(0, b"\x28\xb5\x2f\xfd" + bytes(60), metadata=metadata))


def bare(base, tail=b""):
    return struct.pack(">II", 4 + len(base) + len(tail), len(base)) + base + tail


def raw(command, body, tail=None):
    number = NUMBER_OF[command]
    if tail is None:
        tail = payload(0, b"content") if number == SEND else b""
    return bare(message({1: number, number: body}), tail)


# -- what a server answers ----------------------------------------------------------------------------------------------

# where an answer carries its error: a field of its own message
def error_of(kind, fields):
    for name in ("error", "error_code"):
        field = MESSAGES[kind].get(name)
        if field and field.number in fields:
            return ERRORS.get(fields[field.number][0], "unnamed error")
    return None


def described(number, fields):
    name, kind = COMMANDS[number]
    error = error_of(kind, fields)
    return f"{name}:{error}" if error else name


# told without being asked
ASIDE = {NUMBER_OF["ACTIVE_CONSUMER_CHANGE"], NUMBER_OF["MESSAGE"], NUMBER_OF["WATCH_TOPIC_UPDATE"]}
ANSWERED_NEVER = {"FLOW", "PING", "PONG", "REDELIVER_UNACKNOWLEDGED_MESSAGES", "AUTH_RESPONSE"}


def outcome(server, command, needs, frames, topic, patient):
    """The answers in order, then `closed` if the connection is."""
    with Connection(server, connect=needs is not None and command != "CONNECT", seconds=10) as connection:
        if needs in ("producer", "both"):
            connection.producer(topic, request=1)
        if needs in ("consumer", "both"):
            connection.subscribe(topic, "mine", kind=1, request=2)
            if needs == "both":
                connection.send(NUMBER_OF["FLOW"], {1: 1, 2: 1000})
        for make in frames:
            connection.raw(make(topic))
        return observe(connection, patient)


def load_coordinators(server):
    """Apache Pulsar's transaction coordinators are there once somebody has looked them up."""
    with Connection(server) as connection:
        for number in range(16):
            topic = f"persistent://pulsar/system/transaction_coordinator_assign-partition-{number}"
            connection.send(NUMBER_OF["LOOKUP"], {1: topic, 2: 1})
            connection.expect(NUMBER_OF["LOOKUP_RESPONSE"])
            connection.send(NUMBER_OF["TC_CLIENT_CONNECT_REQUEST"], {1: 2, 2: number})
            connection.expect(NUMBER_OF["TC_CLIENT_CONNECT_RESPONSE"])


def recorded_outcome(server, command, needs, frames, topic, due):
    """Apache Pulsar serves no bundle before somebody has looked up a topic in it, and splits bundles as it goes."""
    for attempt in range(4):
        with Connection(server) as connection:
            for name in [topic, *(f"{topic}-{attempt}-{number}" for number in range(20 * attempt))]:
                connection.send(NUMBER_OF["LOOKUP"], {1: name, 2: 1})
                connection.next()
        try:
            got = outcome(server, command, needs, frames, topic, due)
        except AssertionError:
            continue
        if "ServiceNotReady" not in got:
            return got
    return got


def observe(connection, patient):
    """Waits for as many answers as are due (for two seconds at most), and for a PONG."""
    if not connection.send(PING, {}):
        patient = 0
    answers, ponged, connection_closed = [], 0, False
    while not connection_closed and (not ponged or len(answers) < patient):
        if ponged:
            connection.socket.settimeout(2)
        try:
            got = connection.next()
        except TimeoutError:
            if not ponged:
                answers.append("no PONG")
            break
        if got == CLOSED:
            connection_closed = True
        elif got[0] == PONG:
            ponged += 1
        elif got[0] not in ASIDE:
            answers.append(described(got[0], got[1]))
    return " ".join(answers + ["closed"] * connection_closed) or "silent"


# -- the table ----------------------------------------------------------------------------------------------------------

def read_recorded():
    """{command: {case: outcome}} from lines `COMMAND field: outcome what,what; outcome what`"""
    found = {}
    if not RECORDED.exists():
        return found
    for line in RECORDED.read_text().splitlines():
        if line.startswith("#") or not line:
            continue
        name, groups = line.split(": ", 1)
        command, field = name.split(" ", 1)
        for group in groups.split("; "):
            answers, labels = group.rsplit(" = ", 1)
            for label in labels.split(","):
                found.setdefault(command, {})[f"{field} {label}" if label != "-" else field] = answers
    return found


def write_recorded(command, outcomes):
    lines = [line for line in (RECORDED.read_text().splitlines() if RECORDED.exists() else []) if not line.startswith((command + " ", "#"))]
    fields = {}
    for case, answers in outcomes.items():
        field, label = (case, "-") if case.startswith("(") else case.rsplit(" ", 1)
        fields.setdefault(field, {}).setdefault(answers, []).append(label)
    for field, groups in fields.items():
        lines.append(f"{command} {field}: " + "; ".join(f"{answers} = {','.join(labels)}" for answers, labels in groups.items()))
    head = ["# What Apache Pulsar 4.0.8 answers to each case of test_bad_commands.py, which wrote this. `silent`: no answer, and the",
            "# connection goes on."]
    order = list(ROWS) + sorted(FROM_SERVERS)
    lines.sort(key=lambda line: order.index(line.split(" ", 1)[0]))
    RECORDED.write_text("\n".join(head + lines) + "\n")


def judged(command, case, got, theirs):
    """None, or what is wrong with an answer."""
    name = f"{command} {case}"
    if got == theirs or (got.endswith("closed") and case.rsplit(" ", 1)[-1] in BROKEN) or (theirs.endswith("closed") and ":" in got):
        return None
    if ":" in theirs and got == theirs + " closed":
        return None         # the same, and heard to the end
    if any(re.fullmatch(pattern, name) and re.fullmatch(ours, got) for pattern, (ours, _) in DIFFERENT.items()):
        return None
    return f"{name}: {got}, Apache Pulsar: {theirs}"


@pytest.fixture(scope="module")
def bystander(server):
    with Bystander(server, f"bad-commands-bystander-{os.getpid()}") as bystander:
        before = server.rss_kib() if hasattr(server, "rss_kib") else None
        yield bystander
        bystander.wait_for_progress()
        if before is not None:
            assert server.rss_kib() - before < 256 << 10, "KiB more than before"


def test_every_command_has_a_row():
    named = {name for name, _ in COMMANDS.values()}
    assert named == set(ROWS) | FROM_SERVERS
    assert not set(ROWS) & FROM_SERVERS
    for command, (honest, _) in ROWS.items():
        assert set(honest) <= set(MESSAGES[COMMANDS[NUMBER_OF[command]][1]]), command


@pytest.mark.pulsar_loose("what it answers first, and whether it closes, is a race")
@pytest.mark.timeout(900 if RECORDING or is_outside() else 120)
@pytest.mark.parametrize("command", [*ROWS, *sorted(FROM_SERVERS)])
def test_bad(server, admin, bystander, command):
    recorded = read_recorded().get(command, {})
    answer = recorded_outcome if is_outside() else outcome
    if is_outside() and ("TXN" in command or "TC_" in command):
        load_coordinators(server)
    outcomes, wrong = {}, []
    if command in ROWS:
        todo = [(case, needs, frames) for case, needs, frames in cases(command)]
    else:
        kind = COMMANDS[NUMBER_OF[command]][1]
        honest = {name: {"string": "x", "bytes": "x", "message": {}}.get(field.kind, 1)
                  for name, field in MESSAGES[kind].items() if field.label == "required" and field.kind != "message"}
        todo = [("(said by a client)", "", [lambda topic: raw(command, encoded(kind, honest, topic))])]
    for number, (case, needs, frames) in enumerate(todo):
        topic = f"persistent://public/default/bad-{command.lower()}-{os.getpid()}-{number}"
        theirs = recorded.get(case)
        if RECORDING:
            due = 0 if command in ANSWERED_NEVER else len(frames)
            outcomes[case] = answer(server, command, needs, frames, topic, due)
            continue
        assert theirs is not None, f"{command} {case} is not in {RECORDED.name}: record it on a real Apache Pulsar"
        due = len([answer for answer in theirs.split() if answer != "silent"])
        got = answer(server, command, needs, frames, topic, due)
        if problem := judged(command, case, got, theirs):
            wrong.append(problem)
    bystander.wait_for_progress()
    if RECORDING:
        write_recorded(command, outcomes)
    assert not wrong, "\n".join(wrong)
