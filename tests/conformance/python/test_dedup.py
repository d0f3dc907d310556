"""Deduplication: what a producer sends twice is stored once, over kills of the server too."""

import threading
import time

import pulsar
import pytest

from support import eventually, receive

ROUNDS = 5


@pytest.fixture
def deduplicated(admin):
    """A namespace with deduplication on."""
    name = f"public/dedup-{time.monotonic_ns()}"
    admin.put(f"/admin/v2/namespaces/{name}")
    admin.post(f"/admin/v2/namespaces/{name}/deduplication", True)
    return name


def consume(client, topic, name="s"):
    return client.subscribe(topic, name, initial_position=pulsar.InitialPosition.Earliest)


def test_the_same_sequence_id_is_stored_once(client, deduplicated, topic):
    topic = f"persistent://{deduplicated}/{topic}"
    consumer = consume(client, topic)
    producer = client.create_producer(topic, producer_name="p", batching_enabled=False)
    assert producer.last_sequence_id() == -1
    for sequence in (1, 2, 7, 2, 7, 8, 1):
        producer.send(b"%d" % sequence, sequence_id=sequence)
    producer.close()
    assert [message.data() for message in receive(consumer, 4)] == [b"1", b"2", b"7", b"8"]
    producer = client.create_producer(topic, producer_name="p", batching_enabled=False)
    assert producer.last_sequence_id() == 8
    producer.send(b"again", sequence_id=8)
    producer.send(b"9")
    assert receive(consumer, 1)[0].data() == b"9"


def test_names_and_partitions_are_apart(client, deduplicated, topic):
    topic = f"persistent://{deduplicated}/{topic}"
    consumer = consume(client, topic)
    for name in ("a", "b"):
        producer = client.create_producer(topic, producer_name=name, batching_enabled=False)
        for text in (name, "again"):
            producer.send(text.encode(), sequence_id=5)
        producer.close()
    assert sorted(message.data() for message in receive(consumer, 2)) == [b"a", b"b"]


def test_it_is_off_by_default_and_shown(client, admin, topic):
    producer = client.create_producer(topic, producer_name="p", batching_enabled=False)
    consumer = consume(client, topic)
    for _ in range(2):
        producer.send(b"x", sequence_id=3)
    assert len(receive(consumer, 2)) == 2
    assert admin.stats(topic)["deduplicationStatus"] == "Disabled"


@pytest.mark.own_server
@pytest.mark.timeout(120)
@pytest.mark.parametrize("batching", [False, True])
def test_kill9_under_load_stores_each_message_once_and_in_order(own_server, new_client, batching):
    """A client resends what was not acknowledged when the server died; some of it was stored already. The second
    client of each round begins where the broker says that the name ended, as a connector does after a crash."""
    admin_url = own_server.admin_url
    from support import Admin
    Admin(admin_url).post("/admin/v2/namespaces/public/default/deduplication", True)
    client = new_client(own_server.service_url, operation_timeout_seconds=30)
    consumer = consume(client, "numbers")
    producer = client.create_producer("numbers", producer_name="p", send_timeout_millis=0, block_if_queue_full=True,
                                      max_pending_messages=200, batching_enabled=batching,
                                      batching_max_publish_delay_ms=2, batching_max_messages=20)
    acknowledged = []
    stopping = threading.Event()
    sent = 0

    def load():
        nonlocal sent
        while not stopping.is_set():
            producer.send_async(b"%d" % sent, lambda result, _: acknowledged.append(result), sequence_id=sent)
            sent += 1

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    for _ in range(ROUNDS):
        before = len(acknowledged)
        eventually(lambda: len(acknowledged) > before + 100, what="sends are acknowledged")
        own_server.kill()
        own_server.start()
    stopping.set()
    thread.join()
    producer.flush()
    eventually(lambda: len(acknowledged) == sent, what="all is acknowledged")
    assert set(acknowledged) == {pulsar.Result.Ok}
    producer.send(b"end", sequence_id=sent)
    expected = 0
    while True:
        text = receive(consumer, 1)[0].data()
        if text == b"end":
            break
        assert int(text) == expected, "each once, in order"
        expected += 1
    assert expected == sent
