"""Messages that expire by themselves: nobody asks for it, and no topic need be in use.

The shortest interval at which a server looks is a minute, and that is how long this takes."""

import pulsar
import pytest

from server import Server, quiet_ports
from support import Admin, assert_nothing, data, eventually, numbers, receive, send_numbers

pytestmark = [pytest.mark.own_server, pytest.mark.timeout(180)]

# a look, the time to live, and a slow machine
SECONDS = 120
IDLE_MS = 1_000
NAMESPACE = "public/expiring"


@pytest.fixture
def server(tmp_path):
    conf = tmp_path / "broker.conf"
    conf.write_text(f"messageExpiryCheckIntervalInMinutes=1\ngemingaTopicIdleMillis={IDLE_MS}\n")
    server = Server("--config", str(conf), ports=quiet_ports()).start()
    yield server
    server.close()


def test_messages_expire_by_themselves(server, new_client):
    admin = Admin(server.admin_url)
    admin.put(f"/admin/v2/namespaces/{NAMESPACE}", {})
    admin.post(f"/admin/v2/namespaces/{NAMESPACE}/messageTTL", 5)

    def path(topic, rest):
        return f"/admin/v2/persistent/{NAMESPACE}/{topic}{rest}"

    def backlog(topic):
        return {name: subscription["msgBacklog"]
                for name, subscription in admin.get(path(topic, "/stats"))["subscriptions"].items()}

    client = new_client(server.service_url)
    # of each: one subscription that nobody reads, and one whose consumer holds what it got
    topics = {}
    for topic in ("used", "kept", "asleep"):
        name = f"persistent://{NAMESPACE}/{topic}"
        client.subscribe(name, "unread").close()
        consumer = client.subscribe(name, "held", pulsar.ConsumerType.Shared)
        topics[topic] = (client.create_producer(name), consumer)
    # a topic's own time goes before the namespace's
    admin.post(path("kept", "/messageTTL?messageTTL=3600"))
    for topic, (producer, consumer) in topics.items():
        send_numbers(producer, 10)
        assert numbers(receive(consumer, 3, ack=False)) == [0, 1, 2]
        assert backlog(topic) == {"unread": 10, "held": 10}
    for each in topics.pop("asleep"):
        each.close()

    eventually(lambda: backlog("used") == {"unread": 0, "held": 0}, SECONDS, "what is too old is gone by itself")
    # Asked for only now: the question brings it back into memory.
    eventually(lambda: backlog("asleep") == {"unread": 0, "held": 0}, 15, "and on a topic that nobody used")
    assert backlog("kept") == {"unread": 10, "held": 10}

    # a clean stop: where a cursor is when the server is killed is not promised, and expired messages may wait once more
    server.stop()
    server.start()
    client = new_client(server.service_url)
    assert backlog("used") == {"unread": 0, "held": 0}
    for topic, expected in (("used", [b"10"]), ("asleep", [b"10"]), ("kept", [b"%d" % n for n in range(11)])):
        name = f"persistent://{NAMESPACE}/{topic}"
        client.create_producer(name).send(b"10")
        consumer = client.subscribe(name, "unread")
        assert data(receive(consumer, len(expected))) == expected
        assert_nothing(consumer)
