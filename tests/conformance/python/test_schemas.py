"""Schemas: kept by the broker, checked, given to clients."""

import json

import pulsar
import pytest
from pulsar.schema import AvroSchema, Boolean, BytesSchema, Float, Integer, JsonSchema, Record, String, StringSchema

from support import read, receive


class Quake(Record):
    place = String(required=True)
    magnitude = Float(default=0.0)
    felt = Integer()


class Stronger(Record):
    _avro_namespace = None
    place = Integer(required=True)
    depth = String(required=True)


def records(kind):
    return {"Avro": AvroSchema, "Json": JsonSchema}[kind](Quake)


@pytest.mark.parametrize("kind", ["Json", "Avro"])
def test_records(client, topic, kind):
    consumer = client.subscribe(topic, "s", schema=records(kind))
    producer = client.create_producer(topic, schema=records(kind))
    for n in range(10):
        producer.send(Quake(place=f"ort {n}", magnitude=n + 0.5, felt=n))
    for n, message in enumerate(receive(consumer, 10)):
        assert (message.value().place, message.value().magnitude, message.value().felt) == (f"ort {n}", n + 0.5, n)
        assert message.schema_version() == "0" or int.from_bytes(message.schema_version().encode(), "big") == 0


def test_strings(client, topic):
    consumer = client.subscribe(topic, "s", schema=StringSchema())
    client.create_producer(topic, schema=StringSchema()).send("grün")
    assert receive(consumer, 1)[0].value() == "grün"


@pytest.mark.parametrize("kind", ["Json", "Avro"])
def test_the_definition_is_kept(client, admin, topic, kind):
    client.create_producer(topic, schema=records(kind))
    kept = admin.get(f"/admin/v2/schemas/public/default/{topic}/schema")
    assert (kept["version"], kept["type"]) == (0, kind.upper())
    fields = {field["name"] for field in json.loads(kept["data"])["fields"]}
    assert fields == {"place", "magnitude", "felt"}


def test_the_same_schema_is_one_version(client, admin, topic):
    for _ in range(3):
        client.create_producer(topic, schema=records("Avro")).send(Quake(place="x"))
    assert len(admin.get(f"/admin/v2/schemas/public/default/{topic}/schemas")["getSchemaResponses"]) == 1


def test_a_compatible_change_is_a_new_version(client, admin, topic):
    class Quake(Record):                     # the same name, one optional field more
        place = String(required=True)
        magnitude = Float(default=0.0)
        felt = Integer()
        source = String(required_default=True)
    old = client.create_producer(topic, schema=records("Avro"))
    old.send(globals()["Quake"](place="old"))
    new = client.create_producer(topic, schema=AvroSchema(Quake))
    new.send(Quake(place="new", source="usgs"))
    assert admin.get(f"/admin/v2/schemas/public/default/{topic}/schema")["version"] == 1
    reader = client.create_reader(topic, pulsar.MessageId.earliest, schema=AvroSchema(Quake))
    messages = read(reader, 2)
    assert [m.schema_version() for m in messages][0] != [m.schema_version() for m in messages][1]
    assert [m.value().place for m in messages] == ["old", "new"]


def test_an_incompatible_change_is_refused(client, topic):
    client.create_producer(topic, schema=records("Avro")).send(Quake(place="x"))
    with pytest.raises(pulsar.IncompatibleSchema):
        client.create_producer(topic, schema=AvroSchema(Stronger))
    with pytest.raises(pulsar.IncompatibleSchema):
        client.subscribe(topic, "s", schema=AvroSchema(Stronger))


def test_another_type_is_refused(client, topic):
    client.create_producer(topic, schema=StringSchema()).send("x")
    with pytest.raises(pulsar.IncompatibleSchema):
        client.create_producer(topic, schema=records("Json"))


def test_bytes_are_let_through(client, topic):
    client.create_producer(topic, schema=StringSchema()).send("a")
    client.create_producer(topic, schema=BytesSchema()).send(b"b")
    assert [m.data() for m in read(client.create_reader(topic, pulsar.MessageId.earliest), 2)] == [b"a", b"b"]


def test_schema_of_a_consumer_counts(client, admin, topic):
    client.subscribe(topic, "s", schema=records("Json"))
    assert admin.get(f"/admin/v2/schemas/public/default/{topic}/schema")["type"] == "JSON"
    with pytest.raises(pulsar.IncompatibleSchema):
        client.create_producer(topic, schema=StringSchema())


def test_partitions_share_a_schema(client, admin, topic):
    admin.create_partitioned(topic, 2)
    client.create_producer(f"{topic}-partition-0", schema=StringSchema())
    with pytest.raises(pulsar.IncompatibleSchema):
        client.create_producer(f"{topic}-partition-1", schema=records("Json"))
    assert admin.get(f"/admin/v2/schemas/public/default/{topic}/schema")["type"] == "STRING"


def test_nested_records(client, topic):
    class Place(Record):
        name = String()
        inhabited = Boolean()

    class Event(Record):
        place = Place()
        count = Integer()
    producer = client.create_producer(topic, schema=AvroSchema(Event))
    producer.send(Event(place=Place(name="Milano", inhabited=True), count=3))
    reader = client.create_reader(topic, pulsar.MessageId.earliest, schema=AvroSchema(Event))
    value = read(reader, 1)[0].value()
    assert (value.place.name, value.place.inhabited, value.count) == ("Milano", True, 3)


def test_key_values_are_compared_by_halves(admin, topic):
    at = f"/admin/v2/schemas/public/default/{topic}/"
    half = {"int": '{"type":"record","name":"R","fields":[{"name":"x","type":"int"}]}',
            "string": '{"type":"record","name":"R","fields":[{"name":"x","type":"string"}]}'}

    def given(key, value):
        return {"type": "KEY_VALUE", "schema": json.dumps({"key": json.loads(half[key]), "value": json.loads(half[value])}),
                "properties": {"key.schema.name": "k", "key.schema.type": "AVRO", "key.schema.properties": "{}",
                               "value.schema.name": "v", "value.schema.type": "AVRO", "value.schema.properties": "{}",
                               "kv.encoding.type": "INLINE"}}
    assert admin.status("POST", at + "schema", given("int", "int")) == 200
    assert admin.status("POST", at + "schema", given("int", "int")) == 200
    assert admin.status("POST", at + "schema", given("string", "int")) == 409
    assert admin.status("POST", at + "schema", given("int", "string")) == 409


def test_a_deletion_is_a_version_and_force_forgets(admin, topic):
    at = f"/admin/v2/schemas/public/default/{topic}/"
    schema = {"type": "STRING", "schema": "", "properties": {}}
    other = {"type": "AVRO", "schema": '{"type":"record","name":"R","fields":[]}', "properties": {}}
    assert json.loads(admin.call("POST", at + "schema", schema, raw=True)) == {"version": {"version": 0}}
    assert json.loads(admin.call("DELETE", at + "schema", raw=True)) == {"version": 1}
    assert admin.status("GET", at + "schema") == 404
    assert json.loads(admin.call("POST", at + "schema", other, raw=True)) == {"version": {"version": 2}}
    admin.call("DELETE", at + "schema?force=true")
    assert json.loads(admin.call("POST", at + "schema", schema, raw=True)) == {"version": {"version": 0}}


def test_versions_survive_kill_9(own_server, seed):
    """Random numbers of versions of some topics; each that was answered is there after the kill."""
    import random

    from support import Admin
    chance = random.Random(seed)
    known = {}
    for _ in range(4):
        admin = Admin(own_server.admin_url)
        for _ in range(chance.randrange(5, 25)):
            name = f"t{chance.randrange(3)}"
            versions = known.setdefault(name, [])
            fields = [{"name": f"f{n}", "type": "int", "default": 0} for n in range(len(versions) + 1)]
            definition = json.dumps({"type": "record", "name": "R", "fields": fields})
            answer = admin.call("POST", f"/admin/v2/schemas/public/default/{name}/schema",
                                {"type": "AVRO", "schema": definition, "properties": {}}, raw=True)
            assert json.loads(answer) == {"version": {"version": len(versions)}}, (seed, name)
            versions.append(definition)
        own_server.restart()
        admin = Admin(own_server.admin_url)
        for name, versions in known.items():
            kept = admin.get(f"/admin/v2/schemas/public/default/{name}/schemas")["getSchemaResponses"]
            assert [json.loads(one["data"]) for one in kept] == [json.loads(one) for one in versions], (seed, name)
