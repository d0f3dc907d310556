"""A client at the far end of a link that the test cuts (`test_cut_network.py`): does what it is told on stdin, line by line,
and answers each line with one line of JSON."""

import json
import queue
import sys

import pulsar

PATIENCE_MS = 30_000


class Peer:
    def __init__(self, url, topic):
        self.topic = topic
        self.client = pulsar.Client(url, operation_timeout_seconds=10,
                                    logger=pulsar.ConsoleLogger(pulsar.LoggerLevel.Error))
        self.consumer = self.client.subscribe(topic, "s", pulsar.ConsumerType.Shared, consumer_name="far")
        self.open()

    def open(self):
        self.producer = self.client.create_producer(f"{self.topic}-out", producer_name="far", send_timeout_millis=PATIENCE_MS,
                                                    access_mode=pulsar.ProducerAccessMode.Exclusive)
        return "opened"

    def flood(self):
        """Asks for much at once, and takes nothing of it."""
        self.heavy = self.client.subscribe(f"{self.topic}-heavy", "s", receiver_queue_size=10_000, consumer_name="far")
        return "asked"

    def take(self, count, acknowledge=False):
        numbers = []
        for _ in range(int(count)):
            message = self.consumer.receive(PATIENCE_MS)
            numbers.append(int(message.data()))
            if acknowledge:
                self.consumer.acknowledge(message)
        return numbers

    def finish(self, count):
        return self.take(count, acknowledge=True)

    def send(self, text):
        self.producer.send(text.encode())
        return "sent"

    def send_within(self, milliseconds, text):
        results = queue.SimpleQueue()
        self.producer.send_async(text.encode(), lambda result, _: results.put(result))
        try:
            return "sent" if results.get(timeout=int(milliseconds) / 1000) == pulsar.Result.Ok else "refused"
        except queue.Empty:
            return "no answer"


def say(what):
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def main():
    peer = Peer(*sys.argv[1:])
    say("ready")
    for line in sys.stdin:
        what, *arguments = line.split()
        try:
            say(getattr(peer, what)(*arguments))
        except pulsar.PulsarException as error:
            say(f"{type(error).__name__}: {error}")


main()
