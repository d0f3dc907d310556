"""What functions declare of their topics, as the official client and the admin API see it."""

import json
import pathlib
import urllib.error

import pulsar
import pytest
from pulsar.schema import AvroSchema, Integer, JsonSchema, Record, String

from cli import geminga, status
from server import has_functions
from support import eventually, receive
from test_functions import fresh, name, script  # noqa: F401 (fixtures)

pytestmark = pytest.mark.skipif(not has_functions(), reason="Geminga's own functions; this server is an outside one")


class Quake(Record):
    place = String()
    size = Integer()


class Report(Record):
    text = String()


# The client that this test runs with is where the function finds Pulsar's schemas.
CODE = f"""\
import sys
sys.path.insert(0, {str(pathlib.Path(pulsar.__file__).parent.parent)!r})
from pulsar.schema import Integer, Record, String

class Quake(Record):
    place = String()
    size = Integer()

class Report(Record):
    text = String()

def process(quake):
    return Report(text="%s %d" % (quake.place, quake.size + 1))
"""


def declared(admin, topic):
    """Type and definition of a topic's schema."""
    try:
        kept = admin.get(f"/admin/v2/schemas/public/default/{topic}/schema")
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{topic} has no schema: {error}") from error
    return kept["type"], kept["data"]


@pytest.mark.parametrize("reads,writes", [("avro", "json"), ("json", "avro")])
def test_records_of_a_python_function(client, admin, fresh, topic, tmp_path, reads, writes):
    kinds = {"avro": AvroSchema, "json": JsonSchema}
    fresh("--py", script(tmp_path, CODE, "quakes.py"), "--classname", "quakes", "--output-topic", f"{topic}-out",
          "--custom-schema-inputs", json.dumps({topic: json.dumps({"schemaType": reads})}), "--schema-type", writes,
          "--input-type-class-name", "quakes.Quake", "--output-type-class-name", "quakes.Report")
    for name, kind, record in [(topic, reads, "Quake"), (f"{topic}-out", writes, "Report")]:
        eventually(lambda: declared(admin, name)[0] == kind.upper(), what=f"{name} is {kind}")
        assert json.loads(declared(admin, name)[1])["name"] == record
    consumer = client.subscribe(f"{topic}-out", "probe", schema=kinds[writes](Report),
                                initial_position=pulsar.InitialPosition.Earliest)
    producer = client.create_producer(topic, schema=kinds[reads](Quake))
    producer.send(Quake(place="Reno", size=4))
    assert [message.value().text for message in receive(consumer, 1)] == ["Reno 5"]
    with pytest.raises(pulsar.PulsarException):
        client.create_producer(topic, schema=pulsar.schema.StringSchema())


DEFINITION = '{"type":"record","name":"Report","fields":[{"name":"text","type":["null","string"],"default":null}]}'


def test_a_definition_makes_the_output_of_a_script_typed(client, admin, fresh, topic, tmp_path):
    code = script(tmp_path, """process() { printf -v out '{"text":"%s"}' "$MSG"; emit "$out"; }\n""")
    schema = {"schemaType": "json", "schemaProperties": {"schema": DEFINITION}}
    fresh("--sh", code, "--inputs", topic, "--output-topic", f"{topic}-out", "--subs-position", "Earliest",
          "--custom-schema-outputs", json.dumps({f"{topic}-out": json.dumps(schema)}))
    eventually(lambda: declared(admin, f"{topic}-out")[0] == "JSON", what="the output is JSON")
    consumer = client.subscribe(f"{topic}-out", "probe", schema=JsonSchema(Report),
                                initial_position=pulsar.InitialPosition.Earliest)
    client.create_producer(topic).send(b"small")
    assert [message.value().text for message in receive(consumer, 1)] == ["small"]


def test_a_schema_that_does_not_suit_the_topic_is_told(client, functions, fresh, topic, name, tmp_path):
    client.create_producer(f"{topic}-out", schema=AvroSchema(Quake))
    fresh("--sh", script(tmp_path, 'process() { emit "$MSG"; }\n'), "--inputs", topic, "--output-topic", f"{topic}-out",
          "--schema-type", "string")
    error = eventually(lambda: status(functions, name)["instances"][0]["status"]["error"], what="it says why")
    assert "IncompatibleSchema" in error


def test_a_schema_without_a_definition_is_refused(functions, name, topic, tmp_path):
    code = script(tmp_path, 'process() { emit "$MSG"; }\n')
    said = geminga(functions, "functions", "create", "--name", name, "--sh", code, "--inputs", topic, "--output-topic", f"{topic}-out",
                   "--schema-type", "json", code=1)
    assert "`outputSchemaType: json` is not supported" in said and "auto_publish" in said
