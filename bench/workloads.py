"""The workloads. Each gets a running system (or starts it itself) and gives back figures; none knows which system it is,
except where a function has to be written in the language that the system runs."""

import contextlib
import json
import os
import statistics
import sys
import time
import urllib.error
import uuid

from machine import Processors, SyncProbe, forget_pages, memory_mib, quantile
from servers import ROOT, GemingaPerf, PulsarPerf

sys.path.insert(0, str(ROOT / "tests" / "conformance" / "python"))
import wire  # noqa: E402  the same few lines of protocol that the conformance tests use


class Context:
    """What the workloads need beside the system: the load generators, a place for their logs, how much to do."""

    def __init__(self, distribution, geminga, out, quick):
        self.distribution, self.geminga, self.out, self.quick = distribution, geminga, out, quick
        self.serial = 0

    def topic(self, stem):
        self.serial += 1
        return f"{stem}-{os.getpid()}-{self.serial}"

    def perf(self, system, *arguments):
        self.serial += 1
        log = os.path.join(self.out, f"pulsar-perf-{system.name}-{self.serial}-{arguments[0]}.log")
        return PulsarPerf(system, self.distribution, log, *arguments)

    def size(self, full, quick):
        return quick if self.quick else full


def full_name(topic):
    return f"persistent://public/default/{topic}"


def connect_when_ready(system, seconds=60):
    """A raw connection as soon as the server takes one."""
    until = time.monotonic() + seconds
    while True:
        try:
            return wire.Connection(system, seconds=seconds)
        except (OSError, AssertionError):
            if time.monotonic() > until:
                raise
            time.sleep(0.001)


def ask_until_granted(connection, command, fields, answer, seconds=60):
    """Repeats a request while the server says that it is not ready."""
    until = time.monotonic() + seconds
    while True:
        connection.send(command, fields)
        while True:
            got = connection.next()
            if got == wire.CLOSED:
                raise ConnectionError("closed")
            if got[0] == answer:
                return got
            if got[0] == wire.ERROR:
                break
        if time.monotonic() > until:
            raise SystemExit(f"refused: {got}")
        time.sleep(0.002)


def look_up(connection, topic, seconds=60):
    """As every client does first: in Pulsar it is what makes the server own the topic."""
    until = time.monotonic() + seconds
    while ask_until_granted(connection, wire.LOOKUP, {1: full_name(topic), 2: 9}, wire.LOOKUP_RESPONSE)[1].get(3) != [1]:
        if time.monotonic() > until:
            raise SystemExit(f"lookup of {topic} refused")
        time.sleep(0.002)


def message_through(system, topic):
    """One message from a new producer to a new consumer; the moment it arrived."""
    with connect_when_ready(system) as connection:
        look_up(connection, topic)
        ask_until_granted(connection, wire.SUBSCRIBE, {1: full_name(topic), 2: "s", 3: 0, 4: 1, 5: 1}, wire.SUCCESS)
        ask_until_granted(connection, wire.PRODUCER, {1: full_name(topic), 2: 1, 3: 2}, wire.PRODUCER_SUCCESS)
        connection.send(wire.FLOW, {1: 1, 2: 1})
        connection.send(wire.SEND, {1: 1, 2: 0}, wire.payload(0, b"x"))
        while True:
            got = connection.next()
            if got == wire.CLOSED:
                raise ConnectionError("closed")
            if got[0] == wire.MESSAGE:
                return time.monotonic()


# ------------------------------------------------------------------------------------------------ start and idle

def start(context, system):
    """Empty data folder, process start to the first admin answer and to the first message through."""
    admin, through = [], []
    for _ in range(context.size(5, 2)):
        system.stop()
        system.wipe()
        began = system.launch()
        admin.append((system.wait_for_admin() - began) * 1000)
        through.append((message_through(system, context.topic("start")) - began) * 1000)
    return {"admin_ms": round(statistics.median(admin), 1), "message_ms": round(statistics.median(through), 1),
            "runs": len(admin), "command": system.shown_command()}


def idle(context, system):
    """Memory and processor of a server that nobody talks to."""
    time.sleep(context.size(15, 5))
    watch = Processors(system.pid)
    time.sleep(context.size(30, 5))
    used = watch.stop()
    rss, pss = memory_mib(system.pid)
    return {"rss_mib": rss, "pss_mib": pss, "cpu_percent": round(used["server_cores"] * 100, 2), "cpu_other": used["cpu_other"],
            "command": f"30 s after start: /proc/PID/smaps_rollup, /proc/PID/stat of {system.shown_command()}"}


# ------------------------------------------------------------------------------------------------------- produce

def messages_in(system, topic):
    try:
        return system.stats(topic).get("msgInCounter", 0)
    except urllib.error.HTTPError:
        return 0                                             # the topic is not there yet


def wait_for_messages(system, topic, seconds=60):
    until = time.monotonic() + seconds
    while not messages_in(system, topic):
        if time.monotonic() > until:
            raise SystemExit(f"nothing arrived at {topic} in {seconds} s")
        time.sleep(0.05)


def _produce(context, system, arguments):
    topic, seconds = context.topic("produce"), context.size(60, 20)
    arguments = ["produce", "-r", 2_000_000, "-s", 1024, "-time", seconds, *arguments]
    load = context.perf(system, *arguments, topic)
    wait_for_messages(system, topic)
    time.sleep(5)                                            # the JVM compiles what is hot
    watch, first = Processors(system.pid), system.stats(topic)["msgInCounter"]
    began = time.monotonic()
    time.sleep(seconds - 12)
    last, ended, used = system.stats(topic)["msgInCounter"], time.monotonic(), watch.stop()
    load.wait(90)
    messages = last - first
    return {"rate": round(messages / (ended - began)), "server_cpu_s_per_million": round(used["server_cpu_s"] / messages * 1e6, 2),
            "load_cores": used["load_cores"], "cpu_other": used["cpu_other"],
            "command": "pulsar-perf " + " ".join(map(str, arguments)) + " TOPIC; msgInCounter in the middle of the run"}


def produce_batched(context, system):
    # Bounded, since a client that makes messages faster than it can send them fills its heap and then only collects garbage
    return _produce(context, system, ["-o", 5000])


def produce_unbounded(context, system):
    return _produce(context, system, [])


def produce_unbatched(context, system):
    return _produce(context, system, ["-db", "-o", 1000])


def _produce_by_geminga(context, system, *arguments):
    topic, seconds = context.topic("own"), context.size(20, 4)
    GemingaPerf(system, context.geminga, "produce", topic, "--size", 100, "--time", f"{context.size(5, 1)}s", *arguments).result()
    watch = Processors(system.pid)
    run = GemingaPerf(system, context.geminga, "produce", topic, "--size", 100, "--time", f"{seconds}s", *arguments)
    result, used = run.result(), watch.stop()
    return {"rate": round(result["messagesPerSecond"]), "cpu_other": used["cpu_other"], "load_cores": used["load_cores"],
            "server_cpu_s_per_million": round(used["server_cpu_s"] / result["messages"] * 1e6, 2), "command": run.shown}


def own_produce_single(context, system):
    return _produce_by_geminga(context, system, "--window", 1000, "--no-batching")


def own_produce_batched(context, system):
    # the window counts messages: it must hold several batches of 1,000
    return _produce_by_geminga(context, system, "--window", 20_000)


def durable_send(context, system):
    """Blocking sends of 1 KB over a plain socket, and after each one a sync of our own on the same disk."""
    count = context.size(2000, 300)
    probe = SyncProbe(system.folder)
    sends = []
    with wire.Connection(system) as connection:
        topic = context.topic("durable")
        look_up(connection, topic)
        connection.producer(full_name(topic))
        for sequence in range(count + 100):
            frame = wire.frame(wire.SEND, {1: 1, 2: sequence}, wire.payload(sequence, b"x" * 1024))
            began = time.perf_counter()
            connection.raw(frame)
            connection.expect(wire.SEND_RECEIPT)
            took = (time.perf_counter() - began) * 1000
            if sequence >= 100:
                sends.append(took)
                probe.once()
    probe.close()
    return {"p50_ms": round(quantile(sends, 0.5), 3), "p99_ms": round(quantile(sends, 0.99), 3),
            "sync_p50_ms": round(quantile(probe.ms, 0.5), 3), "sync_p99_ms": round(quantile(probe.ms, 0.99), 3),
            "command": f"{count} blocking sends of 1 KB by a socket, each followed by pwrite + fdatasync of 1 KiB beside the data"}


# ------------------------------------------------------------------------------------------------------- latency

def _latency(context, system, rate):
    topic, seconds = context.topic("latency"), context.size(30, 12)
    consumer = context.perf(system, "consume", "-st", "Exclusive", "-ss", "s", "-time", seconds + 10, topic)
    time.sleep(4)
    arguments = ["produce", "-r", rate, "-s", 1024, "-time", seconds]
    producer = context.perf(system, *arguments, topic)
    wait_for_messages(system, topic)
    time.sleep(3)
    watch = Processors(system.pid)
    time.sleep(seconds - 8)
    used = watch.stop()
    producer.wait(90)
    consumer.wait(90)
    # Of the first ten seconds some belong to the JVM: it compiles, and the messages wait in it.
    spans = [each for each in consumer.result()["intervals_ms"] if each["max"] > 0]
    warm = spans[1:] or spans
    values = {**{f"java_{name}_ms": statistics.median(each[name] for each in warm) for name in ("p50", "p99", "p999")},
              "server_cores": used["server_cores"], "cpu_other": used["cpu_other"]}
    run = GemingaPerf(system, context.geminga, "latency", context.topic("latency"), "--rate", rate, "--time", f"{seconds}s", "--size", 1024)
    own = run.result()["latencyMs"]
    values.update({"p50_ms": round(own["p50"], 3), "p99_ms": round(own["p99"], 3), "p999_ms": round(own["p999"], 3),
                   "command": "pulsar-perf " + " ".join(map(str, arguments)) + " TOPIC with pulsar-perf consume, median of ten-second spans after the first; " + run.shown})
    probe = SyncProbe(system.folder)
    for _ in range(300):
        probe.once()
    probe.close()
    values["sync_p50_ms"] = round(quantile(probe.ms, 0.5), 3)
    return values


def latency_1k(context, system):
    return _latency(context, system, 1_000)


def latency_10k(context, system):
    return _latency(context, system, 10_000)


def latency_50k(context, system):
    return _latency(context, system, 50_000)


# ------------------------------------------------------------------------------------------------------ catch-up

def _slope(points):
    """Rate between the first sample with progress and the last one before the end."""
    moving = [point for point in points if points[0][1] < point[1] < points[-1][1]]
    if len(moving) < 3:
        return None
    return round((moving[-1][1] - moving[0][1]) / (moving[-1][0] - moving[0][0]))


def _read_backlog(context, system, topic, messages):
    arguments = ["consume", "-ss", context.topic("catchup"), "-sp", "Earliest", "-m", messages, "-q", 5000]
    watch = Processors(system.pid)
    reader = context.perf(system, *arguments, topic)
    points, until = [], time.monotonic() + 240
    while reader.running() and time.monotonic() < until:
        points.append((time.monotonic(), system.stats(topic).get("msgOutCounter", 0)))
        time.sleep(0.1)
    used = watch.stop()
    reader.wait(10)
    return _slope(points), used, "pulsar-perf " + " ".join(map(str, arguments)) + " TOPIC"


def catch_up(context, system):
    """A backlog of 1 KB messages read from the start: as it is, and after a restart with nothing of it in memory."""
    messages, topic = context.size(1_500_000, 200_000), context.topic("catchup")
    system.create_subscription(topic, "holds-the-backlog")
    fill = context.perf(system, "produce", "-r", 2_000_000, "-s", 1024, "-m", messages, topic)
    fill.wait(300)
    warm, used, command = _read_backlog(context, system, topic, messages)
    values = {"warm_rate": warm, "warm_server_cpu_s_per_million": round(used["server_cpu_s"] / messages * 1e6, 2),
              "cpu_other": used["cpu_other"], "messages": messages, "command": command}

    def own():
        run = GemingaPerf(system, context.geminga, "consume", topic, "--from", "earliest", "--count", messages)
        result = run.result()
        if run.shown not in values["command"]:
            values["command"] += "; " + run.shown
        return round(result["messagesPerSecond"]), round(result["bytesPerSecond"] / 1e6)
    values["own_warm_rate"], values["own_warm_mb_s"] = own()
    for kind in ("java", "own"):
        system.stop()
        forget_pages(system.data)
        system.start()
        if kind == "java":
            values["cold_rate"], _, _ = _read_backlog(context, system, topic, messages)
        else:
            values["own_cold_rate"], values["own_cold_mb_s"] = own()
    return values


# -------------------------------------------------------------------------------------------------------- topics

def topics(context, system):
    """Topics made by naming a producer, each with one message, then left alone. The memory is what they cost idle."""
    count = context.size(100_000, 5_000) if system.name == "geminga" else context.size(2_000, 500)
    stem, window = context.topic("many"), 64
    time.sleep(3)
    with wire.Connection(system, seconds=60) as connection:
        for number in range(window):
            look_up(connection, f"{stem}-{number}")      # the bundles are loaded, as they are in a server at work
        before = memory_mib(system.pid)
        began = time.monotonic()
        for first in range(0, count, window):
            numbers = range(first, min(first + window, count))
            connection.raw(b"".join(wire.frame(wire.PRODUCER, {1: full_name(f"{stem}-{n}"), 2: n, 3: n}) for n in numbers))
            for _ in numbers:
                connection.expect(wire.PRODUCER_SUCCESS)
            connection.raw(b"".join(wire.frame(wire.SEND, {1: n, 2: 0}, wire.payload(0, b"x")) for n in numbers))
            for _ in numbers:
                connection.expect(wire.SEND_RECEIPT)
            connection.raw(b"".join(wire.frame(wire.CLOSE_PRODUCER, {1: n, 2: n}) for n in numbers))
            for _ in numbers:
                connection.expect(wire.SUCCESS)
        took = time.monotonic() - began
    time.sleep(context.size(20, 5))
    after = memory_mib(system.pid)
    return {"topics": count, "seconds": round(took, 1), "topics_per_s": round(count / took),
            "kib_per_topic": round((after[1] - before[1]) * 1024 / count, 2), "pss_mib": after[1],
            "command": f"{count} times PRODUCER, SEND, CLOSE_PRODUCER over one socket, 64 at a time; PSS 20 s later"}


# ------------------------------------------------------------------------------------------------------- restart

def restart(context, system):
    """`kill -9` with an unread backlog, and the time from the new process to the first message of it."""
    messages, topic = context.size(1_000_000, 100_000), context.topic("restart")
    system.create_subscription(topic, "s")
    context.perf(system, "produce", "-r", 2_000_000, "-s", 1024, "-m", messages, topic).wait(300)
    times, given_up = [], 0
    for _ in range(context.size(3, 1)):
        system.kill()
        began = system.launch()
        while True:
            try:
                if system.process.poll() is not None:
                    system.launch()                          # Pulsar now and then gives up after a kill -9: somebody starts it again
                    given_up += 1
                with connect_when_ready(system, seconds=5) as connection:
                    look_up(connection, topic)
                    ask_until_granted(connection, wire.SUBSCRIBE, {1: full_name(topic), 2: "s", 3: 0, 4: 1, 5: 1}, wire.SUCCESS)
                    connection.send(wire.FLOW, {1: 1, 2: 1})
                    while True:
                        got = connection.next()
                        if got == wire.CLOSED:
                            raise ConnectionError("closed")
                        if got[0] == wire.MESSAGE:
                            break
                break
            except (OSError, ConnectionError):
                if time.monotonic() - began > 120:
                    raise
        times.append((time.monotonic() - began) * 1000)
    system.wait_for_admin()
    backlog = system.stats(topic)["subscriptions"]["s"]["msgBacklog"]
    return {"first_message_ms": round(statistics.median(times), 1), "runs": len(times), "starts_given_up": given_up, "backlog_entries": backlog,
            "messages": messages, "command": "kill -9, then " + system.shown_command() + ", SUBSCRIBE and FLOW by a socket"}


# ----------------------------------------------------------------------------------------------------- functions

BASH_WARM = """\
process() { emit "$MSG!"; }
"""
BASH_SPAWN = """\
#!/bin/bash
message=$(cat /dev/stdin)
echo "${message}!" > /dev/stdout
"""
PYTHON = """\
def process(input):
    return "%s!" % input
"""


def prepare_input(system, topic, language):
    """Pulsar's Java function reads strings, and refuses a topic that holds messages and no schema."""
    system.create_subscription(topic, "holds-the-backlog")
    if language == "java":
        system.rest("POST", f"/admin/v2/schemas/public/default/{topic}/schema", {"type": "STRING", "schema": "", "properties": {}})


def multipart(parts):
    """[(name, file name or None, content type, bytes)] as a form."""
    boundary = uuid.uuid4().hex
    body = b""
    for name, filename, kind, content in parts:
        named = f'; filename="{filename}"' if filename else ""
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{named}\r\nContent-Type: {kind}\r\n\r\n'.encode()
        body += content + b"\r\n"
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


@contextlib.contextmanager
def function(system, context, name, language, topic, **more):
    """A function over `topic`, from its creation by REST until the block ends."""
    config = {"tenant": "public", "namespace": "default", "name": name, "inputs": [topic], "output": f"{topic}-out",
              "parallelism": 1, "autoAck": True, "processingGuarantees": "ATLEAST_ONCE", "subscriptionPosition": "Earliest", **more}
    if language == "java":
        filename = next(entry for entry in os.listdir(f"{context.distribution}/lib") if "functions-api-examples" in entry)
        with open(f"{context.distribution}/lib/{filename}", "rb") as jar:
            code = jar.read()
        config.update(runtime="JAVA", className="org.apache.pulsar.functions.api.examples.ExclamationFunction")
    elif language == "python":
        filename, code = "ask.py", PYTHON.encode()
        config.update(runtime="PYTHON", py=filename, className="ask")
    else:
        filename, code = "bang.sh", (BASH_SPAWN if language == "bash-spawn" else BASH_WARM).encode()
        config.update(runtime="BASH", sh=filename)
        if language == "bash-spawn":
            config["customRuntimeOptions"] = json.dumps({"mode": "spawn"})
    body, kind = multipart([("functionConfig", None, "application/json", json.dumps(config).encode()),
                            ("data", filename, "application/octet-stream", code)])
    path = f"/admin/v3/functions/public/default/{name}"
    try:
        system.rest("POST", path, body, kind=kind, timeout=120)
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{language} function refused: {error.code} {error.read().decode(errors='replace')[:300]}") from None
    try:
        yield
    finally:
        system.rest("DELETE", path, timeout=120)


def _function_rate(context, system, language, messages):
    topic = context.topic(f"fn-{language}")
    prepare_input(system, topic, language)
    context.perf(system, "produce", "-r", 2_000_000, "-s", 100, "-m", messages, topic).wait(300)
    points, watch = [], None
    with function(system, context, topic, language, topic):
        until = time.monotonic() + 180
        while time.monotonic() < until:
            done = messages_in(system, f"{topic}-out")
            points.append((time.monotonic(), done))
            if done and not watch:
                watch = Processors(system.pid)
            if done >= messages:
                break
            time.sleep(0.1)
        used = watch.stop() if watch else {}
    if points[-1][1] < messages:
        raise SystemExit(f"{language}: {points[-1][1]} of {messages} outputs in 180 s")
    return {"rate": _slope(points) or round(messages / (points[-1][0] - points[0][0])), "messages": messages, "cpu_other": used.get("cpu_other"),
            "server_cores": used.get("server_cores"),
            "command": f"pulsar-perf produce -s 100 -m {messages}, then a {language} function drains it; msgInCounter of its output"}


def function_bash_warm(context, system):
    return _function_rate(context, system, "bash", context.size(200_000, 20_000))


def function_bash_spawn(context, system):
    return _function_rate(context, system, "bash-spawn", context.size(10_000, 1_000))


def function_python(context, system):
    return _function_rate(context, system, "python", context.size(1_500_000, 150_000))


def function_java(context, system):
    return _function_rate(context, system, "java", context.size(1_000_000, 100_000))


def _cold_start(context, system, language):
    times = []
    for _ in range(context.size(5, 2)):
        topic = context.topic(f"cold-{language}")
        with wire.Connection(system, seconds=120) as connection:
            look_up(connection, topic)
            look_up(connection, f"{topic}-out")
            prepare_input(system, topic, language)
            connection.subscribe(full_name(f"{topic}-out"), "s", consumer_id=1, request=1)
            connection.producer(full_name(topic), producer_id=1, request=2)
            connection.send(wire.FLOW, {1: 1, 2: 1})
            connection.publish(b"x")
            began = time.monotonic()
            with function(system, context, topic, language, topic):
                while connection.next()[0] != wire.MESSAGE:
                    pass
                times.append((time.monotonic() - began) * 1000)
    return {"ms": round(statistics.median(times), 1), "runs": len(times),
            "command": f"one message waits; POST of a {language} function until its output arrives"}


def cold_start_bash(context, system):
    return _cold_start(context, system, "bash")


def cold_start_python(context, system):
    return _cold_start(context, system, "python")


def cold_start_java(context, system):
    return _cold_start(context, system, "java")
