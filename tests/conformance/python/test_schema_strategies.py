"""What each compatibility strategy lets a schema become, for records of Avro and JSON.

A required field has no default, an optional one has: what can read what follows from that."""

import itertools
import os

import pulsar
import pytest
from pulsar.schema import AvroSchema, Integer, JsonSchema, Record

_numbers = itertools.count()

BASE = {"a": Integer(required=True)}
# the second version -> its fields
STEPS = {
    "adds-optional": {**BASE, "b": Integer(required_default=True)},
    "adds-required": {**BASE, "b": Integer(required=True)},
    "drops-required": {"c": Integer(required_default=True)},
}
# Old data must be readable (backward), or new data by old readers (forward): which steps are allowed.
BACKWARD, FORWARD = {"adds-optional", "drops-required"}, {"adds-optional", "adds-required"}
ALLOWED = {
    "BACKWARD": BACKWARD, "BACKWARD_TRANSITIVE": BACKWARD, "FORWARD": FORWARD, "FORWARD_TRANSITIVE": FORWARD,
    "FULL": BACKWARD & FORWARD, "FULL_TRANSITIVE": BACKWARD & FORWARD, "ALWAYS_COMPATIBLE": set(STEPS), "ALWAYS_INCOMPATIBLE": set(),
}


def schema(kind, fields):
    return kind(type("R", (Record,), dict(fields)))


@pytest.fixture
def namespace(admin):
    def make(strategy):
        name = f"public/strategies-{os.getpid()}-{next(_numbers)}"
        admin.put(f"/admin/v2/namespaces/{name}", {})
        admin.put(f"/admin/v2/namespaces/{name}/schemaCompatibilityStrategy", strategy)
        return name
    return make


def is_taken(client, topic, definition):
    try:
        client.create_producer(topic, schema=definition).close()
        return True
    except pulsar.IncompatibleSchema:
        return False


@pytest.mark.parametrize("kind", [AvroSchema, JsonSchema], ids=["avro", "json"])
@pytest.mark.parametrize("strategy", ALLOWED)
def test_a_second_version(client, namespace, kind, strategy):
    name = namespace(strategy)
    taken = set()
    for step, fields in STEPS.items():
        topic = f"persistent://{name}/{step}"
        assert is_taken(client, topic, schema(kind, BASE))
        if is_taken(client, topic, schema(kind, fields)):
            taken.add(step)
        assert is_taken(client, topic, schema(kind, BASE)), "a known version is always taken"
    assert taken == ALLOWED[strategy]


@pytest.mark.parametrize("strategy,taken", [("BACKWARD", True), ("BACKWARD_TRANSITIVE", False)])
def test_transitive_looks_at_all_versions(client, namespace, strategy, taken):
    """The third reads what the second has always written, and the first never did."""
    topic = f"persistent://{namespace(strategy)}/t"
    first, second, third = ({"type": "record", "name": "R", "fields": fields} for fields in (
        [], [{"name": "a", "type": "int", "default": 1}], [{"name": "a", "type": "int"}]))
    for definition in (first, second):
        assert is_taken(client, topic, AvroSchema(None, schema_definition=definition))
    assert is_taken(client, topic, AvroSchema(None, schema_definition=third)) == taken


def test_a_consumer_with_an_older_version_reads_on(client, namespace):
    topic = f"persistent://{namespace('FULL')}/t"
    old = type("R", (Record,), {"a": Integer(required=True)})
    new = type("R", (Record,), {"a": Integer(required=True), "b": Integer(required_default=True)})
    consumer = client.subscribe(topic, "s", schema=AvroSchema(old))
    client.create_producer(topic, schema=AvroSchema(new)).send(new(a=1, b=2))
    client.create_producer(topic, schema=AvroSchema(old)).send(old(a=3))
    assert [consumer.receive(5000).value().a for _ in range(2)] == [1, 3]
