"""Pulsar's WebSocket API with an ordinary client (`websocket-client`, as Pulsar's documentation has it)."""

import base64
import json
import os
import subprocess
import time

import pulsar
import pytest
import websocket

from server import Server, binary
from support import eventually


def b64(text):
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


class Sockets:
    """Opens WebSockets and closes them when the test ends."""

    def __init__(self, admin_url):
        self.url = admin_url.replace("http", "ws", 1)
        self.made = []

    def __call__(self, path, **options):
        made = websocket.create_connection(self.url + path, timeout=10, **options)
        self.made.append(made)
        return made

    def refused(self, path, **options):
        """The status of a refused handshake and what its body says."""
        with pytest.raises(websocket.WebSocketBadStatusException) as refusal:
            self(path, **options)
        return refusal.value.status_code, str(refusal.value.resp_body)

    def producer(self, topic, query="", **options):
        return self(f"/ws/v2/producer/persistent/public/default/{topic}{query}", **options)

    def consumer(self, topic, name="s", query="", **options):
        return self(f"/ws/v2/consumer/persistent/public/default/{topic}/{name}{query}", **options)

    def reader(self, topic, query="?messageId=earliest"):
        return self(f"/ws/v2/reader/persistent/public/default/{topic}{query}")

    def close(self):
        for made in self.made:
            made.close()


@pytest.fixture
def sockets(server):
    sockets = Sockets(server.admin_url)
    yield sockets
    sockets.close()


def tell(socket, **message):
    socket.send(json.dumps(message))


def ask(socket, **message):
    tell(socket, **message)
    return json.loads(socket.recv())


def receive(socket):
    message = json.loads(socket.recv())
    message["text"] = base64.b64decode(message["payload"]).decode()
    return message


def silent(socket, seconds=0.7):
    """Whether nothing comes for a while."""
    before = socket.gettimeout()
    socket.settimeout(seconds)
    try:
        return not socket.recv()
    except websocket.WebSocketTimeoutException:
        return True
    finally:
        socket.settimeout(before)


def test_a_message_goes_out_with_all_its_parts(sockets, client, topic):
    consumer = client.subscribe(topic, "s")
    sender = sockets.producer(topic, "?producerName=me&sendTimeoutMillis=5000&compressionType=LZ4&hashingScheme=Murmur3_32Hash")
    answer = ask(sender, payload=b64("hello"), properties={"a": "1", "b": "2"}, context="c1", key="k",
                 eventTime="2020-01-02T03:04:05.678Z")
    assert (answer["result"], answer["context"]) == ("ok", "c1")
    assert answer["messageId"] and answer["errorCode"] == 0
    got = consumer.receive(5000)
    assert (got.data(), got.properties(), got.partition_key()) == (b"hello", {"a": "1", "b": "2"}, "k")
    assert (got.event_timestamp(), got.producer_name()) == (1577934245678, "me")
    # The id that the WebSocket shows is the one that clients serialise.
    assert pulsar.MessageId.deserialize(base64.b64decode(answer["messageId"])).entry_id() == got.message_id().entry_id()


def test_receipts_come_in_order_and_a_flood_is_stored_whole(sockets, topic):
    sender = sockets.producer(topic, "?batchingEnabled=true&maxPendingMessages=50")
    reader = sockets.reader(topic)
    for number in range(2000):
        tell(sender, payload=b64(str(number)), context=str(number))
    answers = [json.loads(sender.recv()) for _ in range(2000)]
    assert [answer["context"] for answer in answers] == [str(number) for number in range(2000)]
    assert {answer["result"] for answer in answers} == {"ok"}
    for number in range(2000):
        message = receive(reader)
        assert message["text"] == str(number)
        tell(reader, messageId=message["messageId"])


def test_what_is_wrong_with_a_message_is_said_and_the_next_one_goes(sockets, topic):
    sender = sockets.producer(topic)
    for text, result, part in [
        ("nonsense", "send-error:3", ""),
        ("[]", "send-error:3", ""),
        (json.dumps({"payload": "***"}), "send-error:7", "Invalid Base64 message-payload"),
        (json.dumps({"context": "c"}), "send-error:7", ""),
        (json.dumps({"payload": b64("x"), "eventTime": "yesterday"}), "send-error:7", "yesterday"),
    ]:
        sender.send(text)
        answer = json.loads(sender.recv())
        assert answer["result"] == result and part in answer["errorMsg"], answer
        assert "messageId" not in answer
    assert ask(sender, payload=b64("x"))["result"] == "ok"


@pytest.mark.pulsar_differs("accepts fields that it does not know, and some that it ignores")
def test_fields_that_are_not_honoured_are_refused_by_name(sockets, topic):
    sender = sockets.producer(topic)
    for field, value in [("contxt", "c"), ("schemaVersion", 3), ("encryptionParam", "eA==")]:
        answer = ask(sender, payload=b64("x"), **{field: value})
        assert answer["result"].startswith("send-error:") and field in answer["errorMsg"], answer
    assert sockets.refused(f"/ws/v2/producer/persistent/public/default/{topic}?producername=x")[0] == 400


def test_what_cannot_be_opened_has_its_status(sockets, topic):
    there = f"persistent/public/default/{topic}"
    for path, status, part in [
        (f"producer/{there}?compressionType=FOO", 400, "compressionType"),
        (f"producer/{there}?sendTimeoutMillis=abc", 400, ""),
        ("producer/persistent/nope/nope/x", 404, ""),
        (f"consumer/{there}/s?subscriptionType=Foo", 400, "subscriptionType"),
        (f"consumer/{there}/s?ackTimeoutMillis=10", 400, "Ack timeout"),
        (f"consumer/{there}/s?priorityLevel=-1", 400, ""),
        (f"consumer/{there}/s?maxRedeliverCount=0", 400, "MaxRedeliverCount"),
        (f"consumer/{there}/s?receiverQueueSize=-5", 400, "receiverQueueSize"),
    ]:
        got = sockets.refused("/ws/v2/" + path)
        assert got[0] == status and part in got[1], (path, got)
    sockets.producer(topic, "?producerName=one")
    assert sockets.refused(f"/ws/v2/producer/{there}?producerName=one")[0] == 409
    sockets.consumer(topic)
    assert sockets.refused(f"/ws/v2/consumer/{there}/s")[0] == 409


def test_acks_are_kept_and_what_was_not_acked_comes_again(sockets, client, topic):
    sender = client.create_producer(topic)
    first = sockets.consumer(topic, query="?subscriptionType=Shared&consumerName=ws&priorityLevel=0")
    for number in range(3):
        sender.send(str(number).encode(), properties={"n": str(number)}, partition_key=f"k{number}")
    got = [receive(first) for _ in range(3)]
    assert [message["text"] for message in got] == ["0", "1", "2"]
    assert [message["properties"] for message in got] == [{"n": "0"}, {"n": "1"}, {"n": "2"}]
    assert [message["key"] for message in got] == ["k0", "k1", "k2"]
    assert {message["redeliveryCount"] for message in got} == {0}
    assert all(message["publishTime"].startswith("20") for message in got)
    tell(first, messageId=got[1]["messageId"])
    first.close()

    def again():
        second = sockets.consumer(topic, query="?subscriptionType=Shared")
        texts = sorted(receive(second)["text"] for _ in range(2))
        return texts == ["0", "2"] and silent(second)
    assert again()


def test_only_as_many_as_the_queue_has_come_without_an_ack(sockets, client, topic):
    consumer = sockets.consumer(topic, query="?receiverQueueSize=2")
    sender = client.create_producer(topic)
    for number in range(5):
        sender.send(str(number).encode())
    got = [receive(consumer), receive(consumer)]
    assert silent(consumer)
    tell(consumer, messageId=got[0]["messageId"])
    assert receive(consumer)["text"] == "2"
    assert silent(consumer)


def test_pull_mode_sends_what_was_asked_for(sockets, client, topic):
    consumer = sockets.consumer(topic, query="?pullMode=true")
    sender = client.create_producer(topic)
    for number in range(5):
        sender.send(str(number).encode())
    assert silent(consumer)
    tell(consumer, type="permit", permitMessages=2)
    assert [receive(consumer)["text"], receive(consumer)["text"]] == ["0", "1"]
    assert silent(consumer)
    tell(consumer, type="permit", permitMessages=3)
    assert [receive(consumer)["text"] for _ in range(3)] == ["2", "3", "4"]


def test_negative_acks_and_time_outs_bring_a_message_again(sockets, client, topic):
    sender = client.create_producer(topic)
    consumer = sockets.consumer(topic, query="?subscriptionType=Shared&negativeAckRedeliveryDelay=200&ackTimeoutMillis=1000")
    sender.send(b"x")
    first = receive(consumer)
    tell(consumer, type="negativeAcknowledge", messageId=first["messageId"])
    second = receive(consumer)
    assert (second["text"], second["redeliveryCount"]) == ("x", 1)
    third = receive(consumer)  # nobody acked it for a second
    assert (third["text"], third["redeliveryCount"]) == ("x", 2)
    tell(consumer, messageId=third["messageId"])
    assert silent(consumer, 1.5)


def test_what_comes_too_often_is_a_dead_letter(sockets, client, topic):
    dead = client.subscribe(topic + "-dead", "s")
    sender = client.create_producer(topic)
    consumer = sockets.consumer(topic, query="?subscriptionType=Shared&negativeAckRedeliveryDelay=100&maxRedeliverCount=2"
                                             f"&deadLetterTopic=persistent://public/default/{topic}-dead")
    sender.send(b"poison", properties={"p": "1"}, partition_key="k")
    for _ in range(3):
        message = receive(consumer)
        assert message["text"] == "poison"
        tell(consumer, type="negativeAcknowledge", messageId=message["messageId"])
    letter = dead.receive(10000)
    assert (letter.data(), letter.partition_key(), letter.properties()["p"]) == (b"poison", "k", "1")
    assert letter.properties()["REAL_TOPIC"].endswith(topic)
    assert silent(consumer)


def test_several_topics_and_a_pattern(sockets, client, topic):
    names = [f"persistent://public/default/{topic}-{letter}" for letter in "ab"]
    senders = [client.create_producer(name) for name in names]
    for query in [f"topics={','.join(names)}", f"topicsPattern=persistent://public/default/{topic}-.*"]:
        consumer = sockets(f"/ws/v3/consumer/v3-{len(query)}?{query}")
        for sender in senders:
            sender.send(sender.topic().encode())
        got = [receive(consumer), receive(consumer)]
        assert sorted(message["text"] for message in got) == names
        for message in got:
            tell(consumer, messageId=message["messageId"])
        consumer.close()


def test_readers_begin_where_they_are_told(sockets, client, topic):
    sender = sockets.producer(topic)
    ids = [ask(sender, payload=b64(str(number)))["messageId"] for number in range(3)]
    reader = sockets.reader(topic)
    assert [receive(reader)["text"] for _ in range(3)] == ["0", "1", "2"]
    after = sockets.reader(topic, f"?messageId={ids[0].replace('+', '%2B').replace('=', '%3D')}&readerName=r")
    assert receive(after)["text"] == "1"
    latest = sockets.reader(topic, "")
    assert silent(latest)
    ask(sender, payload=b64("3"))
    assert receive(latest)["text"] == "3"
    assert ask(latest, type="isEndOfTopic") == {"endOfTopic": False}


def test_the_end_of_a_topic_is_told(sockets, admin, client, topic):
    client.create_producer(topic).send(b"last")
    consumer = sockets.consumer(topic, query="?subscriptionInitialPosition=Earliest")
    message = receive(consumer)
    assert ask(consumer, type="isEndOfTopic") == {"endOfTopic": False}
    tell(consumer, messageId=message["messageId"])
    admin.post(f"/admin/v2/persistent/public/default/{topic}/terminate")
    eventually(lambda: ask(consumer, type="isEndOfTopic") == {"endOfTopic": True})


def test_unsubscribe_takes_the_subscription_away(sockets, admin, topic):
    consumer = sockets.consumer(topic)
    path = f"/admin/v2/persistent/public/default/{topic}/subscriptions"
    assert admin.get(path) == ["s"]
    tell(consumer, type="unsubscribe")
    eventually(lambda: admin.get(path) == [])


def test_a_session_without_a_durable_subscription_leaves_none(sockets, admin, topic):
    consumer = sockets.consumer(topic, query="?subscriptionMode=NonDurable")
    path = f"/admin/v2/persistent/public/default/{topic}/subscriptions"
    consumer.close()
    eventually(lambda: admin.get(path) == [])


def test_bad_commands_end_the_session_and_nobody_elses(sockets, client, topic):
    other = sockets.consumer(topic, "other")
    for text in ["nonsense", json.dumps({"type": "permit"}), json.dumps({"messageId": "***"}), json.dumps({"messageId": "AAAA"})]:
        consumer = sockets.consumer(topic, "bad")
        consumer.send(text)
        with pytest.raises(websocket.WebSocketConnectionClosedException):
            while consumer.recv():
                pass
            raise websocket.WebSocketConnectionClosedException("a close frame")
        consumer.close()
    client.create_producer(topic).send(b"x")
    assert receive(other)["text"] == "x"


def test_too_large_a_text_ends_the_session(sockets, topic):
    sender = sockets.producer(topic)
    with pytest.raises((websocket.WebSocketException, OSError)):
        tell(sender, payload="A" * (1 << 20))
        if not sender.recv():
            raise websocket.WebSocketException("a close frame")
    assert ask(sockets.producer(topic), payload=b64("x" * 700_000))["result"] == "ok"


def test_slashes_and_partitions(sockets, client, admin, topic):
    admin.put(f"/admin/v2/persistent/public/default/{topic}/partitions", 3)
    consumer = sockets.consumer(topic)
    sender = sockets.producer(topic, "?messageRoutingMode=RoundRobinPartition")
    for number in range(9):
        assert ask(sender, payload=b64(str(number)), key=str(number))["result"] == "ok"
    got = [receive(consumer) for _ in range(9)]
    assert sorted(message["text"] for message in got) == [str(number) for number in range(9)]
    for message in got:
        tell(consumer, messageId=message["messageId"])
    name = f"a%2Fb-{topic}"
    reader = sockets.reader(name)
    assert ask(sockets.producer(name), payload=b64("slash"))["result"] == "ok"
    assert receive(reader)["text"] == "slash"


@pytest.mark.own_server
def test_tokens_say_who_may(tmp_path):
    def geminga(*arguments):
        return subprocess.run([binary(), *arguments], check=True, capture_output=True, text=True).stdout.strip()
    key = str(tmp_path / "secret.key")
    geminga("tokens", "create-secret-key", "--file", key)
    conf = tmp_path / "broker.conf"
    conf.write_text("authenticationEnabled=true\nauthorizationEnabled=true\nsuperUserRoles=root\n"
                    "authenticationProviders=org.apache.pulsar.broker.authentication.AuthenticationProviderToken\n"
                    f"tokenSecretKey=file://{key}\n")
    server = Server("--config", str(conf)).start()
    sockets = Sockets(server.admin_url)
    try:
        def token(role):
            return geminga("tokens", "create", "--secret-key", key, "--subject", role)
        for role, action in [("maker", "produce"), ("reader", "consume")]:
            subprocess.run(["curl", "-sf", "-X", "POST", "-H", f"Authorization: Bearer {token('root')}", "-H",
                            "Content-Type: application/json", "-d", json.dumps([action]),
                            f"{server.admin_url}/admin/v2/namespaces/public/default/permissions/{role}"], check=True)
        there = "persistent/public/default/guarded"
        maker, reader = token("maker"), token("reader")
        assert sockets.refused(f"/ws/v2/producer/{there}")[0] == 401
        assert sockets.refused(f"/ws/v2/producer/{there}?token=forged")[0] == 401
        assert sockets.refused(f"/ws/v2/producer/{there}?token={reader}")[0] == 403
        assert sockets.refused(f"/ws/v2/consumer/{there}/s?token={maker}")[0] == 403
        assert sockets.refused(f"/ws/v2/reader/{there}?token={maker}")[0] == 403
        assert sockets.refused(f"/ws/v3/consumer/s?topics=persistent://{there[11:]}&token={maker}")[0] == 403
        assert sockets.refused(f"/ws/v3/consumer/s?topicsPattern=persistent://public/default/g.*&token={maker}")[0] == 403
        # A dead letter is produced, which a reader may not.
        assert sockets.refused(f"/ws/v2/consumer/{there}/s?subscriptionType=Shared&maxRedeliverCount=2&token={reader}")[0] == 403
        consumer = sockets.consumer("guarded", query=f"?token={reader}")
        by_header = sockets.producer("guarded", header=[f"Authorization: Bearer {maker}"])
        assert ask(by_header, payload=b64("x"))["result"] == "ok"
        assert receive(consumer)["text"] == "x"
    finally:
        sockets.close()
        server.close()


@pytest.mark.own_server
def test_settings_switch_it_off_and_bound_it(tmp_path):
    conf = tmp_path / "broker.conf"
    conf.write_text("webSocketServiceEnabled=false\n")
    server = Server("--config", str(conf)).start()
    try:
        status, body = Sockets(server.admin_url).refused("/ws/v2/producer/persistent/public/default/x")
        assert status == 404 and "webSocketServiceEnabled" in body
    finally:
        server.close()
    conf.write_text("webSocketSessionIdleTimeoutMillis=700\nwebSocketMaxTextFrameSize=1000\n")
    server = Server("--config", str(conf)).start()
    sockets = Sockets(server.admin_url)
    try:
        idle = sockets.producer("x")
        began = time.monotonic()
        code, reason = idle.recv_data()
        assert code == websocket.ABNF.OPCODE_CLOSE and b"Idle" in reason and time.monotonic() - began > 0.5
        large = sockets.producer("x")
        tell(large, payload="A" * 2000)
        code, reason = large.recv_data()
        assert code == websocket.ABNF.OPCODE_CLOSE and int.from_bytes(reason[:2], "big") == 1009
    finally:
        sockets.close()
        server.close()


@pytest.mark.own_server
def test_a_flood_that_reads_nothing_costs_bounded_memory(own_server):
    sockets = Sockets(own_server.admin_url)
    before = own_server.rss_kib()
    flood = sockets.producer("flood")
    flood.settimeout(3)
    text = json.dumps({"payload": b64("x" * 100_000), "context": "c" * 100_000})
    sent = 0
    try:
        while sent < 1500:
            flood.send(text)
            sent += 1
    except (OSError, websocket.WebSocketTimeoutException):
        pass  # it takes no more until its receipts are read: as it should be
    grown = (own_server.rss_kib() - before) / 1024
    print(f"{sent} messages of 100 kB and as much context, server grew by {grown:.0f} MiB")
    assert grown < 250
    other = sockets.producer("other")
    assert ask(other, payload=b64("x"))["result"] == "ok"
