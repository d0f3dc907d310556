"""The protocol as crates/proto/pulsar/pulsar.proto describes it: which commands there are, and the fields of each."""

import collections
import pathlib
import re

PROTO = pathlib.Path(__file__).resolve().parents[3] / "crates/proto/pulsar/pulsar.proto"

# kind: "string", "bytes", "bool", a number's type, "enum", or "message"; `of` is the name of the enum or message
Field = collections.namedtuple("Field", "name number label kind of")
NUMBERS = {"int32", "uint32", "int64", "uint64", "double"}


def _read():
    """{message: {field name: Field}}, {type number: (name of the command, its message)}"""
    messages, enums, types, stack = {}, set(), {}, []
    for line in PROTO.read_text().splitlines():
        line = line.split("//")[0].strip()
        if opened := re.match(r"(message|enum) (\w+) \{", line):
            stack.append(opened.groups())
            (messages.setdefault(opened[2], {}) if opened[1] == "message" else enums.add(opened[2]))
        if line.endswith("}") and stack:
            stack.pop()
        elif stack == [("message", "BaseCommand"), ("enum", "Type")] and (value := re.match(r"(\w+) = (\d+);", line)):
            types[int(value[2])] = value[1]
        elif stack and (field := re.match(r"(required|optional|repeated) (\w+) (\w+) = (\d+)", line)):
            label, kind, name, number = field.groups()
            messages[stack[-1][1]][name] = (name, int(number), label, kind)
    fields = {message: {name: _field(field, messages, enums) for name, field in found.items()}
              for message, found in messages.items()}
    bodies = {field.number: field.of for field in fields["BaseCommand"].values() if field.kind == "message"}
    return fields, {number: (name, bodies[number]) for number, name in types.items()}


def _field(field, messages, enums):
    name, number, label, kind = field
    if kind in NUMBERS | {"string", "bytes", "bool"}:
        return Field(name, number, label, kind, None)
    assert kind in messages or kind in enums, f"{kind} is neither a message nor an enum"
    return Field(name, number, label, "message" if kind in messages else "enum", kind)


MESSAGES, COMMANDS = _read()
NUMBER_OF = {name: number for number, (name, _) in COMMANDS.items()}
