#!/usr/bin/env python3
"""Measures each runtime with the same function (it puts `!` behind the message), and prints a table.

    bench/functions/run.py                            all languages on Geminga (about 5 minutes)
    bench/functions/run.py --languages go,java --what cold,rate
    bench/functions/run.py --pulsar DISTRIBUTION --runtime thread --languages java
                                                      the same on a Pulsar (bench/pulsar-dist.sh assembles one)
    bench/functions/run.py --quick                    short runs, to see that all of it works
    bench/functions/run.py --markdown FILE            keeps the figures (figures.json), and writes all that are kept into FILE

Needs what the languages need: Bash, Python 3, Go, a JDK; WASM is a component by text. What is measured:
  cold     one message waits; from the POST that creates the function until its output arrives (median of five)
  rate     a backlog of 100-byte messages through one instance: outputs stored a second (median of --rounds)
  e2e      1,000 messages a second by a socket: from the send of a message to the arrival of its output
  once     the rate with either guarantee, ATLEAST_ONCE and EFFECTIVELY_ONCE, in turns: what the second costs
  memory   the function's processes after one message and a second of rest: proportional (PSS), resident beside it;
           a WASM function and one in a thread have none: many.py measures the first
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import machine  # noqa: E402
from servers import ROOT, Geminga, GemingaPerf, Pulsar  # noqa: E402
from workloads import full_name, look_up, messages_in, multipart, prepare_input, wire  # noqa: E402

GO = """package main

import "github.com/apache/pulsar/pulsar-function-go/pf"

func main() { pf.Start(func(in []byte) ([]byte, error) { return append(in, '!'), nil }) }
"""
JAVA = """public class Bang implements java.util.function.Function<String, String> {
    public String apply(String in) { return in + "!"; }
}
"""
PYTHON = "def process(input):\n    return '%s!' % input\n"
BASH = 'process() { emit "$MSG!"; }\n'

FIGURES = HERE / "figures.json"
# messages of the rate, and the aims: cold ms, rate, e2e ms above two durable sends, memory MiB
LANGUAGES = {
    "bash": (150_000, (30, 15_000, 1.0, 3)),
    "python": (1_000_000, (120, 150_000, 0.5, 12)),
    "go": (1_000_000, (50, 250_000, 0.5, 8)),
    "java": (1_000_000, (400, 200_000, 0.5, 60)),
    "wasm": (1_000_000, (10, 300_000, 0.3, 0.2)),
}


def build(folder):
    """The code of each language, as it is uploaded: compilers are no part of a start."""
    code = {"bash": ("bang.sh", BASH.encode()), "python": ("bang.py", PYTHON.encode()),
            "wasm": ("bang.wat", (HERE / "bang.wat").read_bytes())}
    source = os.path.join(folder, "java")
    os.makedirs(source)
    with open(f"{source}/Bang.java", "w") as file:
        file.write(JAVA)
    subprocess.run(["javac", "--release", "11", "-d", source, f"{source}/Bang.java"], check=True)
    subprocess.run(["jar", "cf", f"{folder}/bang.jar", "-C", source, "Bang.class"], check=True)
    with open(f"{folder}/bang.jar", "rb") as jar:
        code["java"] = ("bang.jar", jar.read())
    source = os.path.join(folder, "go")
    os.makedirs(source)
    with open(f"{source}/main.go", "w") as file:
        file.write(GO)
    with open(f"{source}/go.mod", "w") as file:
        file.write(f"module bang\n\ngo 1.24.0\n\nrequire github.com/apache/pulsar/pulsar-function-go v0.0.0\n"
                   f"replace github.com/apache/pulsar/pulsar-function-go => {ROOT}/sdk/go\n"
                   # as Geminga builds it: the types of Pulsar's client, without the client
                   f"replace github.com/apache/pulsar-client-go => {ROOT}/sdk/go/wasip1/pulsar-client-go\n")
    subprocess.run(["cp", f"{ROOT}/sdk/go/go.sum", source], check=True)
    subprocess.run(["go", "build", "-mod=mod", "-trimpath", "-ldflags=-s -w", "-o", f"{folder}/bang", "."], cwd=source,
                   env={**os.environ, "CGO_ENABLED": "0", "GOWORK": "off"}, check=True)
    with open(f"{folder}/bang", "rb") as program:
        code["go"] = ("bang", program.read())
    return code


@contextlib.contextmanager
def function(system, language, code, name, **more):
    """A function from its creation by REST until the block ends."""
    filename, content = code[language]
    config = {"tenant": "public", "namespace": "default", "name": name, "inputs": [name], "output": f"{name}-out", "autoAck": True,
              "subscriptionPosition": "Earliest", "producerConfig": {"compressionType": "NONE"}, **more, **{
                  "bash": {"runtime": "BASH", "sh": filename},
                  "python": {"runtime": "PYTHON", "py": filename, "className": "bang"},
                  "go": {"runtime": "GO", "go": filename},
                  "wasm": {"runtime": "WASM", "wasm": filename},
                  "java": {"runtime": "JAVA", "jar": filename, "className": "Bang"},
              }[language]}
    body, kind = multipart([("functionConfig", None, "application/json", json.dumps(config).encode()),
                            ("data", filename, "application/octet-stream", content)])
    path = f"/admin/v3/functions/public/default/{name}"
    try:
        system.rest("POST", path, body, kind=kind, timeout=120)
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{language}: {error.code} {error.read().decode(errors='replace')[:300]}") from None
    try:
        yield
    finally:
        system.rest("DELETE", path, timeout=120)


def await_message(connection):
    while connection.next()[0] != wire.MESSAGE:
        pass


def prepared(system, language, name):
    """A connection that publishes into the input and is sent the outputs."""
    connection = wire.Connection(system, seconds=120)
    look_up(connection, name)
    look_up(connection, f"{name}-out")
    prepare_input(system, name, language)
    connection.subscribe(full_name(f"{name}-out"), "s", consumer_id=1, request=1)
    connection.producer(full_name(name), producer_id=1, request=2)
    connection.send(wire.FLOW, {1: 1, 2: 1_000_000})
    return connection


def cold(system, language, code, stem, runs):
    times = []
    for number in range(runs):
        name = f"{stem}-cold-{language}-{number}"
        with prepared(system, language, name) as connection:
            connection.publish(b"x")
            began = time.monotonic()
            with function(system, language, code, name):
                await_message(connection)
                times.append((time.monotonic() - began) * 1000)
    return round(statistics.median(times), 1)


def children_of(system, before):
    return [pid for pid in machine.tree(system.pid) if pid not in before]


def idle_memory(system, language, code, stem):
    name = f"{stem}-idle-{language}"
    before = set(machine.tree(system.pid))
    with prepared(system, language, name) as connection:
        with function(system, language, code, name):
            connection.publish(b"x")
            await_message(connection)
            time.sleep(1)
            rss = pss = 0
            for pid in children_of(system, before):
                try:
                    with open(f"/proc/{pid}/smaps_rollup") as rollup:
                        for line in rollup:
                            rss += int(line.split()[1]) if line.startswith("Rss:") else 0
                            pss += int(line.split()[1]) if line.startswith("Pss:") else 0
                except OSError:
                    pass
    return round(pss / 1024, 1), round(rss / 1024, 1)


def once(system, language, code, stem, geminga, messages, rounds):
    """Rates with either guarantee, the medians of turns, and what the second costs of the first in percent."""
    rates = {"ATLEAST_ONCE": [], "EFFECTIVELY_ONCE": []}
    for number in range(rounds):
        for guarantee, measured in rates.items():
            name = f"{stem}-{number}-{guarantee.lower().replace('_', '-')}"
            measured.append(rate(system, language, code, name, geminga, messages, processingGuarantees=guarantee, retainOrdering=True))
    least, exactly = (statistics.median(measured) for measured in rates.values())
    return round(least), round(exactly), round(100 * (1 - exactly / least), 1)


def rate(system, language, code, stem, geminga, messages, **more):
    name = f"{stem}-rate-{language}"
    prepare_input(system, name, language)
    GemingaPerf(system, geminga, "produce", name, "--count", messages, "--size", 100, "--window", 20_000).result()
    points = []
    with function(system, language, code, name, **more):
        until = time.monotonic() + 120
        while time.monotonic() < until:
            done = messages_in(system, f"{name}-out")
            points.append((time.monotonic(), done))
            if done >= messages:
                break
            time.sleep(0.05)
    first = next((point for point in points if point[1] > 0), points[-1])
    last = next((point for point in points if point[1] >= points[-1][1]), points[-1])
    return round((last[1] - first[1]) / max(1e-9, last[0] - first[0]))


def end_to_end(system, language, code, stem, seconds, per_second=1000):
    """Latencies of the second half, when compilers and caches have settled."""
    name = f"{stem}-e2e-{language}"
    count = seconds * per_second
    sent, got = [0.0] * count, [0.0] * count
    with prepared(system, language, name) as outputs, wire.Connection(system, seconds=60) as inputs:
        inputs.producer(full_name(name), producer_id=2, request=3)
        with function(system, language, code, name):
            # The first one says that it runs.
            outputs.publish(b"99999999" + b"x" * 92)
            await_message(outputs)

            def drain():
                seen = 0
                while seen < count:
                    command, _, payload = (*outputs.next(), b"", b"")[:3]
                    if command != wire.MESSAGE:
                        continue
                    now = time.perf_counter()
                    for number in numbers(payload, count):
                        got[number] = now
                        seen += 1

            reader = threading.Thread(target=drain, daemon=True)
            reader.start()
            began = time.perf_counter()
            for number in range(count):
                wait = began + number / per_second - time.perf_counter()
                if wait > 0:
                    time.sleep(wait)
                sent[number] = time.perf_counter()
                inputs.raw(wire.frame(wire.SEND, {1: 2, 2: number}, wire.payload(number, b"%08d" % number + b"x" * 92)))
            reader.join(30)
    spans = [(got[n] - sent[n]) * 1000 for n in range(count // 2, count) if got[n]]
    if len(spans) < count // 2:
        raise SystemExit(f"{language}: {len(spans)} of {count // 2} outputs arrived")
    return round(machine.quantile(spans, 0.5), 3), round(machine.quantile(spans, 0.99), 3)


def numbers(payload, count):
    """The numbers of the messages in an entry, batched or not."""
    at = 0
    while True:
        end = payload.find(b"xxxxxxxx", at)
        if end < 8:
            return
        digits = payload[end - 8:end]
        if digits.isdigit() and int(digits) < count:
            yield int(digits)
        at = payload.find(b"!", end)
        if at < 0:
            return


def durable_send(system, stem):
    sends = []
    with wire.Connection(system, seconds=60) as connection:
        look_up(connection, f"{stem}-send")
        connection.producer(full_name(f"{stem}-send"))
        for number in range(600):
            began = time.perf_counter()
            connection.raw(wire.frame(wire.SEND, {1: 1, 2: number}, wire.payload(number, b"x" * 100)))
            connection.expect(wire.SEND_RECEIPT)
            if number >= 100:
                sends.append((time.perf_counter() - began) * 1000)
    return round(machine.quantile(sends, 0.5), 3)


def measure(system, options, code):
    """For each language what was asked for."""
    what, stem = options.what.split(","), f"f{os.getpid()}"
    for language in options.languages.split(","):
        messages = LANGUAGES[language][0] // (10 if options.quick else 1)
        # Beside what it is taken from: the disk has its hours.
        send = durable_send(system, f"{stem}-{language}")
        found = {}
        if "cold" in what:
            found["cold"] = cold(system, language, code, stem, 3 if options.quick else 5)
        if "memory" in what and language != "wasm" and not (options.pulsar and options.runtime == "thread"):
            found["memory"] = idle_memory(system, language, code, stem)
        if "e2e" in what:
            p50, p99 = end_to_end(system, language, code, stem, 4 if options.quick else 10)
            found["e2e"] = {"p50": p50, "p99": p99, "above": round(p50 - 2 * send, 3)}
        if "rate" in what:
            rates = [rate(system, language, code, f"{stem}-{n}", options.geminga, messages) for n in range(options.rounds)]
            found["rate"] = {"median": round(statistics.median(rates)), "all": rates}
        if "once" in what:
            found["once"] = once(system, language, code, stem, options.geminga, messages, options.rounds)
        print(f"{language}: {json.dumps(found)}", file=sys.stderr, flush=True)
        yield language, found


def table(kept):
    """Everything that is kept, a row for each runtime of each system."""
    lines = [f"- {name}: {system['how']}" for name, system in kept.items()]
    lines += ["", "| runtime | on | cold start, ms | in to out, /s | end to end at 1k/s p50, p99, ms | p50 above two durable sends | memory, MiB | "
              "effectively once costs |", "|---|---|---:|---:|---:|---:|---:|---:|"]
    for language, (_, (cold_ms, per_second, above, mib)) in LANGUAGES.items():
        lines.append(f"| {language} | _aim_ | ≤ {cold_ms} | ≥ {per_second:,} | | ≤ {above} | ≤ {mib} | ≤ 30 % |")
        for name, system in kept.items():
            found = system["languages"].get(language)
            if found:
                lines.append(f"| | {name} | " + " | ".join(cells(found)) + " |")
    return "\n".join(lines) + "\n"


def cells(found):
    e2e, rates, memory, both = (found.get(key) for key in ("e2e", "rate", "memory", "once"))
    return [str(found.get("cold", "")),
            f"{rates['median']:,} ({min(rates['all']):,} to {max(rates['all']):,})" if rates else "",
            f"{e2e['p50']}, {e2e['p99']}" if e2e else "",
            f"{e2e['above']}" if e2e else "",
            f"{memory[0]}" if memory else "",
            f"{both[2]} % ({both[0]:,} to {both[1]:,}/s)" if both else ""]


def write_into(path, text):
    """Between the marks."""
    begin, end = "<!-- functions -->\n", "<!-- end of functions -->\n"
    before, rest = pathlib.Path(path).read_text().split(begin, 1)
    pathlib.Path(path).write_text(before + begin + "\n" + text + "\n" + end + rest.split(end, 1)[1])


def main():
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--languages", default=",".join(LANGUAGES))
    parse.add_argument("--geminga", default=str(ROOT / "target/release/geminga"))
    parse.add_argument("--pulsar", metavar="DISTRIBUTION", help="measure an Apache Pulsar instead")
    parse.add_argument("--runtime", choices=["process", "thread"], default="process", help="where Pulsar runs instances")
    parse.add_argument("--durability", default="fsync")
    parse.add_argument("--rounds", type=int, default=3, help="turns of `rate` and `once`")
    parse.add_argument("--quick", action="store_true")
    parse.add_argument("--what", default="cold,rate,e2e,memory,once")
    parse.add_argument("--markdown", metavar="FILE")
    options = parse.parse_args()
    if options.markdown and options.quick:
        sys.exit("error: --markdown: the table holds figures of the full size; leave --quick out")
    with tempfile.TemporaryDirectory(prefix="geminga-bench-") as folder:
        code = build(folder)
        if options.pulsar:
            system = Pulsar(folder, options.pulsar, "no fsync", options.runtime)
            name = f"Pulsar, {options.runtime}"
        else:
            system = Geminga(folder, options.geminga, options.durability)
            name = "Geminga"
        system.start()
        try:
            how = f"{system.version()}, {system.durability}, {time.strftime('%Y-%m-%d')}, {os.cpu_count()} processors"
            kept = json.loads(FIGURES.read_text()) if options.markdown and FIGURES.exists() else {}
            mine = kept.setdefault(name, {"how": how, "languages": {}})
            mine["how"] = how
            for language, found in measure(system, options, code):
                mine["languages"].setdefault(language, {}).update(found)
                if options.markdown:
                    # Each as it comes: a later one may fail.
                    FIGURES.write_text(json.dumps(kept, indent=1) + "\n")
                    write_into(options.markdown, table(kept))
        finally:
            system.stop()
    if not options.markdown:
        print(table({name: mine}))


if __name__ == "__main__":
    main()
