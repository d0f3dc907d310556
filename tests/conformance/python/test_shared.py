"""Shared and Key_Shared: work is spread, every message goes to one consumer, keys keep their order."""

import collections
import random
import time

import pulsar
import pytest

from support import assert_nothing, drain, eventually, numbers, receive, send_numbers

SHARED, KEY_SHARED = pulsar.ConsumerType.Shared, pulsar.ConsumerType.KeyShared


def send_keyed(producer, keys, count, start=0):
    """`count` messages a key, in turn over the keys; payload is the number within the key."""
    failed = []
    for n in range(start, start + count):
        for key in keys:
            producer.send_async(b"%d" % n, lambda result, _: result == pulsar.Result.Ok or failed.append(result),
                                partition_key=key)
    producer.flush()
    assert not failed


def by_key(messages):
    result = collections.defaultdict(list)
    for message in messages:
        result[message.partition_key()].append(int(message.data()))
    return dict(result)


def test_shared_spreads_and_delivers_once(client, topic):
    consumers = [client.subscribe(topic, "s", SHARED, receiver_queue_size=50) for _ in range(3)]
    send_numbers(client.create_producer(topic), 600)
    got = drain(consumers, 600)
    assert sorted(int(m.data()) for _, m in got) == list(range(600))
    shares = collections.Counter(index for index, _ in got)
    assert len(shares) == 3 and min(shares.values()) >= 100, shares
    for index, message in got:
        consumers[index].acknowledge(message)


def test_permits_bound_what_a_slow_consumer_holds(client, topic):
    """A consumer that does not receive holds its receiver queue and no more; the rest goes to the other."""
    slow = client.subscribe(topic, "s", SHARED, receiver_queue_size=5)
    quick = client.subscribe(topic, "s", SHARED, receiver_queue_size=100)
    producer = client.create_producer(topic)
    send_numbers(producer, 200)
    others = receive(quick, 195)
    mine = receive(slow, 5)
    assert sorted(numbers(others) + numbers(mine)) == list(range(200))
    assert_nothing(quick, 50)


def test_messages_of_a_leaving_consumer_go_to_the_others_at_once(client, topic):
    leaving = client.subscribe(topic, "s", SHARED, receiver_queue_size=10)
    staying = client.subscribe(topic, "s", SHARED, receiver_queue_size=1000)
    send_numbers(client.create_producer(topic), 100)
    first = receive(staying, 90)
    held = receive(leaving, 10, ack=False)
    leaving.close()
    second = receive(staying, 10)
    assert sorted(numbers(second)) == sorted(numbers(held))
    assert sorted(numbers(first) + numbers(second)) == list(range(100))


def test_messages_of_a_broken_connection_go_to_the_others(client, new_client, server, topic):
    broken = new_client(server.service_url)
    leaving = broken.subscribe(topic, "s", SHARED, receiver_queue_size=10)
    staying = client.subscribe(topic, "s", SHARED)
    send_numbers(client.create_producer(topic), 100)
    first = receive(staying, 90)
    broken.shutdown()
    assert sorted(numbers(first) + numbers(receive(staying, 10))) == list(range(100))
    del leaving


def test_acknowledged_holes_stay_acknowledged(client, admin, topic):
    consumer = client.subscribe(topic, "s", SHARED)
    send_numbers(client.create_producer(topic), 100)
    messages = receive(consumer, 100, ack=False)
    for message in messages[::2]:
        consumer.acknowledge(message)
    eventually(lambda: admin.backlog(topic, "s") == 50)
    consumer.close()
    again = client.subscribe(topic, "s", SHARED)
    assert sorted(numbers(receive(again, 50))) == list(range(1, 100, 2))
    eventually(lambda: admin.backlog(topic, "s") == 0)


def test_batches_on_shared(client, topic):
    consumers = [client.subscribe(topic, "s", SHARED, receiver_queue_size=20) for _ in range(2)]
    producer = client.create_producer(topic, batching_enabled=True, batching_max_messages=10, batching_max_publish_delay_ms=10_000)
    send_numbers(producer, 200)
    got = []
    for index, message in drain(consumers, 200):
        consumers[index].acknowledge(message)
        got.append(int(message.data()))
    assert sorted(got) == list(range(200))


def test_key_shared_gives_each_key_to_one_consumer_in_order(client, topic):
    consumers = [client.subscribe(topic, "s", KEY_SHARED, consumer_name=f"c{n}") for n in range(3)]
    keys = [f"key-{n}" for n in range(40)]
    send_keyed(client.create_producer(topic), keys, 15)
    got = drain(consumers, 600)
    owners = collections.defaultdict(set)
    for index, message in got:
        owners[message.partition_key()].add(index)
    assert all(len(owner) == 1 for owner in owners.values())
    assert {next(iter(owner)) for owner in owners.values()} == {0, 1, 2}
    assert by_key(m for _, m in got) == {key: list(range(15)) for key in keys}


def test_ordering_key_wins_over_partition_key(client, topic):
    consumers = [client.subscribe(topic, "s", KEY_SHARED, consumer_name=f"c{n}") for n in range(3)]
    producer = client.create_producer(topic)
    for n in range(60):
        producer.send(b"%d" % n, partition_key=f"p{n}", ordering_key="one")
    got = drain(consumers, 60)
    assert len({index for index, _ in got}) == 1
    assert [int(m.data()) for _, m in got] == list(range(60))


def test_messages_without_key_are_spread_over_key_shared(client, topic):
    consumers = [client.subscribe(topic, "s", KEY_SHARED, consumer_name=f"c{n}") for n in range(3)]
    send_numbers(client.create_producer(topic), 150)
    got = drain(consumers, 150)
    assert sorted(int(m.data()) for _, m in got) == list(range(150))
    assert len({index for index, _ in got}) == 3


def test_key_based_batches_on_key_shared(client, topic):
    consumers = [client.subscribe(topic, "s", KEY_SHARED, consumer_name=f"c{n}") for n in range(3)]
    keys = [f"key-{n}" for n in range(20)]
    send_keyed(client.create_producer(topic, batching_enabled=True, batching_type=pulsar.BatchingType.KeyBased), keys, 50)
    got = drain(consumers, 1000)
    assert by_key(m for _, m in got) == {key: list(range(50)) for key in keys}


def test_keys_of_a_leaving_consumer_move_in_order(client, topic):
    consumers = [client.subscribe(topic, "s", KEY_SHARED, consumer_name=f"c{n}") for n in range(3)]
    keys = [f"key-{n}" for n in range(30)]
    producer = client.create_producer(topic)
    send_keyed(producer, keys, 10)
    got = drain(consumers, 300)
    kept = collections.defaultdict(list)
    for index, message in got:
        if index == 0:
            kept[message.partition_key()].append(int(message.data()))      # left unacknowledged
        else:
            consumers[index].acknowledge(message)
    assert kept
    consumers[0].close()
    send_keyed(producer, keys, 5, start=10)
    rest = drain(consumers[1:], sum(map(len, kept.values())) + 150)
    expected = {key: kept.get(key, []) + list(range(10, 15)) for key in keys}
    assert by_key(m for _, m in rest) == expected


@pytest.mark.pulsar_loose("a consumer that has just joined can get a key out of order")
def test_a_joining_consumer_waits_until_its_keys_are_drained(client, topic):
    first = client.subscribe(topic, "s", KEY_SHARED, consumer_name="first")
    keys = [f"key-{n}" for n in range(40)]
    producer = client.create_producer(topic)
    send_keyed(producer, keys, 5)
    held = receive(first, 200, ack=False)
    second = client.subscribe(topic, "s", KEY_SHARED, consumer_name="second")
    # a key that nobody holds shows that the second consumer is served; keys in flight are not moved to it meanwhile
    fresh = [f"fresh-{n}" for n in range(40)]
    send_keyed(producer, keys + fresh, 5, start=5)
    early = []
    while not any(m.partition_key().startswith("fresh") for m in early):
        early += receive(second, 1, ack=False)
    assert {m.partition_key() for m in early if m.partition_key().startswith("key")} == set()
    for message in held:
        first.acknowledge(message)
    got = drain([first, second], 400 - len(early))
    owner = collections.defaultdict(set)
    for index, message in got + [(1, m) for m in early]:
        owner[message.partition_key()].add(index)
    assert all(len(who) == 1 for who in owner.values())
    assert any(1 in who for key, who in owner.items() if key.startswith("key")), "no key moved to the second consumer"
    expected = {key: list(range(5, 10)) for key in keys + fresh}
    assert by_key(early + [m for _, m in got]) == expected


@pytest.mark.pulsar_loose("a consumer that has just joined can get a key out of order")
def test_key_order_under_joining_and_leaving(client, topic, seed):
    """Consumers come and go at random while messages flow; every message is acknowledged as it is received.
    Per key the first receipts must rise by one."""
    source = random.Random(seed)
    keys = [f"key-{n}" for n in range(25)]
    producer = client.create_producer(topic, max_pending_messages=2000, block_if_queue_full=True)
    joined = 2
    consumers = [client.subscribe(topic, "s", KEY_SHARED, consumer_name=f"c{n}", receiver_queue_size=30) for n in range(joined)]
    last, sent, seen = collections.defaultdict(lambda: -1), 0, 0

    def take(wanted):
        nonlocal seen
        until, deadline = seen + wanted, time.monotonic() + 20
        while seen < until:
            index = source.randrange(len(consumers))
            try:
                message = consumers[index].receive(5)
            except pulsar.Timeout:
                assert time.monotonic() < deadline, f"{until - seen} messages did not come"
                continue
            key, number = message.partition_key(), int(message.data())
            if number > last[key]:
                assert number == last[key] + 1, f"{key}: {number} came after {last[key]}"
                last[key], seen = number, seen + 1
            consumers[index].acknowledge(message)

    for _ in range(12):
        send_keyed(producer, keys, 8, start=sent)
        sent += 8
        take(source.randrange(100, 160) if sent > 8 else 100)
        if len(consumers) < 2 or (len(consumers) < 5 and source.random() < 0.6):
            consumers.append(client.subscribe(topic, "s", KEY_SHARED, consumer_name=f"c{joined}", receiver_queue_size=30))
            joined += 1
        else:
            consumers.pop(source.randrange(len(consumers))).close()
    take(sent * len(keys) - seen)
    assert dict(last) == {key: sent - 1 for key in keys}


def test_sticky_ranges(client, topic):
    def policy(*ranges):
        return pulsar.ConsumerKeySharedPolicy(key_shared_mode=pulsar.KeySharedMode.Sticky, sticky_ranges=list(ranges))
    low = client.subscribe(topic, "s", KEY_SHARED, key_shared_policy=policy((0, 32767)))
    with pytest.raises(pulsar.PulsarException):
        client.subscribe(topic, "s", KEY_SHARED, key_shared_policy=policy((32767, 65535)))
    high = client.subscribe(topic, "s", KEY_SHARED, key_shared_policy=policy((32768, 65535)))
    keys = [f"key-{n}" for n in range(100)]
    send_keyed(client.create_producer(topic), keys, 2)
    got = drain([low, high], 200)
    for index, message in got:
        assert index == (murmur3(message.partition_key().encode()) % 65536 >= 32768), message.partition_key()


def murmur3(key):
    """MurmurHash3 x86 32, seed 0, without the sign bit: what Pulsar hashes keys with."""
    mask, value = 0xFFFFFFFF, 0
    tail = len(key) & ~3
    for start in range(0, len(key), 4):
        k = int.from_bytes(key[start:start + 4], "little") * 0xCC9E2D51 & mask
        k = ((k << 15 | k >> 17) & mask) * 0x1B873593 & mask
        value ^= k
        if start < tail:
            value = ((value << 13 | value >> 19) & mask) * 5 + 0xE6546B64 & mask
    value ^= len(key)
    value = (value ^ value >> 16) * 0x85EBCA6B & mask
    value = (value ^ value >> 13) * 0xC2B2AE35 & mask
    return (value ^ value >> 16) & 0x7FFFFFFF
