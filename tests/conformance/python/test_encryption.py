"""End-to-end encryption by the Python client: what the server stores and passes on without understanding it."""

import os
import subprocess

import pulsar
import pytest

from support import assert_nothing, data, receive
from wire import FLOW, MESSAGE, Connection, parse


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    private, public = str(folder / "private.pem"), str(folder / "public.pem")
    subprocess.run(["openssl", "genrsa", "-out", private, "2048"], check=True, capture_output=True)
    subprocess.run(["openssl", "rsa", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    return pulsar.CryptoKeyReader(public, private)


@pytest.mark.parametrize("batching", [False, True], ids=["single", "batched"])
@pytest.mark.parametrize("compression", [pulsar.CompressionType.NONE, pulsar.CompressionType.LZ4], ids=["plain", "lz4"])
def test_who_has_the_key_reads(client, topic, keys, batching, compression):
    consumer = client.subscribe(topic, "s", crypto_key_reader=keys)
    producer = client.create_producer(topic, encryption_key="mine", crypto_key_reader=keys, batching_enabled=batching,
                                      batching_max_publish_delay_ms=5, compression_type=compression)
    for number in range(10):
        producer.send_async(b"secret %d" % number, None, properties={"n": str(number)})
    producer.flush()
    got = receive(consumer, 10)
    assert data(got) == [b"secret %d" % number for number in range(10)]
    assert [message.properties()["n"] for message in got] == [str(number) for number in range(10)]


def test_without_the_key_nothing_is_shown_or_acknowledged(client, topic, keys):
    consumer = client.subscribe(topic, "s")
    producer = client.create_producer(topic, encryption_key="mine", crypto_key_reader=keys)
    producer.send(b"secret")
    assert_nothing(consumer)
    consumer.close()
    assert data(receive(client.subscribe(topic, "s", crypto_key_reader=keys), 1)) == [b"secret"]


def test_who_does_not_need_the_key_gets_the_cipher(client, topic, keys):
    consume = pulsar.ConsumerCryptoFailureAction.CONSUME
    consumer = client.subscribe(topic, "s", crypto_failure_action=consume)
    client.create_producer(topic, encryption_key="mine", crypto_key_reader=keys).send(b"secret")
    got = receive(consumer, 1)[0]
    assert got.data() and b"secret" not in got.data()


def test_metadata_of_the_cipher_is_passed_on_untouched(server, client, topic, keys):
    with Connection(server) as connection:
        connection.subscribe(f"persistent://public/default/{topic}", "s")
        connection.send(FLOW, {1: 1, 2: 10})
        client.create_producer(topic, encryption_key="mine", crypto_key_reader=keys).send(b"secret")
        while (got := connection.next())[0] != MESSAGE:
            pass
    block = got[2]
    metadata = parse(block[10:10 + int.from_bytes(block[6:10], "big")])
    key = parse(metadata[13][0])
    assert key[1] == [b"mine"] and len(key[2][0]) == 256, "the data key, under the 2048-bit public key"
    assert metadata[15][0], "the initialization vector"
    assert b"secret" not in block


def test_a_namespace_that_requires_it_refuses_others(server, client, admin, new_client, topic, keys):
    namespace = f"public/encrypted-{os.getpid()}"
    admin.put(f"/admin/v2/namespaces/{namespace}", {})
    admin.post(f"/admin/v2/namespaces/{namespace}/encryptionRequired", True)
    name = f"persistent://{namespace}/{topic}"
    with pytest.raises(pulsar.PulsarException):
        new_client(server.service_url, operation_timeout_seconds=2).create_producer(name)
    consumer = client.subscribe(name, "s", crypto_key_reader=keys)
    client.create_producer(name, encryption_key="mine", crypto_key_reader=keys).send(b"secret")
    assert data(receive(consumer, 1)) == [b"secret"]
