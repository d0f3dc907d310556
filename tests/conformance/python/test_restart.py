"""`kill -9` and clean stops: clients find the server again, and what was acknowledged to anyone holds."""

import threading

import pulsar
import pytest

from support import Admin, eventually, numbers, order, read, receive, send_numbers
from wire import ACK, ACK_RESPONSE, FLOW, MESSAGE, SEND, SEND_RECEIPT, Connection, parse, payload

pytestmark = pytest.mark.own_server


def test_acknowledged_messages_are_there_after_kill(own_server, new_client, topic):
    client = new_client(own_server.service_url)
    single = client.create_producer(topic)
    batched = client.create_producer(topic, batching_enabled=True, batching_max_publish_delay_ms=1)
    ids = [single.send(b"%d" % n) for n in range(50)]
    send_numbers(batched, 500, start=50)
    own_server.restart()
    reader = new_client(own_server.service_url).create_reader(topic, pulsar.MessageId.earliest)
    messages = read(reader, 550)
    assert numbers(messages) == list(range(550))
    assert [order(m.message_id()) for m in messages[:50]] == [order(i) for i in ids], "ids do not change"


def test_clients_reconnect_by_themselves(own_server, new_client, topic):
    """Producer and consumer objects of before go on; nothing is lost, the order is kept, and only what was not
    acknowledged at the moment of the crash can come twice."""
    client = new_client(own_server.service_url)
    consumer = client.subscribe(topic, "s")
    producer = client.create_producer(topic, batching_enabled=True, batching_max_publish_delay_ms=1,
                                      max_pending_messages=500, block_if_queue_full=True)
    total, acknowledged, failed = 3000, [], []
    progress = threading.Event()

    def send_all():
        def done(number):
            def callback(result, _):
                (acknowledged if result == pulsar.Result.Ok else failed).append(number)
                if len(acknowledged) > total // 3:
                    progress.set()
            return callback
        for number in range(total):
            producer.send_async(b"%d" % number, done(number))
    sender = threading.Thread(target=send_all, daemon=True)
    sender.start()
    assert progress.wait(15)
    own_server.restart()
    seen, top = [], -1
    while top < total - 1:
        (message,) = receive(consumer, 1)
        number = int(message.data())
        assert number <= top + 1, f"{number} came, {top + 1} was due"
        top = max(top, number)
        seen.append(number)
    sender.join(20)
    eventually(lambda: len(acknowledged) == total)
    assert not failed
    assert set(seen) == set(range(total))


def test_several_crashes_in_a_row(own_server, new_client, topic):
    client = new_client(own_server.service_url)
    producer, start = client.create_producer(topic), 0
    for _ in range(4):
        send_numbers(producer, 25, start=start)
        start += 25
        own_server.restart()
    reader = new_client(own_server.service_url).create_reader(topic, pulsar.MessageId.earliest)
    assert numbers(read(reader, start)) == list(range(start))


def test_positions_survive_a_clean_stop(own_server, new_client, topic):
    client = new_client(own_server.service_url)
    consumer = client.subscribe(topic, "s", pulsar.ConsumerType.Shared)
    send_numbers(client.create_producer(topic), 100)
    for message in receive(consumer, 100, ack=False):
        if int(message.data()) % 4:
            consumer.acknowledge(message)
    consumer.close()
    status, seconds = own_server.stop()
    assert status == 0
    assert seconds < 2, "SIGTERM to exit"
    own_server.start()
    again = new_client(own_server.service_url).subscribe(topic, "s", pulsar.ConsumerType.Shared)
    assert sorted(numbers(receive(again, 25))) == list(range(0, 100, 4))


def test_an_acknowledgement_with_a_receipt_survives_kill(own_server, new_client, topic):
    full = f"persistent://public/default/{topic}"
    with Connection(own_server) as connection:
        connection.subscribe(full, "s", kind=1, consumer_id=1)
        connection.producer(full, producer_id=1, request=2)
        for sequence in range(10):
            connection.send(SEND, {1: 1, 2: sequence}, payload(sequence, b"%d" % sequence))
        for _ in range(10):
            connection.expect(SEND_RECEIPT)
        connection.send(FLOW, {1: 1, 2: 10})
        ids = []
        while len(ids) < 10:
            command, fields, _ = connection.next()
            assert command == MESSAGE
            identity = parse(fields[2][0])
            ids.append((identity[1][0], identity[2][0]))
        done = [ids[n] for n in (0, 1, 2, 5, 7)]
        connection.send(ACK, {1: 1, 2: 0, 3: [{1: ledger, 2: entry} for ledger, entry in done], 8: 5})
        assert 4 not in connection.expect(ACK_RESPONSE)
        own_server.kill()
    own_server.start()
    again = new_client(own_server.service_url).subscribe(topic, "s", pulsar.ConsumerType.Shared)
    assert sorted(numbers(receive(again, 5))) == [3, 4, 6, 8, 9]


def test_what_rest_confirmed_survives_kill(own_server, new_client, topic):
    admin = Admin(own_server.admin_url)
    admin.create_partitioned(topic, 3)
    admin.put("/admin/v2/tenants/acme", {"adminRoles": [], "allowedClusters": ["standalone"]})
    admin.put("/admin/v2/namespaces/acme/shop")
    admin.put(admin.topic(f"{topic}-plain"))
    admin.put(admin.topic(f"{topic}-plain", "/subscription/s"), {"ledgerId": -1, "entryId": -1, "partitionIndex": -1})
    own_server.restart()
    admin = Admin(own_server.admin_url)
    assert admin.get(admin.topic(topic, "/partitions"))["partitions"] == 3
    assert "acme/shop" in admin.get("/admin/v2/namespaces/acme")
    assert admin.subscriptions(f"{topic}-plain") == ["s"]
    client = new_client(own_server.service_url)
    consumer = client.subscribe(topic, "s")
    send_numbers(client.create_producer(topic), 9)
    assert sorted(numbers(receive(consumer, 9))) == list(range(9))


def test_schemas_survive_kill(own_server, new_client, topic):
    from pulsar.schema import JsonSchema, Record, String, StringSchema

    class Point(Record):
        x = String()
    new_client(own_server.service_url).create_producer(topic, schema=StringSchema()).send("x")
    own_server.restart()
    with pytest.raises(pulsar.IncompatibleSchema):
        new_client(own_server.service_url).create_producer(topic, schema=JsonSchema(Point))


def test_unsubscribed_stays_unsubscribed_after_kill(own_server, new_client, topic):
    client = new_client(own_server.service_url)
    consumer = client.subscribe(topic, "s")
    client.subscribe(topic, "kept")
    consumer.unsubscribe()
    own_server.restart()
    eventually(lambda: Admin(own_server.admin_url).subscriptions(topic) == ["kept"])


def test_seek_survives_kill(own_server, new_client, topic):
    client = new_client(own_server.service_url)
    consumer = client.subscribe(topic, "s", start_message_id_inclusive=True)
    ids = send_numbers(client.create_producer(topic), 20)
    receive(consumer, 20)
    consumer.seek(ids[8])
    own_server.restart()
    again = new_client(own_server.service_url)
    client.close()
    assert numbers(receive(again.subscribe(topic, "s"), 12)) == list(range(8, 20))


def test_a_deleted_topic_stays_deleted_after_kill(own_server, new_client, topic):
    client, admin = new_client(own_server.service_url), Admin(own_server.admin_url)
    producer = client.create_producer(topic)
    send_numbers(producer, 10)
    producer.close()
    admin.delete(admin.topic(topic))
    own_server.restart()
    assert Admin(own_server.admin_url).status("GET", admin.topic(topic, "/stats")) == 404
    reader = new_client(own_server.service_url).create_reader(topic, pulsar.MessageId.earliest)
    assert not reader.has_message_available(), "a new topic of the same name is empty"


def test_batch_index_acks_survive_a_clean_stop(own_server, new_client, topic):
    client = new_client(own_server.service_url)
    consumer = client.subscribe(topic, "s", pulsar.ConsumerType.Shared, batch_index_ack_enabled=True)
    producer = client.create_producer(topic, batching_enabled=True, batching_max_messages=10, batching_max_publish_delay_ms=10_000)
    send_numbers(producer, 10)
    for message in receive(consumer, 10, ack=False):
        if int(message.data()) % 2:
            consumer.acknowledge(message)
    consumer.close()
    own_server.stop()
    own_server.start()
    again = new_client(own_server.service_url).subscribe(topic, "s", pulsar.ConsumerType.Shared, batch_index_ack_enabled=True)
    assert sorted(numbers(receive(again, 5))) == [0, 2, 4, 6, 8]
