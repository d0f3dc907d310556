"""Exclusive and Failover: one active consumer, strict order, and nothing lost when it changes."""

import pulsar
import pytest

from support import assert_nothing, data, drain, eventually, numbers, receive, send_numbers

EXCLUSIVE, SHARED, FAILOVER, KEY_SHARED = (pulsar.ConsumerType.Exclusive, pulsar.ConsumerType.Shared,
                                           pulsar.ConsumerType.Failover, pulsar.ConsumerType.KeyShared)


def test_second_exclusive_consumer_is_refused(client, new_client, server, topic):
    first = client.subscribe(topic, "s")
    with pytest.raises(pulsar.ConsumerBusy):
        client.subscribe(topic, "s")
    with pytest.raises(pulsar.ConsumerBusy):
        new_client(server.service_url).subscribe(topic, "s")
    send_numbers(client.create_producer(topic), 5)
    assert numbers(receive(first, 5)) == list(range(5))
    first.close()
    client.subscribe(topic, "s").close()


@pytest.mark.parametrize("kind", [SHARED, FAILOVER, KEY_SHARED], ids=["Shared", "Failover", "Key_Shared"])
def test_another_type_is_refused_while_connected_and_wins_afterwards(client, topic, kind):
    first = client.subscribe(topic, "s", EXCLUSIVE)
    with pytest.raises(pulsar.ConsumerBusy):
        client.subscribe(topic, "s", kind)
    send_numbers(client.create_producer(topic), 3)
    assert numbers(receive(first, 1)) == [0]
    first.close()
    second = client.subscribe(topic, "s", kind)
    assert sorted(numbers(receive(second, 2))) == [1, 2]


def test_subscriptions_are_independent(client, topic):
    consumers = [client.subscribe(topic, f"s{n}") for n in range(3)]
    send_numbers(client.create_producer(topic), 50)
    for consumer in consumers:
        assert numbers(receive(consumer, 50)) == list(range(50))


def test_initial_position(client, topic):
    producer = client.create_producer(topic)
    send_numbers(producer, 3)
    late = client.subscribe(topic, "late")
    early = client.subscribe(topic, "early", initial_position=pulsar.InitialPosition.Earliest)
    send_numbers(producer, 1, start=3)
    assert numbers(receive(early, 4)) == [0, 1, 2, 3]
    assert numbers(receive(late, 1)) == [3]


def test_unacknowledged_messages_come_again_in_order(client, topic):
    consumer = client.subscribe(topic, "s")
    send_numbers(client.create_producer(topic), 20)
    messages = receive(consumer, 20, ack=False)
    for message in messages[:8]:
        consumer.acknowledge(message)
    consumer.close()
    again = client.subscribe(topic, "s")
    assert numbers(receive(again, 12)) == list(range(8, 20))


def test_redelivery_on_request_keeps_order(client, topic):
    consumer = client.subscribe(topic, "s")
    send_numbers(client.create_producer(topic), 30)
    messages = receive(consumer, 30, ack=False)
    for message in messages[:10]:
        consumer.acknowledge(message)
    consumer.redeliver_unacknowledged_messages()
    again = receive(consumer, 20)
    assert numbers(again) == list(range(10, 30))
    assert {m.redelivery_count() for m in again} == {0}


def test_small_receiver_queue_gets_everything(client, topic):
    consumer = client.subscribe(topic, "s", receiver_queue_size=1)
    send_numbers(client.create_producer(topic), 200)
    assert numbers(receive(consumer, 200)) == list(range(200))


def test_failover_has_one_active_consumer_and_the_other_takes_over(client, topic):
    consumers = [client.subscribe(topic, "s", FAILOVER, consumer_name=name) for name in ("a", "b", "c")]
    producer = client.create_producer(topic)
    send_numbers(producer, 30)
    got = drain(consumers, 30)
    assert len({index for index, _ in got}) == 1, "more than one consumer was active"
    assert [int(m.data()) for _, m in got] == list(range(30))
    active = got[0][0]
    for _, message in got[:12]:
        consumers[active].acknowledge(message)
    consumers.pop(active).close()
    send_numbers(producer, 10, start=30)
    rest = drain(consumers, 28)
    assert len({index for index, _ in rest}) == 1
    assert [int(m.data()) for _, m in rest] == list(range(12, 40))
    for index, message in rest:
        consumers[index].acknowledge(message)
    last = consumers.pop(rest[0][0])
    last.close()
    send_numbers(producer, 5, start=40)
    assert numbers(receive(consumers[0], 5)) == list(range(40, 45))


def test_failover_when_the_active_connection_breaks(client, new_client, server, topic):
    broken = new_client(server.service_url)
    consumers = [broken.subscribe(topic, "s", FAILOVER, consumer_name="a"),
                 broken.subscribe(topic, "s", FAILOVER, consumer_name="b")]
    heir = client.subscribe(topic, "s", FAILOVER, consumer_name="c")
    producer = client.create_producer(topic)
    send_numbers(producer, 10)
    got = drain([*consumers, heir], 10)
    assert [int(m.data()) for _, m in got] == list(range(10))
    broken.shutdown()
    send_numbers(producer, 10, start=10)
    if got[0][0] == 2:                       # the heir was the active one already: nothing is sent twice
        for _, message in got:
            heir.acknowledge(message)
        assert numbers(receive(heir, 10)) == list(range(10, 20))
    else:
        assert numbers(receive(heir, 20)) == list(range(20))


def test_failover_spreads_partitions_by_consumer_name(client, admin, topic):
    admin.create_partitioned(topic, 4)
    consumers = {name: client.subscribe(topic, "s", FAILOVER, consumer_name=name) for name in ("b", "a")}

    def active():
        return [admin.stats(f"{topic}-partition-{n}")["subscriptions"]["s"].get("activeConsumerName") for n in range(4)]
    eventually(lambda: active() == ["a", "b", "a", "b"], what="partition number modulo the sorted names")
    producer = client.create_producer(topic)
    send_numbers(producer, 40)
    by_name = {name: receive(consumer, 20) for name, consumer in consumers.items()}
    assert {m.message_id().partition() for m in by_name["a"]} == {0, 2}
    assert {m.message_id().partition() for m in by_name["b"]} == {1, 3}
    consumers["a"].close()
    eventually(lambda: active() == ["b"] * 4)
    send_numbers(producer, 8, start=40)
    assert sorted(numbers(receive(consumers["b"], 8))) == list(range(40, 48))


def test_unsubscribe_forgets_the_position(client, admin, topic):
    consumer = client.subscribe(topic, "s")
    producer = client.create_producer(topic)
    send_numbers(producer, 5)
    receive(consumer, 2)
    consumer.unsubscribe()
    assert admin.subscriptions(topic) == []
    again = client.subscribe(topic, "s")
    producer.send(b"99")
    assert numbers(receive(again, 1)) == [99]


def test_unsubscribe_is_refused_while_others_are_connected(client, admin, topic):
    one = client.subscribe(topic, "s", SHARED)
    two = client.subscribe(topic, "s", SHARED)
    with pytest.raises(pulsar.PulsarException):
        one.unsubscribe()
    assert admin.subscriptions(topic) == ["s"]
    two.close()


def test_closed_consumer_refuses(client, topic):
    consumer = client.subscribe(topic, "s")
    consumer.close()
    with pytest.raises(pulsar.PulsarException):
        consumer.receive(100)


def test_message_listener(client, topic):
    got = []

    def listen(consumer, message):
        got.append(message.data())
        consumer.acknowledge(message)
    client.subscribe(topic, "s", message_listener=listen)
    send_numbers(client.create_producer(topic), 100)
    eventually(lambda: len(got) == 100)
    assert got == [b"%d" % n for n in range(100)]


def test_batch_receive(client, topic):
    consumer = client.subscribe(topic, "s", batch_receive_policy=pulsar.ConsumerBatchReceivePolicy(10, 1 << 20, 3000))
    send_numbers(client.create_producer(topic), 20)
    assert data(consumer.batch_receive()) + data(consumer.batch_receive()) == [b"%d" % n for n in range(20)]


def test_paused_listener_gets_nothing_until_it_resumes(client, topic):
    """The client stops receiving; what is sent meanwhile waits at the broker."""
    got = []
    consumer = client.subscribe(topic, "s", receiver_queue_size=10, message_listener=lambda c, m: got.append(m))
    consumer.pause_message_listener()
    send_numbers(client.create_producer(topic), 100)
    probe = client.subscribe(topic, "probe", initial_position=pulsar.InitialPosition.Earliest)
    receive(probe, 100)
    assert not got
    consumer.resume_message_listener()
    eventually(lambda: len(got) == 100)
    assert numbers(got) == list(range(100))


def test_nothing_comes_to_an_idle_subscription(client, topic):
    assert_nothing(client.subscribe(topic, "s"))
