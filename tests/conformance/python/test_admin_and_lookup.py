"""What clients ask over HTTP, and the part of the admin API that these tests and everyday scripts need."""

import re
import urllib.error

import pulsar
import pytest
from pulsar.schema import StringSchema

from support import eventually, numbers, receive, send_numbers


def test_client_with_an_http_service_url(server, new_client, admin, topic):
    client = new_client(server.admin_url)
    consumer = client.subscribe(topic, "s")
    send_numbers(client.create_producer(topic), 10)
    assert numbers(receive(consumer, 10)) == list(range(10))
    admin.create_partitioned(f"{topic}-p", 3)
    assert len(client.get_topic_partitions(f"{topic}-p")) == 3
    pattern = client.subscribe(re.compile(f"persistent://public/default/{topic}.*"), "all",
                               initial_position=pulsar.InitialPosition.Earliest)
    assert sorted(numbers(receive(pattern, 10))) == list(range(10))
    typed = client.create_producer(f"{topic}-typed", schema=StringSchema())
    typed.send("x")
    assert receive(client.subscribe(f"{topic}-typed", "s", schema=StringSchema(),
                                    initial_position=pulsar.InitialPosition.Earliest), 1)[0].value() == "x"


def test_lookup(server, admin, topic):
    found = admin.get(f"/lookup/v2/topic/persistent/public/default/{topic}")
    assert found["brokerUrl"].startswith("pulsar://")
    assert found["httpUrl"].startswith("http://")


def test_what_is_there_at_the_start(admin):
    assert "public" in admin.get("/admin/v2/tenants")
    assert "public/default" in admin.get("/admin/v2/namespaces/public")
    assert "standalone" in admin.get("/admin/v2/clusters")
    assert admin.call("GET", "/admin/v2/brokers/health", raw=True) == b"ok"
    assert admin.call("GET", "/admin/v2/brokers/version", raw=True)


def test_topics_are_listed(client, admin, topic):
    client.create_producer(topic)
    admin.create_partitioned(f"{topic}-p", 2)
    listed = admin.get("/admin/v2/persistent/public/default")
    assert f"persistent://public/default/{topic}" in listed
    assert f"persistent://public/default/{topic}-p-partition-0" in listed
    assert f"persistent://public/default/{topic}-p" in admin.get("/admin/v2/persistent/public/default/partitioned")
    assert f"persistent://public/default/{topic}" in admin.get("/admin/v2/namespaces/public/default/topics")


def test_topic_by_rest(admin, topic):
    admin.put(admin.topic(topic))
    assert admin.status("PUT", admin.topic(topic)) == 409
    assert admin.stats(topic)["subscriptions"] == {}
    admin.delete(admin.topic(topic))
    assert admin.status("GET", admin.topic(topic, "/stats")) == 404
    assert admin.status("DELETE", admin.topic(topic)) == 404


def test_a_topic_in_use_is_not_deleted_without_force(client, admin, topic):
    consumer = client.subscribe(topic, "s")
    assert admin.status("DELETE", admin.topic(topic)) == 412
    consumer.close()
    assert admin.status("DELETE", admin.topic(topic, "?force=true")) in (200, 204)
    assert admin.status("GET", admin.topic(topic, "/stats")) == 404


def test_stats(client, admin, topic):
    consumer = client.subscribe(topic, "s", pulsar.ConsumerType.Shared, consumer_name="me")
    producer = client.create_producer(topic, producer_name=f"{topic}-p")
    send_numbers(producer, 10)
    receive(consumer, 4)
    eventually(lambda: admin.backlog(topic, "s") == 6)
    stats = admin.stats(topic)
    assert stats["msgInCounter"] == 10
    assert stats["bytesInCounter"] > 0 and stats["storageSize"] > 0
    assert [p["producerName"] for p in stats["publishers"]] == [f"{topic}-p"]
    subscription = stats["subscriptions"]["s"]
    assert subscription["type"] == "Shared"
    assert [c["consumerName"] for c in subscription["consumers"]] == ["me"]
    assert subscription["msgOutCounter"] == 10


def test_stats_of_a_missing_topic(admin, topic):
    with pytest.raises(urllib.error.HTTPError) as refused:
        admin.stats(topic)
    assert refused.value.code == 404
    assert b"reason" in refused.value.read()


def test_subscriptions_by_rest(client, admin, topic):
    producer = client.create_producer(topic)
    ids = send_numbers(producer, 10)
    path = admin.topic(topic, "/subscription/")
    earliest = {"ledgerId": -1, "entryId": -1, "partitionIndex": -1}
    admin.put(path + "early", earliest)
    admin.put(path + "late", {"ledgerId": 2**63 - 1, "entryId": 2**63 - 1, "partitionIndex": -1})
    admin.put(path + "middle", {"ledgerId": ids[4].ledger_id(), "entryId": ids[4].entry_id(), "partitionIndex": -1})
    assert admin.status("PUT", path + "early", earliest) == 409
    assert admin.subscriptions(topic) == ["early", "late", "middle"]
    assert admin.backlog(topic, "early") == 10 and admin.backlog(topic, "late") == 0
    assert numbers(receive(client.subscribe(topic, "early"), 10)) == list(range(10))
    admin.delete(path + "late")
    assert admin.subscriptions(topic) == ["early", "middle"]
    assert admin.status("DELETE", path + "late") == 404


def test_skipping_and_resetting_by_rest(client, admin, topic):
    consumer = client.subscribe(topic, "s")
    ids = send_numbers(client.create_producer(topic), 20)
    consumer.close()
    path = admin.topic(topic, "/subscription/s")
    admin.post(path + "/skip/5")
    assert admin.backlog(topic, "s") == 15
    admin.post(path + "/skip_all")
    assert admin.backlog(topic, "s") == 0
    admin.post(path + "/resetcursor", {"ledgerId": ids[12].ledger_id(), "entryId": ids[12].entry_id(), "partitionIndex": -1})
    assert admin.backlog(topic, "s") == 8
    admin.post(path + "/resetcursor/0")
    assert numbers(receive(client.subscribe(topic, "s"), 20)) == list(range(20))


def test_namespaces_and_tenants_by_rest(client, admin, topic):
    tenant = re.sub(r"\W", "", topic)[-40:]
    admin.put(f"/admin/v2/tenants/{tenant}", {"adminRoles": [], "allowedClusters": ["standalone"]})
    admin.put(f"/admin/v2/namespaces/{tenant}/ns")
    assert admin.get(f"/admin/v2/namespaces/{tenant}") == [f"{tenant}/ns"]
    producer = client.create_producer(f"persistent://{tenant}/ns/t")
    producer.send(b"1")
    consumer = client.subscribe(f"persistent://{tenant}/ns/t", "s", initial_position=pulsar.InitialPosition.Earliest)
    assert numbers(receive(consumer, 1)) == [1]
    assert admin.status("PUT", f"/admin/v2/namespaces/{tenant}/ns") == 409
    assert admin.status("DELETE", f"/admin/v2/tenants/{tenant}") in (409, 412)


def test_terminated_topic(client, admin, topic):
    producer = client.create_producer(topic)
    ids = send_numbers(producer, 3)
    last = admin.post(admin.topic(topic, "/terminate"))
    assert (last["ledgerId"], last["entryId"]) == (ids[-1].ledger_id(), ids[-1].entry_id())
    with pytest.raises(pulsar.PulsarException):
        client.create_producer(topic)
    consumer = client.subscribe(topic, "s", initial_position=pulsar.InitialPosition.Earliest)
    assert numbers(receive(consumer, 3)) == [0, 1, 2]


def test_metrics(client, admin, topic):
    send_numbers(client.create_producer(topic), 3)
    text = admin.call("GET", "/metrics", raw=True).decode()
    assert re.search(r"^# TYPE \w+ \w+$", text, re.M)
    assert re.search(r"^\w+(\{[^}]*\})? [0-9.eE+-]+", text, re.M)


def test_unknown_paths_are_404(admin):
    assert admin.status("GET", "/admin/v2/nonsense") == 404
    assert admin.status("GET", "/admin/v2/persistent/public/nowhere") == 404
