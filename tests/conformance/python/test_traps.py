"""Subtle rules that clients lean on, asked for by hand: the table in ../README.md says which test minds which."""

import struct
import time
import urllib.error
import urllib.request

import pytest

from wire import (ACK, ACK_RESPONSE, CLOSE_CONSUMER, CLOSE_PRODUCER, CLOSED, ERROR, FLOW, GET_LAST_MESSAGE_ID, LOOKUP,
                  LOOKUP_RESPONSE, MESSAGE, PRODUCER, PRODUCER_SUCCESS, SEEK, SEND, SEND_RECEIPT, SUBSCRIBE, SUCCESS,
                  Connection, crc32c, message, parse, payload)

PARTITIONED_METADATA, PARTITIONED_METADATA_RESPONSE, CONSUMER_STATS, CONSUMER_STATS_RESPONSE = 21, 22, 25, 26
GET_LAST_MESSAGE_ID_RESPONSE, ACTIVE_CONSUMER_CHANGE, GET_TOPICS, GET_TOPICS_RESPONSE, GET_SCHEMA, GET_SCHEMA_RESPONSE = 30, 31, 32, 33, 34, 35
WATCH_TOPIC_LIST, WATCH_TOPIC_LIST_SUCCESS, WATCH_TOPIC_UPDATE = 64, 65, 66
PRODUCER_BUSY, TOPIC_NOT_FOUND, INCOMPATIBLE_SCHEMA, PRODUCER_FENCED = 16, 11, 18, 25
EXCLUSIVE, WAIT_FOR_EXCLUSIVE, EXCLUSIVE_WITH_FENCING = 1, 2, 3
SHARED, FAILOVER = 1, 2
BY_THE_SERVER = (1 << 64) - 1


def full(topic):
    return f"persistent://public/default/{topic}"


def batch(sequence, size):
    """A SEND payload that says it holds `size` messages; the server does not look inside."""
    return payload(sequence, b"x" * 20, metadata=message({1: "p", 2: sequence, 3: int(time.time() * 1000), 11: size}))


def position(identity):
    """(ledger, entry) of MessageIdData."""
    fields = parse(identity)
    return fields[1][0], fields[2][0]


def signed(number):
    return struct.unpack(">q", struct.pack(">Q", number & (1 << 64) - 1))[0] if number >= 0 else number


@pytest.mark.parametrize("name", ["", "pulsar.dedup", "pulsar.repl.elsewhere"])
def test_a_bad_subscription_name_is_called_producer_busy(server, topic, name):
    with Connection(server) as connection:
        connection.send(SUBSCRIBE, {1: full(topic), 2: name, 3: 0, 4: 1, 5: 7})
        error = connection.expect(ERROR)
        assert (error[1], error[2]) == ([7], [PRODUCER_BUSY])
        assert connection.ping()


def test_waiting_for_exclusive_is_answered_twice_with_one_request_id(server, topic):
    with Connection(server) as owner, Connection(server) as waiting:
        owner.send(PRODUCER, {1: full(topic), 2: 1, 3: 1, 10: EXCLUSIVE})
        owner.expect(PRODUCER_SUCCESS)
        waiting.send(PRODUCER, {1: full(topic), 2: 1, 3: 42, 10: WAIT_FOR_EXCLUSIVE})
        first = waiting.expect(PRODUCER_SUCCESS)
        assert (first[1], first[6]) == ([42], [0]), "known, but not ready"
        assert 5 not in first, "no epoch yet"
        owner.send(CLOSE_PRODUCER, {1: 1, 2: 2})
        owner.expect(SUCCESS)
        second = waiting.expect(PRODUCER_SUCCESS)
        assert second[1] == [42] and second.get(6, [1]) == [1] and 5 in second


def test_a_fenced_producer_learns_it_by_sending(server, topic):
    with Connection(server) as loser, Connection(server) as winner:
        loser.send(PRODUCER, {1: full(topic), 2: 1, 3: 1, 4: "loser", 10: EXCLUSIVE})
        epoch = loser.expect(PRODUCER_SUCCESS)[5][0]
        winner.send(PRODUCER, {1: full(topic), 2: 1, 3: 1, 4: "winner", 10: EXCLUSIVE_WITH_FENCING})
        assert winner.expect(PRODUCER_SUCCESS)[5][0] > epoch
        assert loser.ping(), "nothing was said to the fenced one"
        loser.send(SEND, {1: 1, 2: 0}, payload(0, b"x"))
        loser.expect_closed()
        with Connection(server) as again:
            again.send(PRODUCER, {1: full(topic), 2: 1, 3: 2, 4: "loser", 10: EXCLUSIVE, 11: epoch})
            assert again.expect(ERROR)[2] == [PRODUCER_FENCED]


def test_a_send_to_a_producer_that_the_server_closed_is_ignored(server, admin, topic):
    with Connection(server) as connection:
        connection.producer(full(topic), producer_id=5)
        admin.put(admin.topic(topic, "/unload"))
        closed = connection.expect(CLOSE_PRODUCER)
        assert (closed[1], closed[2]) == ([5], [BY_THE_SERVER])
        connection.send(SEND, {1: 5, 2: 0}, payload(0, b"late"))
        assert connection.ping(), "the connection lives on"


def test_permits_count_the_messages_of_a_batch_and_may_be_negative(server, client, topic):
    client.subscribe(topic, "s").close()
    with Connection(server) as sender, Connection(server) as connection:
        sender.producer(full(topic))
        for sequence in range(2):
            sender.send(SEND, {1: 1, 2: sequence * 10, 3: 10}, batch(sequence * 10, 10))
            sender.expect(SEND_RECEIPT)
        connection.subscribe(full(topic), "s", kind=SHARED)

        def granted(permits):
            """What came of a FLOW: the server answers a ping after what it sends at once; absence is watched a moment more."""
            connection.send(FLOW, {1: 1, 2: permits})
            connection.socket.settimeout(0.4)
            try:
                got = connection.next()
                return got[0] == MESSAGE
            except TimeoutError:
                return False
            finally:
                connection.socket.settimeout(10)
        assert granted(1), "an entry is never split"
        assert not granted(5), "nine permits are owed"
        assert granted(5)


def test_a_cumulative_ack_of_several_ids_is_ignored_but_answered(server, client, admin, topic):
    client.subscribe(topic, "s").close()
    producer = client.create_producer(topic)
    for _ in range(3):
        producer.send(b"x")
    with Connection(server) as connection:
        connection.subscribe(full(topic), "s")
        connection.send(FLOW, {1: 1, 2: 10})
        ids = []
        while len(ids) < 3:
            command, fields, _ = connection.next()
            if command == MESSAGE:
                ids.append(position(fields[2][0]))
        connection.send(ACK, {1: 1, 2: 1, 3: [{1: ledger, 2: entry} for ledger, entry in ids[:2]], 8: 9})
        while True:
            command, fields, _ = connection.next()
            if command == ACK_RESPONSE:
                break
        assert fields[6] == [9] and 4 not in fields
        assert admin.backlog(topic, "s") == 3


def test_seek_closes_every_consumer_before_it_succeeds(server, client, topic):
    client.create_producer(topic).send(b"x")
    with Connection(server) as asking, Connection(server) as other:
        asking.subscribe(full(topic), "s", kind=SHARED, consumer_id=3)
        other.subscribe(full(topic), "s", kind=SHARED, consumer_id=4)
        asking.send(SEEK, {1: 3, 2: 77, 3: {1: BY_THE_SERVER, 2: BY_THE_SERVER}})
        closed = asking.expect(CLOSE_CONSUMER)
        assert (closed[1], closed[2]) == ([3], [BY_THE_SERVER])
        assert asking.expect(SUCCESS)[1] == [77]
        assert other.expect(CLOSE_CONSUMER)[1] == [4]
        # and whoever comes back is attached, at the new position
        asking.subscribe(full(topic), "s", kind=SHARED, consumer_id=3, request=78)
        asking.send(FLOW, {1: 3, 2: 1})
        assert asking.expect(MESSAGE)[1] == [3]


def test_the_last_message_id_tells_batches_from_single_messages(server, topic):
    def last():
        connection.send(GET_LAST_MESSAGE_ID, {1: 1, 2: 9})
        fields = connection.expect(GET_LAST_MESSAGE_ID_RESPONSE)
        identity = parse(fields[1][0])
        return signed(identity[1][0]), signed(identity[2][0]), signed(identity.get(4, [BY_THE_SERVER])[0]), fields
    with Connection(server) as connection:
        connection.subscribe(full(topic), "s")
        assert last()[:3] == (-1, -1, -1)
        connection.producer(full(topic), request=2)
        wanted = published(connection, payload(0, b"x"))
        assert last()[:3] == (*wanted, -1), "a single message"
        wanted = published(connection, batch(1, 1))
        assert last()[:3] == (*wanted, 0), "a batch of one is a batch"
        wanted = published(connection, batch(2, 7))
        *got, fields = last()
        assert tuple(got) == (*wanted, 6)
        assert 3 in fields, "and the mark-delete position is told"


def published(connection, block):
    """Sends; the position of the receipt. What the consumer on the same connection hears is skipped."""
    connection.send(SEND, {1: 1, 2: 0}, block)
    while True:
        command, fields, _ = connection.next()
        if command == SEND_RECEIPT:
            return position(fields[3][0])
        assert command == ACTIVE_CONSUMER_CHANGE


def test_partitions_of_a_missing_topic_can_be_asked_without_making_it(server, admin, topic):
    with Connection(server) as connection:
        connection.send(PARTITIONED_METADATA, {1: full(topic), 2: 1, 6: 0})
        answer = connection.expect(PARTITIONED_METADATA_RESPONSE)
        assert (answer[2], answer[3], answer[4]) == ([1], [1], [TOPIC_NOT_FOUND])
        assert admin.status("GET", admin.topic(topic, "/stats")) == 404
        connection.send(PARTITIONED_METADATA, {1: full(topic), 2: 2})
        answer = connection.expect(PARTITIONED_METADATA_RESPONSE)
        assert (answer[2], answer[3], answer.get(1, [0])) == ([2], [0], [0])


# who of the consumers a, b and c is active, by the name of the topic: read off Apache Pulsar 4.0.8
RING = {"ring-0": "b", "ring-1": "b", "ring-2": "b", "ring-3": "a", "ring-4": "a", "ring-5": "b"}


@pytest.mark.parametrize("name", RING)
def test_the_active_consumer_of_one_topic_is_by_its_hash(server, admin, name):
    with Connection(server) as connection:
        for number, consumer in enumerate("abc"):
            connection.send(SUBSCRIBE, {1: full(name), 2: "s", 3: FAILOVER, 4: number, 5: number, 6: consumer})
        told, answered = {}, 0
        wanted = {number: consumer == RING[name] for number, consumer in enumerate("abc")}
        # every consumer is told, also those that are not active
        while answered < 3 or told != wanted:
            command, fields, _ = connection.next()
            answered += command == SUCCESS
            if command == ACTIVE_CONSUMER_CHANGE:
                told[fields[1][0]] = bool(fields.get(2, [0])[0])
        assert admin.stats(name)["subscriptions"]["s"]["activeConsumerName"] == RING[name]


def answer(url):
    try:
        with urllib.request.urlopen(url, timeout=15) as found:
            return found.status, found.read(), found.headers.get("Content-Type")
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers.get("Content-Type")


@pytest.mark.parametrize("policy", ["messageTTL", "retention", "maxProducersPerTopic", "deduplication", "persistence"])
def test_an_unset_policy_is_an_empty_answer(admin, policy):
    name = f"public/unset-{time.monotonic_ns()}"
    admin.put(f"/admin/v2/namespaces/{name}")
    status, content, _ = answer(f"{admin.url}/admin/v2/namespaces/{name}/{policy}")
    assert status in (200, 204) and content == b""


def test_the_reason_of_a_refusal_is_in_the_body(admin, topic):
    status, content, kind = answer(admin.url + admin.topic(topic, "/stats"))
    assert status == 404 and kind.startswith("application/json")
    assert b'"reason"' in content and topic.encode() in content


def topics_hash(names):
    return struct.pack("<I", crc32c(",".join(sorted(names)).encode())).hex()


def test_topic_lists_carry_the_hash_of_their_names(server, admin):
    space = f"public/lists-{time.monotonic_ns()}"
    admin.put(f"/admin/v2/namespaces/{space}")
    for name in ("b", "a"):
        admin.put(f"/admin/v2/persistent/{space}/{name}")
    admin.put(f"/admin/v2/persistent/{space}/parted/partitions", 2)
    names = sorted(f"persistent://{space}/{name}" for name in ("a", "b", "parted-partition-0", "parted-partition-1"))
    with Connection(server) as connection:
        connection.send(GET_TOPICS, {1: 1, 2: space})
        fields = connection.expect(GET_TOPICS_RESPONSE)
        assert sorted(name.decode() for name in fields[2]) == names
        assert fields[4] == [topics_hash(names).encode()]
        connection.send(GET_TOPICS, {1: 2, 2: space, 5: topics_hash(names)})
        fields = connection.expect(GET_TOPICS_RESPONSE)
        assert 2 not in fields and fields[5] == [0], "nothing new"
        # a pattern is matched without the scheme and without the number of a partition
        connection.send(GET_TOPICS, {1: 3, 2: space, 4: f"persistent://{space}/parted"})
        fields = connection.expect(GET_TOPICS_RESPONSE)
        assert sorted(name.decode() for name in fields[2]) == names[2:] and fields[3] == [1]


def test_a_watcher_is_told_of_persistent_topics_that_come_and_go(server, admin, new_client):
    space = f"public/watched-{time.monotonic_ns()}"
    admin.put(f"/admin/v2/namespaces/{space}")
    admin.put(f"/admin/v2/persistent/{space}/t0")
    first, second = (f"persistent://{space}/t{number}" for number in range(2))
    with Connection(server) as connection:
        connection.send(WATCH_TOPIC_LIST, {1: 1, 2: 9, 3: space, 4: f"persistent://{space}/t.*"})
        fields = connection.expect(WATCH_TOPIC_LIST_SUCCESS)
        assert [name.decode() for name in fields[3]] == [first] and fields[4] == [topics_hash([first]).encode()]
        new_client(server.service_url).create_producer(f"non-persistent://{space}/t-live")
        admin.put(f"/admin/v2/persistent/{space}/other")
        admin.put(f"/admin/v2/persistent/{space}/t1")
        fields = connection.expect(WATCH_TOPIC_UPDATE)
        assert fields[1] == [9] and [name.decode() for name in fields[2]] == [second]
        assert fields[4] == [topics_hash([first, second]).encode()]
        admin.delete(f"/admin/v2/persistent/{space}/t0")
        fields = connection.expect(WATCH_TOPIC_UPDATE)
        assert [name.decode() for name in fields[3]] == [first] and fields[4] == [topics_hash([second]).encode()]


def test_an_empty_schema_version_is_an_error(server, admin, topic):
    admin.put(admin.topic(topic))
    admin.post(f"/admin/v2/schemas/public/default/{topic}/schema", {"type": "STRING", "schema": "", "properties": {}})
    with Connection(server) as connection:
        connection.send(GET_SCHEMA, {1: 1, 2: full(topic)})
        fields = connection.expect(GET_SCHEMA_RESPONSE)
        assert 2 not in fields and fields[5] == [struct.pack(">q", 0)]
        connection.send(GET_SCHEMA, {1: 2, 2: full(topic), 3: b""})
        assert connection.expect(GET_SCHEMA_RESPONSE)[2] == [INCOMPATIBLE_SCHEMA]


def test_a_standalone_on_loopback_is_reached_through_its_service_url(server, topic):
    with Connection(server) as connection:
        connection.send(LOOKUP, {1: full(topic), 2: 1})
        fields = connection.expect(LOOKUP_RESPONSE)
        assert (fields[3], fields[8]) == ([1], [1])


def test_consumer_stats_by_command(server, client, topic):
    client.subscribe(topic, "s").close()
    client.create_producer(topic).send(b"x")
    with Connection(server) as connection:
        connection.subscribe(full(topic), "s", kind=SHARED, consumer_id=8, request=2)
        connection.send(FLOW, {1: 8, 2: 10})
        connection.expect(MESSAGE)
        connection.send(CONSUMER_STATS, {1: 3, 4: 8})
        fields = connection.expect(CONSUMER_STATS_RESPONSE)
        assert (fields[8], fields[9], fields[13], fields[15]) == ([9], [1], [b"Shared"], [1])


def test_an_oversize_frame_just_closes(server):
    with Connection(server) as connection:
        connection.raw(struct.pack(">I", 64 << 20) + b"\0" * 64)
        assert connection.next() == CLOSED
