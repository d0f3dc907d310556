"""The protocol where official clients do not go: acknowledgement receipts, errors, and order of commands."""

import struct

import pulsar
import pytest

from support import eventually, numbers, receive, send_numbers
from wire import (ACK, ACK_RESPONSE, CHECKSUM_ERROR, CLOSE_CONSUMER, CLOSE_PRODUCER, ERROR, FLOW, GET_LAST_MESSAGE_ID,
                  MESSAGE, PRODUCER, PRODUCER_SUCCESS, SEND, SEND_ERROR, SEND_RECEIPT, SUBSCRIBE, SUCCESS, Connection,
                  crc32c, parse, payload)


def full(topic):
    return f"persistent://public/default/{topic}"


def test_handshake(server):
    with Connection(server) as connection:
        assert connection.connected[2] == [21]
        assert connection.connected[3] == [5 * (1 << 20)]
        assert connection.ping()


def test_an_older_client_gets_its_own_version(server):
    with Connection(server, connect=False) as connection:
        connection.send(2, {1: "old", 4: 12})
        assert connection.expect(3)[2] == [12]


def test_receipts_come_in_order(server, topic):
    with Connection(server) as connection:
        connection.producer(full(topic))
        for sequence in range(200):
            connection.send(SEND, {1: 1, 2: sequence}, payload(sequence, b"x"))
        got = [connection.expect(SEND_RECEIPT) for _ in range(200)]
        assert [receipt[2][0] for receipt in got] == list(range(200))
        ids = [parse(receipt[3][0]) for receipt in got]
        positions = [(i[1][0], i[2][0]) for i in ids]
        assert positions == sorted(set(positions))


def test_delivered_bytes_are_the_bytes_that_were_sent(server, topic):
    with Connection(server) as connection:
        connection.subscribe(full(topic), "s", consumer_id=7)
        connection.producer(full(topic), request=2)
        block = payload(0, b"content \x00\xff", producer="me")
        connection.send(SEND, {1: 1, 2: 0}, block)
        connection.send(FLOW, {1: 7, 2: 1})
        got = {}
        while len(got) < 2:
            command, fields, tail = connection.next()
            got[command] = (fields, tail)
        assert got[MESSAGE][1] == block, "magic, checksum, metadata and payload are passed on untouched"
        assert struct.unpack(">I", block[2:6])[0] == crc32c(block[6:])


def test_a_wrong_checksum_is_refused_and_nothing_is_stored(server, client, topic):
    consumer = client.subscribe(topic, "s")
    with Connection(server) as connection:
        connection.producer(full(topic))
        connection.send(SEND, {1: 1, 2: 0}, payload(0, b"0"))
        connection.send(SEND, {1: 1, 2: 1}, payload(1, b"bad", checksum=0xDEADBEEF))
        connection.expect(SEND_RECEIPT)
        error = connection.expect(SEND_ERROR)
        assert (error[1], error[2], error[3]) == ([1], [1], [CHECKSUM_ERROR])
        connection.send(SEND, {1: 1, 2: 2}, payload(2, b"2"))
        connection.expect(SEND_RECEIPT)
    assert numbers(receive(consumer, 2)) == [0, 2]


def test_messages_without_checksum_are_taken(server, client, topic):
    consumer = client.subscribe(topic, "s")
    with Connection(server) as connection:
        connection.producer(full(topic))
        connection.send(SEND, {1: 1, 2: 0}, payload(0, b"5")[6:])
        connection.expect(SEND_RECEIPT)
    assert numbers(receive(consumer, 1)) == [5]


def test_acknowledgement_receipt(server, client, admin, topic):
    client.subscribe(topic, "s").close()
    send_numbers(client.create_producer(topic), 3)
    with Connection(server) as connection:
        connection.subscribe(full(topic), "s", consumer_id=3)
        connection.send(FLOW, {1: 3, 2: 10})
        ids = []
        while len(ids) < 3:
            command, fields, _ = connection.next()
            if command == MESSAGE:
                ids.append(parse(fields[2][0]))
        for request, identity in enumerate(ids[:2]):
            connection.send(ACK, {1: 3, 2: 0, 3: {1: identity[1][0], 2: identity[2][0]}, 8: 40 + request})
        answers = [connection.expect(ACK_RESPONSE) for _ in range(2)]
        assert [a[6] for a in answers] == [[40], [41]]
        assert all(4 not in a for a in answers), "no error"
        assert admin.backlog(topic, "s") == 1


def test_cumulative_ack_on_shared_is_ignored_but_answered(server, client, admin, topic):
    client.subscribe(topic, "s").close()
    send_numbers(client.create_producer(topic), 3)
    with Connection(server) as connection:
        connection.subscribe(full(topic), "s", kind=1, consumer_id=3)
        connection.send(FLOW, {1: 3, 2: 10})
        ids = []
        while len(ids) < 3:
            command, fields, _ = connection.next()
            if command == MESSAGE:
                ids.append(parse(fields[2][0]))
        connection.send(ACK, {1: 3, 2: 1, 3: {1: ids[2][1][0], 2: ids[2][2][0]}, 8: 9})
        assert 4 not in connection.expect(ACK_RESPONSE)
        assert admin.backlog(topic, "s") == 3


def test_permits_are_never_exceeded(server, client, topic):
    client.subscribe(topic, "s").close()
    send_numbers(client.create_producer(topic), 30)
    with Connection(server) as connection:
        connection.subscribe(full(topic), "s", kind=1, consumer_id=3)

        def delivered_before_pong():
            # a ping is answered behind what was sent before it; the second round catches what was being read
            count = 0
            for _ in range(2):
                connection.send(18, {})
                while True:
                    command, *_ = connection.next()
                    if command == 19:
                        break
                    count += command == MESSAGE
            return count
        assert delivered_before_pong() == 0
        total = 0
        for permits in (1, 5, 3):
            connection.send(FLOW, {1: 3, 2: permits})
            wanted = total + permits

            def arrived():
                nonlocal total
                total += delivered_before_pong()
                return total >= wanted
            eventually(arrived)
            assert total == wanted


def test_the_same_ids_again_on_a_live_connection(server, topic):
    """A client that lost an answer asks again."""
    with Connection(server) as connection:
        name = connection.producer(full(topic), producer_id=1, request=1)[2]
        assert connection.producer(full(topic), producer_id=1, request=2)[2] == name
        connection.subscribe(full(topic), "s", consumer_id=1, request=3)
        connection.subscribe(full(topic), "s", consumer_id=1, request=4)


def test_a_newer_epoch_replaces_its_own_producer(server, topic):
    with Connection(server) as connection:
        connection.send(PRODUCER, {1: full(topic), 2: 1, 3: 1, 4: "me", 8: 0, 9: 0})
        connection.expect(PRODUCER_SUCCESS)
        connection.send(CLOSE_PRODUCER, {1: 1, 2: 2})
        connection.expect(SUCCESS)
        connection.send(PRODUCER, {1: full(topic), 2: 1, 3: 3, 4: "me", 8: 1, 9: 0})
        connection.expect(PRODUCER_SUCCESS)


def test_closing_what_is_not_there_succeeds(server):
    with Connection(server) as connection:
        connection.send(CLOSE_PRODUCER, {1: 99, 2: 5})
        assert connection.expect(SUCCESS)[1] == [5]
        connection.send(CLOSE_CONSUMER, {1: 99, 2: 6})
        assert connection.expect(SUCCESS)[1] == [6]


@pytest.mark.parametrize("bad", ["nonsense://a/b/c", "persistent://a", "", "persistent://public/default/"])
def test_bad_topic_names_get_an_error_and_the_connection_stays(server, bad):
    with Connection(server) as connection:
        connection.send(PRODUCER, {1: bad, 2: 1, 3: 11})
        error = connection.expect(ERROR)
        assert error[1] == [11] and error[3][0]
        connection.send(SUBSCRIBE, {1: bad, 2: "s", 3: 0, 4: 1, 5: 12})
        assert connection.expect(ERROR)[1] == [12]
        assert connection.ping()


def test_last_message_id_of_an_unknown_consumer(server):
    with Connection(server) as connection:
        connection.send(GET_LAST_MESSAGE_ID, {1: 77, 2: 8})
        assert connection.expect(ERROR)[1] == [8]
        assert connection.ping()


def test_a_dead_peer_does_not_keep_a_producer_name(server, new_client, topic):
    """The connection is not closed, but nobody answers on it: after the liveness check the name is free."""
    with Connection(server) as silent:
        silent.send(PRODUCER, {1: full(topic), 2: 1, 3: 1, 4: "the-name", 9: 1})
        silent.expect(PRODUCER_SUCCESS)

        def taken_over():
            try:
                new_client(server.service_url).create_producer(topic, producer_name="the-name").send(b"x")
                return True
            except pulsar.ProducerBusy:
                return False
        eventually(taken_over, seconds=20)
