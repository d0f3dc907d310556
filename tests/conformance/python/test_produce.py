"""Producers: what is sent comes back whole, in order, once."""

import random
import time

import pulsar
import pytest

from support import data, eventually, numbers, order, read, receive, send_numbers

COMPRESSIONS = ["NONE", "LZ4", "ZLib", "ZSTD", "SNAPPY"]


def earliest(client, topic, **options):
    return client.create_reader(topic, pulsar.MessageId.earliest, **options)


def test_blocking_sends_return_rising_ids(client, topic):
    producer = client.create_producer(topic)
    ids = [producer.send(b"%d" % n) for n in range(20)]
    assert [order(i) for i in ids] == sorted({order(i) for i in ids})
    assert producer.last_sequence_id() == 19
    messages = read(earliest(client, topic), 20)
    assert numbers(messages) == list(range(20))
    assert [order(m.message_id()) for m in messages] == [order(i) for i in ids]


def test_asynchronous_sends_are_acknowledged_in_order(client, topic):
    producer = client.create_producer(topic, max_pending_messages=2000, block_if_queue_full=True)
    ids = send_numbers(producer, 2000)
    assert [order(i) for i in ids] == sorted({order(i) for i in ids})
    assert numbers(read(earliest(client, topic), 2000)) == list(range(2000))


def test_metadata_comes_back(client, topic):
    producer = client.create_producer(topic, producer_name=f"{topic}-p")
    before = time.time() * 1000
    producer.send("schön".encode(), properties={"a": "1", "ü": "ö", "empty": ""}, partition_key="key-1",
                  ordering_key="order-1", event_timestamp=1_700_000_000_123, sequence_id=41)
    (message,) = read(earliest(client, topic), 1)
    assert message.data().decode() == "schön"
    assert message.properties() == {"a": "1", "ü": "ö", "empty": ""}
    assert message.partition_key() == "key-1"
    assert message.ordering_key() == "order-1"
    assert message.event_timestamp() == 1_700_000_000_123
    assert before - 1 <= message.publish_timestamp() <= time.time() * 1000 + 1
    assert message.producer_name() == f"{topic}-p"
    assert message.topic_name() == f"persistent://public/default/{topic}"
    assert message.redelivery_count() == 0
    assert producer.last_sequence_id() == 41


def test_batch_is_one_entry(client, topic):
    producer = client.create_producer(topic, batching_enabled=True, batching_max_messages=10,
                                      batching_max_publish_delay_ms=10_000)
    ids = send_numbers(producer, 30)
    assert len({(i.ledger_id(), i.entry_id()) for i in ids}) == 3
    assert [i.batch_index() for i in ids] == list(range(10)) * 3
    messages = read(earliest(client, topic), 30)
    assert numbers(messages) == list(range(30))
    assert [order(m.message_id()) for m in messages] == [order(i) for i in ids]


def test_key_based_batches_hold_one_key_each(client, topic):
    producer = client.create_producer(topic, batching_enabled=True, batching_type=pulsar.BatchingType.KeyBased,
                                      batching_max_publish_delay_ms=10_000)
    for n in range(30):
        producer.send_async(b"%d" % n, None, partition_key=f"k{n % 3}")
    producer.flush()
    entries = {}
    for message in read(earliest(client, topic), 30):
        identity = message.message_id()
        entries.setdefault((identity.ledger_id(), identity.entry_id()), set()).add(message.partition_key())
    assert sorted(map(len, entries.values())) == [1, 1, 1]


@pytest.mark.parametrize("batched", [False, True], ids=["single", "batched"])
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_compression(client, topic, compression, batched):
    producer = client.create_producer(topic, compression_type=getattr(pulsar.CompressionType, compression),
                                      batching_enabled=batched)
    payloads = [b"ab" * 5000, b"y", bytes(range(256)) * 40, b"x"]
    for payload in payloads:
        producer.send_async(payload, None, partition_key="k", properties={"n": "v"})
    producer.flush()
    messages = read(earliest(client, topic), len(payloads))
    assert data(messages) == payloads
    assert {m.partition_key() for m in messages} == {"k"}


def test_empty_payload(client, topic):
    producer = client.create_producer(topic)
    producer.send(b"", partition_key="k")
    producer.send(b"", properties={"n": "v"})
    messages = read(earliest(client, topic), 2)
    assert data(messages) == [b"", b""]
    assert messages[0].partition_key() == "k" and messages[1].properties() == {"n": "v"}


def test_big_messages_up_to_the_limit(client, topic, seed):
    producer = client.create_producer(topic)
    source = random.Random(seed)
    payloads = [source.randbytes(size) for size in (1, 64 << 10, 1 << 20, 5 * (1 << 20) - 2048)]
    for payload in payloads:
        producer.send(payload)
    assert data(read(earliest(client, topic), len(payloads))) == payloads


def test_the_limit_is_announced_and_the_client_refuses_more(client, topic):
    producer = client.create_producer(topic)
    with pytest.raises(pulsar.MessageTooBig):
        producer.send(bytes(5 * (1 << 20) + 1))
    producer.send(b"after")
    assert data(read(earliest(client, topic), 1)) == [b"after"]


def test_chunked_message_is_put_together(client, admin, topic, seed):
    consumer = client.subscribe(topic, "s")
    producer = client.create_producer(topic, chunking_enabled=True)
    source = random.Random(seed)
    payloads = [source.randbytes(12 << 20), b"small", source.randbytes(6 << 20)]
    for payload in payloads:
        producer.send(payload)
    assert data(receive(consumer, 3)) == payloads
    eventually(lambda: admin.backlog(topic, "s") == 0, what="every chunk is acknowledged")


def test_several_producers_on_one_topic_keep_their_own_order(client, topic):
    producers = [client.create_producer(topic) for _ in range(4)]
    for n in range(100):
        for index, producer in enumerate(producers):
            producer.send_async(b"%d" % n, None, partition_key=str(index))
    for producer in producers:
        producer.flush()
    seen = {}
    for message in read(earliest(client, topic), 400):
        seen.setdefault(message.partition_key(), []).append(int(message.data()))
    assert seen == {str(index): list(range(100)) for index in range(4)}


def test_generated_producer_names_differ(client, topic):
    names = {client.create_producer(topic).producer_name() for _ in range(5)}
    assert len(names) == 5 and "" not in names


def test_a_producer_name_in_use_is_refused(client, new_client, server, topic):
    first = client.create_producer(topic, producer_name="same")
    with pytest.raises(pulsar.ProducerBusy):
        client.create_producer(topic, producer_name="same")
    with pytest.raises(pulsar.ProducerBusy):
        new_client(server.service_url).create_producer(topic, producer_name="same")
    first.send(b"the first one is undisturbed")
    first.close()
    client.create_producer(topic, producer_name="same").send(b"free again")
    assert len(read(earliest(client, topic), 2)) == 2


def test_exclusive_access(client, topic):
    owner = client.create_producer(topic, access_mode=pulsar.ProducerAccessMode.Exclusive)
    with pytest.raises(pulsar.ProducerFenced):
        client.create_producer(topic, access_mode=pulsar.ProducerAccessMode.Exclusive)
    with pytest.raises(pulsar.ProducerBusy):
        client.create_producer(topic)
    owner.send(b"1")
    owner.close()
    client.create_producer(topic).send(b"2")


def test_exclusive_with_fencing_takes_over(client, new_client, server, topic):
    old = new_client(server.service_url).create_producer(topic, access_mode=pulsar.ProducerAccessMode.Exclusive)
    old.send(b"old")
    new = client.create_producer(topic, access_mode=pulsar.ProducerAccessMode.ExclusiveWithFencing)
    new.send(b"new")
    with pytest.raises(pulsar.PulsarException):
        old.send(b"too late")
    new.send(b"newer")
    assert data(read(earliest(client, topic), 3)) == [b"old", b"new", b"newer"]


def test_waiting_for_exclusive_access(server, new_client, topic):
    import threading
    client = new_client(server.service_url)
    owner = client.create_producer(topic, access_mode=pulsar.ProducerAccessMode.Exclusive)
    waiting = []
    waiter = threading.Thread(target=lambda: waiting.append(new_client(server.service_url).create_producer(
        topic, access_mode=pulsar.ProducerAccessMode.WaitForExclusive)), daemon=True)
    waiter.start()

    def somebody_waits():
        # once a producer waits in line, an exclusive one is refused even when it would be the second in line
        with pytest.raises(pulsar.ProducerFenced):
            client.create_producer(topic, access_mode=pulsar.ProducerAccessMode.Exclusive)
        return True
    eventually(somebody_waits)
    owner.send(b"owner")
    assert not waiting
    owner.close()
    waiter.join(15)
    waiting[0].send(b"waiter")
    assert data(read(earliest(client, topic), 2)) == [b"owner", b"waiter"]


@pytest.mark.parametrize("kind", [pulsar.ConsumerType.Shared, pulsar.ConsumerType.KeyShared], ids=["Shared", "Key_Shared"])
def test_delayed_message_waits(client, topic, kind):
    from datetime import timedelta
    consumer = client.subscribe(topic, "s", kind)
    producer = client.create_producer(topic)
    began = time.monotonic()
    producer.send(b"later", deliver_after=timedelta(seconds=3), partition_key="k")
    producer.send(b"now", partition_key="k")
    assert data(receive(consumer, 1)) == [b"now"]
    assert data(receive(consumer, 1)) == [b"later"]
    # Pulsar rounds by a tick of one second
    assert 1.9 <= time.monotonic() - began < 8


def test_closed_producer_refuses(client, topic):
    producer = client.create_producer(topic)
    producer.close()
    with pytest.raises(pulsar.PulsarException):
        producer.send(b"x")


@pytest.mark.parametrize("name", ["bad://public/default/t", "persistent://public/default", "persistent://public"])
def test_bad_topic_names_are_refused(client, name):
    with pytest.raises(pulsar.PulsarException):
        client.create_producer(name)


def test_unknown_namespace_is_refused(server, new_client):
    client = new_client(server.service_url, operation_timeout_seconds=3)
    with pytest.raises(pulsar.PulsarException):
        client.create_producer("persistent://public/no-such-namespace/t")
    with pytest.raises(pulsar.PulsarException):
        client.create_producer("persistent://no-such-tenant/default/t")


def test_odd_but_legal_topic_names(client, seed):
    for name in (f"a b/{seed}".replace("/", "%2F"), f"ümlaut-{seed}", f"dots.and:colons={seed}", f"日本-{seed}"):
        producer = client.create_producer(f"persistent://public/default/{name}")
        producer.send(name.encode())
        assert data(read(earliest(client, producer.topic()), 1)) == [name.encode()]
