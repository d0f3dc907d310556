"""What the tests share: waiting on conditions, REST, and short forms for reading messages."""

import json
import time
import urllib.error
import urllib.parse
import urllib.request

import pulsar

RECEIVE_MS = 15_000
# how long the absence of a message is watched where no later message can prove it
NOTHING_MS = 400


def eventually(condition, seconds=15, what=None):
    """Waits until `condition()` is true (and returns what it gave); an AssertionError inside it means not yet."""
    until = time.monotonic() + seconds
    wait = 0.005
    while True:
        problem = None
        try:
            result = condition()
            if result:
                return result
        except AssertionError as error:
            problem = error
        if time.monotonic() > until:
            raise AssertionError(f"not within {seconds} s: {what or problem or 'condition is false'}")
        time.sleep(wait)
        wait = min(wait * 1.5, 0.1)


class Admin:
    """The REST API, as plainly as possible. A refusal is an `urllib.error.HTTPError`."""

    def __init__(self, url):
        self.url = url

    def call(self, method, path, body=None, kind="application/json", raw=False):
        data = None
        if body is not None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method, headers={"Content-Type": kind})
        with urllib.request.urlopen(request, timeout=15) as answer:
            content = answer.read()
        if raw or not content:
            return content
        return json.loads(content)

    def get(self, path, **how):
        return self.call("GET", path, **how)

    def put(self, path, body=None, **how):
        return self.call("PUT", path, body, **how)

    def post(self, path, body=None, **how):
        return self.call("POST", path, body, **how)

    def delete(self, path, **how):
        return self.call("DELETE", path, **how)

    def status(self, method, path, body=None):
        """The HTTP status only."""
        try:
            self.call(method, path, body, raw=True)
            return 200
        except urllib.error.HTTPError as error:
            return error.code

    def topic(self, topic, rest=""):
        return f"/admin/v2/persistent/public/default/{urllib.parse.quote(topic, safe='')}{rest}"

    def create_partitioned(self, topic, partitions):
        self.put(self.topic(topic, "/partitions"), partitions)

    def stats(self, topic):
        return self.get(self.topic(topic, "/stats"))

    def backlog(self, topic, subscription):
        return self.stats(topic)["subscriptions"][subscription]["msgBacklog"]

    def subscriptions(self, topic):
        return sorted(self.get(self.topic(topic, "/subscriptions")))


def receive(consumer, count, ack=True, timeout=RECEIVE_MS):
    messages = []
    for _ in range(count):
        try:
            message = consumer.receive(timeout)
        except pulsar.Timeout:
            raise AssertionError(f"{len(messages)} of {count} messages came, the last was "
                                 f"{messages[-1].data()[:40] if messages else None}") from None
        if ack:
            consumer.acknowledge(message)
        messages.append(message)
    return messages


def read(reader, count):
    return [reader.read_next(RECEIVE_MS) for _ in range(count)]


def data(messages):
    return [message.data() for message in messages]


def numbers(messages):
    return [int(message.data()) for message in messages]


def send_numbers(producer, count, start=0, **options):
    """Durable when it returns: every send was acknowledged. The ids in order."""
    results = []
    for number in range(start, start + count):
        producer.send_async(b"%d" % number, lambda result, message_id: results.append((result, message_id)), **options)
    producer.flush()
    # flush can return a moment before the last callback has run
    eventually(lambda: len(results) == count, what="callbacks")
    assert {result for result, _ in results} == {pulsar.Result.Ok}
    return [message_id for _, message_id in results]


def assert_nothing(consumer, timeout=NOTHING_MS):
    try:
        message = consumer.receive(timeout)
    except pulsar.Timeout:
        return
    raise AssertionError(f"unexpected message {message.data()[:60]} {message.message_id()}")


def drain(consumers, count, seconds=20):
    """Receives from all consumers in turn until `count` messages came; [(index of the consumer, message)] in the order of arrival.
    Nothing is acknowledged."""
    got, until, wait = [], time.monotonic() + seconds, 1
    while len(got) < count:
        if time.monotonic() > until:
            raise AssertionError(f"{len(got)} of {count} messages in {seconds} s")
        before = len(got)
        for index, consumer in enumerate(consumers):
            try:
                got.append((index, consumer.receive(wait)))
            except pulsar.Timeout:
                pass
        # turn and turn about while messages flow; patient when there are none
        wait = 1 if len(got) > before else min(wait * 2, 50)
    return got


def order(message_id):
    return (message_id.ledger_id(), message_id.entry_id(), message_id.batch_index())
