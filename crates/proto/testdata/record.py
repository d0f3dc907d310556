"""Records what the official Python client and a Pulsar broker say to each other.

    python3 -m venv venv && venv/bin/pip install pulsar-client==3.13.0
    venv/bin/python record.py HOST:PORT OUT_DIR

HOST:PORT is a real Apache Pulsar standalone. Each scenario runs through a proxy that keeps the
bytes of both directions: SCENARIO.client.bin and SCENARIO.broker.bin. For the chunked message the
proxy tells the client a smaller maximum message size than the broker's, so that the file is small.
"""

import socket
import sys
import threading
import time

import pulsar

upstream_host, upstream_port = sys.argv[1].split(":")
out_dir = sys.argv[2]

# CONNECTED.max_message_size: tag 3, then 5 MiB as a varint; and 16,000 in as many bytes.
MAX_5_MIB = bytes([0x18, 0x80, 0x80, 0xC0, 0x02])
MAX_16_000 = bytes([0x18, 0x80, 0xFD, 0x80, 0x00])


class Proxy:
    """Joins the first connection to the broker, and keeps the bytes."""

    def __init__(self, small):
        self.small = small
        self.bytes = {"client": bytearray(), "broker": bytearray()}
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen()
        self.url = "pulsar://127.0.0.1:%d" % self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            client, _ = self.listener.accept()
            broker = socket.create_connection((upstream_host, int(upstream_port)))
            for name, source, target in (("client", client, broker), ("broker", broker, client)):
                threading.Thread(target=self.copy, args=(name, source, target), daemon=True).start()

    def copy(self, name, source, target):
        try:
            while data := source.recv(1 << 16):
                if name == "broker" and self.small:
                    data = data.replace(MAX_5_MIB, MAX_16_000)
                self.bytes[name] += data
                target.sendall(data)
        except OSError:
            pass
        target.close()


def record(scenario, run, small=False):
    proxy = Proxy(small)
    client = pulsar.Client(proxy.url, logger=pulsar.ConsoleLogger(pulsar.LoggerLevel.Error))
    run(client, "golden-%s-%d" % (scenario, time.time()))
    client.close()
    for name, data in proxy.bytes.items():
        with open("%s/%s.%s.bin" % (out_dir, scenario, name), "wb") as file:
            file.write(data)


def batch(compression):
    def run(client, topic):
        producer = client.create_producer(
            topic, producer_name="golden", compression_type=compression,
            batching_enabled=True, batching_max_publish_delay_ms=500, properties={"made": "by"})
        for i in range(3):
            producer.send_async(
                b"payload-%d-" % i + b"x" * 100, lambda *_: None, partition_key="key-%d" % i,
                properties={"n": str(i), "empty": ""}, event_timestamp=1000 + i)
        producer.flush()
        producer.close()
    return run


def single(client, topic):
    producer = client.create_producer(
        topic, producer_name="golden", batching_enabled=False, initial_sequence_id=41)
    producer.send(b"plain")
    producer.send(b"", partition_key="", ordering_key="order", properties={"a": "b"})
    producer.send(b"late", deliver_at=1700000000000, replication_clusters=["standalone"])
    producer.close()


def chunked(client, topic):
    producer = client.create_producer(
        topic, producer_name="golden", batching_enabled=False, chunking_enabled=True)
    producer.send(bytes(i * i % 251 for i in range(40000)), partition_key="k")
    producer.close()


def consume(client, topic):
    producer = client.create_producer(topic, producer_name="golden", batching_enabled=False)
    consumer = client.subscribe(
        topic, "shared", consumer_type=pulsar.ConsumerType.Shared, consumer_name="golden",
        negative_ack_redelivery_delay_ms=100, properties={"made": "by"},
        initial_position=pulsar.InitialPosition.Earliest)
    for i in range(3):
        producer.send(b"payload-%d" % i, properties={"n": str(i)})
    first = consumer.receive(5000)
    consumer.acknowledge(first)
    consumer.negative_acknowledge(consumer.receive(5000))
    consumer.acknowledge(consumer.receive(5000))
    consumer.acknowledge(consumer.receive(5000))
    consumer.seek(first.message_id())
    consumer.receive(5000)
    consumer.get_last_message_id()
    consumer.unsubscribe()
    keyed = client.subscribe(topic, "keyed", consumer_type=pulsar.ConsumerType.KeyShared)
    keyed.close()
    exclusive = client.subscribe(topic, "exclusive")
    exclusive.seek(pulsar.MessageId.earliest)
    exclusive.acknowledge_cumulative(exclusive.receive(5000))
    exclusive.close()
    reader = client.create_reader(topic, pulsar.MessageId.earliest)
    reader.read_next(5000)
    reader.close()
    try:
        client.subscribe("persistent://no-such/tenant/topic", "s")
    except Exception:
        pass
    client.get_topic_partitions(topic)
    producer.close()


for name, compression in (
    ("none", pulsar.CompressionType.NONE), ("lz4", pulsar.CompressionType.LZ4),
    ("zlib", pulsar.CompressionType.ZLib), ("zstd", pulsar.CompressionType.ZSTD),
    ("snappy", pulsar.CompressionType.SNAPPY),
):
    record("batch-" + name, batch(compression))
record("single", single)
record("chunked", chunked, small=True)
record("consume", consume)
