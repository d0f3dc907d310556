"""What a namespace's policies mean for clients: rates, quotas, limits, and what is made by itself."""

import itertools
import os
import time

import pulsar
import pytest

from server import Server
from support import Admin, assert_nothing, data, eventually, numbers, read, receive, send_numbers
from wire import ERROR, PRODUCER, SEND, SEND_ERROR, SEND_RECEIPT, Connection, message, payload

_numbers = itertools.count()
HOLD, EXCEPTION, NOT_ALLOWED = 7, 8, 22


class Namespace:
    def __init__(self, admin):
        self.admin = admin
        self.name = f"public/policies-{os.getpid()}-{next(_numbers)}"
        admin.put(f"/admin/v2/namespaces/{self.name}", {})

    def set(self, policy, value):
        self.admin.post(f"/admin/v2/namespaces/{self.name}/{policy}", value)

    def topic(self, name="t"):
        return f"persistent://{self.name}/{name}"

    def rest(self, topic, rest):
        return f"/admin/v2/persistent/{self.name}/{topic.rsplit('/', 1)[1]}{rest}"


@pytest.fixture
def namespace(admin):
    return Namespace(admin)


def refused_or_none(server, topic):
    with Connection(server) as connection:
        connection.send(PRODUCER, {1: topic, 2: 1, 3: 1})
        command, fields, _ = connection.next()
        return fields[2][0] if command == ERROR else None


def test_a_publish_rate_holds_back_and_refuses_nothing(client, namespace):
    namespace.set("publishRate", {"publishThrottlingRateInMsg": 40, "publishThrottlingRateInByte": -1})
    topic, free = namespace.topic(), "free-of-rates"
    consumer = client.subscribe(topic, "s")
    producer = client.create_producer(topic)
    began = time.monotonic()
    for number in range(200):
        producer.send_async(b"%d" % number, None)
    other = client.create_producer(f"persistent://public/default/{free}")
    for _ in range(50):
        other.send(b"x")
    producer.flush()
    # 200 at 40 a second, less what a bucket of a second or two gives at once
    assert time.monotonic() - began > 2, "sent faster than allowed"
    assert numbers(receive(consumer, 200)) == list(range(200))


@pytest.mark.parametrize("policy,code", [("producer_request_hold", HOLD), ("producer_exception", EXCEPTION)])
def test_a_backlog_quota_refuses_producers_until_it_is_read(server, client, admin, namespace, policy, code):
    topic = namespace.topic()
    consumer = client.subscribe(topic, "s")
    producer = client.create_producer(topic)
    for _ in range(10):
        producer.send(bytes(10_000))
    namespace.set("backlogQuota?backlogQuotaType=destination_storage", {"limitSize": 50_000, "policy": policy})
    eventually(lambda: refused_or_none(server, topic) == code, what=f"producers are refused with {code}")
    with pytest.raises((pulsar.ProducerBlockedQuotaExceededError, pulsar.ProducerBlockedQuotaExceededException, pulsar.Timeout)):
        client.create_producer(topic)
    receive(consumer, 10)
    eventually(lambda: admin.get(namespace.rest(topic, "/stats"))["subscriptions"]["s"]["msgBacklog"] == 0)
    eventually(lambda: refused_or_none(server, topic) is None, what="producers are taken again")
    client.create_producer(topic).send(b"goes on")


def test_a_quota_evicts_the_oldest_from_slow_subscriptions(tmp_path):
    """By a server that looks every second; Apache Pulsar looks every minute."""
    with_settings(tmp_path, {"backlogQuotaCheckIntervalInSeconds": "1"}, evict)


def evict(server, client):
    namespace = Namespace(Admin(server.admin_url))
    topic = namespace.topic()
    slow = client.subscribe(topic, "slow", receiver_queue_size=1)
    producer = client.create_producer(topic)
    for number in range(20):
        producer.send(b"%d " % number + bytes(10_000))
    namespace.set("backlogQuota?backlogQuotaType=destination_storage", {"limitSize": 100_000, "policy": "consumer_backlog_eviction"})
    backlog = lambda: namespace.admin.get(namespace.rest(topic, "/stats"))["subscriptions"]["slow"]["msgBacklog"]
    eventually(lambda: backlog() <= 10, what="the oldest are evicted")
    slow.close()
    again = client.subscribe(topic, "slow")
    left = backlog()
    assert left > 0
    got = [int(message.data().split()[0]) for message in receive(again, left)]
    assert got == list(range(20 - left, 20)), "what is left are the newest"


def test_idle_topics_are_deleted_where_that_is_asked_for(tmp_path):
    with_settings(tmp_path, {"brokerDeleteInactiveTopicsFrequencySeconds": "1"}, delete_idle)


def delete_idle(server, client):
    admin = Admin(server.admin_url)
    namespace = Namespace(admin)
    namespace.set("inactiveTopicPolicies", {"inactiveTopicDeleteMode": "delete_when_no_subscriptions",
                                            "maxInactiveDurationSeconds": 1, "deleteWhileInactive": True})
    idle, used = namespace.topic("idle"), namespace.topic("used")
    client.create_producer(idle).close()
    client.subscribe(used, "s").close()
    listed = lambda: admin.get(f"/admin/v2/persistent/{namespace.name}")
    eventually(lambda: listed() == [used], what="the idle topic goes, the one with a subscription stays")


@pytest.fixture(autouse=True)
def _own_servers_are_ours(request):
    if "tmp_path" in request.fixturenames and os.environ.get("SERVICE_URL"):
        pytest.skip("needs settings of its own; this server is not ours")


def with_settings(tmp_path, settings, check):
    conf = tmp_path / "broker.conf"
    conf.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    server = Server("--config", str(conf)).start()
    client = pulsar.Client(server.service_url, logger=pulsar.ConsoleLogger(pulsar.LoggerLevel.Warn))
    try:
        check(server, client)
    finally:
        client.close()
        server.close()


def test_limits_on_producers_consumers_and_subscriptions(client, namespace):
    for policy in ("maxProducersPerTopic", "maxConsumersPerTopic", "maxConsumersPerSubscription", "maxSubscriptionsPerTopic"):
        namespace.set(policy, 2)
    topic = namespace.topic()
    producers = [client.create_producer(topic) for _ in range(2)]
    with pytest.raises(pulsar.ProducerBusy):
        client.create_producer(topic)
    producers[0].close()
    client.create_producer(topic)
    consumers = [client.subscribe(topic, "s", pulsar.ConsumerType.Shared) for _ in range(2)]
    with pytest.raises(pulsar.ConsumerBusy):
        client.subscribe(topic, "s", pulsar.ConsumerType.Shared)
    for consumer in consumers:
        consumer.close()
    client.subscribe(topic, "second").close()
    with pytest.raises(pulsar.PulsarException):
        client.subscribe(topic, "third")


def test_types_of_subscriptions_can_be_switched_off(client, namespace):
    namespace.set("subscriptionTypesEnabled", ["Shared"])
    topic = namespace.topic()
    client.subscribe(topic, "s", pulsar.ConsumerType.Shared).close()
    for kind in (pulsar.ConsumerType.Exclusive, pulsar.ConsumerType.KeyShared, pulsar.ConsumerType.Failover):
        with pytest.raises(pulsar.NotAllowedError):
            client.subscribe(topic, f"s-{kind}", kind)


def test_topics_are_made_as_the_namespace_says(client, admin, namespace):
    namespace.set("autoTopicCreation", {"allowAutoTopicCreation": True, "topicType": "partitioned", "defaultNumPartitions": 3})
    topic = namespace.topic("three")
    client.create_producer(topic).send(b"x")
    assert admin.get(namespace.rest(topic, "/partitions"))["partitions"] == 3
    namespace.set("autoTopicCreation", {"allowAutoTopicCreation": False})
    with pytest.raises(pulsar.PulsarException):
        client.create_producer(namespace.topic("none"))
    assert not [name for name in admin.get(f"/admin/v2/persistent/{namespace.name}") if "none" in name]


def test_subscriptions_are_made_only_where_that_is_allowed(server, client, admin, new_client, namespace):
    topic = namespace.topic()
    client.create_producer(topic).send(b"0")
    namespace.set("autoSubscriptionCreation", {"allowAutoSubscriptionCreation": False})
    with pytest.raises(pulsar.PulsarException):
        new_client(server.service_url, operation_timeout_seconds=2).subscribe(topic, "s")
    admin.put(namespace.rest(topic, "/subscription/s"), {"ledgerId": -1, "entryId": -1})
    assert numbers(receive(client.subscribe(topic, "s"), 1)) == [0]
    # a reader's is not kept, and may be made
    assert numbers(read(client.create_reader(topic, pulsar.MessageId.earliest), 1)) == [0]


def test_too_long_a_delay_is_refused_and_nothing_else(server, client, namespace):
    namespace.set("delayedDelivery", {"active": True, "tickTime": 100, "maxDeliveryDelayInMillis": 60_000})
    topic = namespace.topic()
    consumer = client.subscribe(topic, "s", pulsar.ConsumerType.Shared)
    with Connection(server) as connection:
        connection.producer(topic)
        now = int(time.time() * 1000)
        for sequence, delay in enumerate([0, 3_600_000, 300]):
            metadata = message({1: "p", 2: sequence, 3: now, 19: now + delay})
            connection.send(SEND, {1: 1, 2: sequence}, payload(sequence, b"%d" % sequence, metadata=metadata))
        answers = [connection.next() for _ in range(3)]
        assert [answer[0] for answer in answers] == [SEND_RECEIPT, SEND_ERROR, SEND_RECEIPT]
        assert answers[1][1][3] == [NOT_ALLOWED]
    assert numbers(receive(consumer, 2)) == [0, 2]


def test_delays_can_be_switched_off(client, namespace):
    namespace.set("delayedDelivery", {"active": False, "tickTime": 1000})
    topic = namespace.topic()
    consumer = client.subscribe(topic, "s", pulsar.ConsumerType.Shared)
    client.create_producer(topic).send(b"1", deliver_at=int(time.time() * 1000) + 3_600_000)
    assert numbers(receive(consumer, 1)) == [1]


def test_kept_after_everybody_has_read(client, namespace):
    namespace.set("retention", {"retentionTimeInMinutes": -1, "retentionSizeInMB": -1})
    topic = namespace.topic()
    consumer = client.subscribe(topic, "s")
    send_numbers(client.create_producer(topic), 10)
    receive(consumer, 10)
    consumer.unsubscribe()
    assert numbers(read(client.create_reader(topic, pulsar.MessageId.earliest), 10)) == list(range(10))


def test_expired_messages_are_not_delivered(client, admin, namespace):
    topic = namespace.topic()
    consumer = client.subscribe(topic, "s", receiver_queue_size=1)
    producer = client.create_producer(topic)
    send_numbers(producer, 5)
    time.sleep(1.2)
    send_numbers(producer, 2, start=5)
    consumer.close()
    admin.post(namespace.rest(topic, "/subscription/s/expireMessages/1"))
    backlog = lambda: admin.get(namespace.rest(topic, "/stats"))["subscriptions"]["s"]["msgBacklog"]
    eventually(lambda: backlog() == 2, what="the older ones expire")
    again = client.subscribe(topic, "s")
    assert numbers(receive(again, 2)) == [5, 6]
    assert_nothing(again)


def test_dispatch_rates_hold_consumers_back(client, namespace):
    namespace.set("subscriptionDispatchRate", {"dispatchThrottlingRateInMsg": 20, "dispatchThrottlingRateInByte": -1, "ratePeriodInSecond": 1})
    topic = namespace.topic()
    client.subscribe(topic, "s").close()
    send_numbers(client.create_producer(topic), 100)
    began = time.monotonic()
    consumer = client.subscribe(topic, "s")
    assert data(receive(consumer, 100)) == [b"%d" % number for number in range(100)]
    assert time.monotonic() - began > 1.5, "delivered faster than allowed"


def test_a_quota_by_age_evicts_what_is_too_old(tmp_path):
    with_settings(tmp_path, {"backlogQuotaCheckIntervalInSeconds": "1"}, evict_by_age)


def evict_by_age(server, client):
    namespace = Namespace(Admin(server.admin_url))
    topic = namespace.topic()
    client.subscribe(topic, "slow").close()
    producer = client.create_producer(topic)
    send_numbers(producer, 10)
    namespace.set("backlogQuota?backlogQuotaType=message_age", {"limitSize": -1, "limitTime": 1, "policy": "consumer_backlog_eviction"})
    backlog = lambda: namespace.admin.get(namespace.rest(topic, "/stats"))["subscriptions"]["slow"]["msgBacklog"]
    eventually(lambda: backlog() == 0, what="what is older than a second is evicted")
    producer.send(b"10")
    assert numbers(receive(client.subscribe(topic, "slow"), 1)) == [10]


def test_a_policy_of_the_topic_goes_before_the_namespace(client, admin, namespace):
    topic = namespace.topic()
    client.create_producer(topic).close()
    namespace.set("maxProducersPerTopic", 3)
    admin.post(namespace.rest(topic, "/maxProducers"), 1)
    first = client.create_producer(topic)

    def another_is_refused():
        try:
            client.create_producer(topic).close()
            return False
        except pulsar.ProducerBusy:
            return True
    eventually(another_is_refused, what="the topic's own limit is in force")
    admin.delete(namespace.rest(topic, "/maxProducers"))
    eventually(lambda: not another_is_refused(), what="the namespace's is in force again")
    first.close()
