"""What is measured. Each case gets a place to run servers and how much of the full size to do, and gives back rows:
(what, figure with its unit, what was aimed at)."""

import contextlib
import json
import os
import random
import statistics
import time
import urllib.request

import load
import wire
from load import Frames, Pipe, full_name, padded, publish, pump_all
from machine import Processors, forget_pages, memory_mib, quantile
from servers import Geminga, GemingaPerf

SHARED, KEY_SHARED, EARLIEST = 1, 3, 1


class Server(Geminga):
    """A Geminga with settings of its own."""

    def __init__(self, folder, binary, durability, settings):
        super().__init__(folder, binary, durability)
        self.conf = os.path.join(self.folder, "broker.conf")
        with open(self.conf, "w") as file:
            file.writelines(f"{key}={value}\n" for key, value in settings.items())

    def command(self):
        return [*super().command(), "--config", self.conf]

    def metric(self, name):
        with urllib.request.urlopen(self.admin_url + "/metrics/", timeout=60) as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith(name) and line[len(name)] in "{ ":
                    return float(line.rsplit(" ", 1)[1])
        return 0.0

    def rss(self):
        """Bytes resident in the server alone."""
        return memory_mib(self.pid)[0] * (1 << 20)

    def written(self):
        """Bytes that it had written to files so far."""
        with open(f"/proc/{self.pid}/io") as io:
            return dict(line.strip().split(": ") for line in io).get("write_bytes")

    def delayed(self, topic, subscription):
        return self.stats(topic)["subscriptions"][subscription]["msgDelayed"]


class Context:
    def __init__(self, binary, folder, durability, scale):
        self.binary, self.folder, self.durability, self.scale = binary, folder, durability, scale

    def size(self, full, least=1):
        return max(least, int(full * self.scale))

    @contextlib.contextmanager
    def server(self, **settings):
        base = {"brokerDeleteInactiveTopicsEnabled": "false", "backlogQuotaDefaultLimitBytes": -1}
        server = Server(os.path.join(self.folder, "server"), self.binary, self.durability, {**base, **settings})
        server.wipe()
        server.start()
        try:
            yield server
        finally:
            server.stop()
            server.wipe()


def until(condition, seconds=120, wait=0.1):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(wait)
    return True


def settled_rss(server, seconds=20):
    """When it no longer falls."""
    last = server.rss()
    for _ in range(seconds):
        time.sleep(1)
        now = server.rss()
        if now >= last * 0.995:
            return now
        last = now
    return last


# ---------------------------------------------------------------------------------------------------- many topics

def topics(context, full=1_000_000):
    count, clients = context.size(full, 1000), 8
    with context.server(gemingaTopicIdleMillis=1000) as server:
        before = server.rss()
        pipes = [Pipe(server) for _ in range(clients)]
        watch = Processors(server.pid)
        began, done, made = time.monotonic(), 0, 0
        window = 2000
        while done < count:
            for at, pipe in enumerate(pipes):
                answered = pipe.count(wire.SUCCESS)
                mine = pipe.made = getattr(pipe, "made", 0)
                if mine - answered < window and made < count and len(pipe.out) < 1 << 20:
                    for n in range(mine, mine + 200):
                        topic = f"persistent://public/default/many-{at}-{n}"
                        pipe.queue(wire.frame(wire.PRODUCER, {1: topic, 2: n, 3: n})
                                   + wire.frame(wire.CLOSE_PRODUCER, {1: n, 2: n}))
                    pipe.made += 200
                    made += 200
                pipe.pump()
            done = sum(pipe.count(wire.SUCCESS) for pipe in pipes)
            if done >= made and made >= count:
                break
        took, used = time.monotonic() - began, watch.stop()
        per = [pipe.made for pipe in pipes]
        for pipe in pipes:
            pipe.close()
        yield "created by PRODUCER and CLOSE_PRODUCER, 8 connections", f"{made / took:,.0f}/s ({used['server_cpu_s'] / made * 1e6:.0f} µs of CPU each)", "20,000/s"
        until(lambda: server.metric("pulsar_broker_topics_count") < 100, 60, 1)
        idle = settled_rss(server)
        yield f"memory each, {made:,} idle, as they were made", f"{(idle - before) / made:,.0f} B", "1,024 B"
        server.stop()
        began = server.start()
        yield "restart ready after SIGTERM", f"{began:.2f} s", "5 s"
        idle = settled_rss(server)
        yield f"memory each, {made:,} idle, after a restart", f"{(idle - before) / made:,.0f} B", "1,024 B"
        server.kill()
        began = server.start()
        yield "restart ready after kill -9", f"{began:.2f} s", "5 s"
        pipe, opened, sent = Pipe(server), [], []
        frames = Frames(0, b"x")
        for n in range(1000):
            at = random.choice([at for at in range(clients) if per[at]])
            topic = f"many-{at}-{random.randrange(per[at])}"
            frames = Frames(n, b"x")
            start = time.perf_counter()
            pipe.ask(wire.PRODUCER, {1: full_name(topic), 2: n, 3: n}, wire.PRODUCER_SUCCESS)
            opened.append((time.perf_counter() - start) * 1000)
            pipe.queue(frames.many(0, 1))
            pipe.wait(wire.SEND_RECEIPT, n + 1)
            sent.append((time.perf_counter() - start) * 1000)
        yield "cold topic, until its producer is open (p50, p99)", f"{quantile(opened, .5):.2f}, {quantile(opened, .99):.2f} ms", "2 ms"
        yield "cold topic, until its first message is durable (p50, p99)", f"{quantile(sent, .5):.2f}, {quantile(sent, .99):.2f} ms", "2 ms and a sync"


def topics_100k(context):
    yield from topics(context, 100_000)


# ----------------------------------------------------------------------------------------------- many connections

def connections(context):
    count = context.size(10_000, 100)
    with context.server() as server:
        first = [Pipe(server) for _ in range(10)]
        before = server.rss()
        began = time.monotonic()
        pipes = [Pipe(server) for _ in range(count)]
        took = time.monotonic() - began
        idle = settled_rss(server)
        yield f"memory each, {count:,} connected and idle", f"{(idle - before) / count:,.0f} B", "20 KB"
        yield "connected one after another", f"{count / took:,.0f}/s", ""
        for pipe in pipes:
            pipe.queue(wire.frame(wire.PRODUCER, {1: full_name("shared"), 2: 1, 3: 1}))
            pipe.pump()
        pump_all(pipes, lambda: sum(pipe.count(wire.PRODUCER_SUCCESS) for pipe in pipes) == count)
        yield "memory each, with a producer of one topic", f"{(settled_rss(server) - before) / count:,.0f} B", ""
        frames = Frames(1, b"x" * 100)
        for pipe in pipes:
            pipe.queue(frames.many(0, 1))
            pipe.pump()
        pump_all(pipes, lambda: sum(pipe.count(wire.SEND_RECEIPT) for pipe in pipes) == count)
        yield "memory each, after each sent a message", f"{(settled_rss(server) - before) / count:,.0f} B", "20 KB"
        for pipe in first + pipes:
            pipe.close()


# ---------------------------------------------------------------------------------------- consumers and subscriptions

def key_shared(context):
    """CPU of the server a message: all at once, and one by one at a rate, where nothing can be shared."""
    burst, trickle, rate = context.size(400_000, 2000), context.size(20_000, 500), 2000
    with context.server(maxUnackedMessagesPerConsumer=0, maxUnackedMessagesPerSubscription=0,
                        subscriptionKeySharedUseConsistentHashing="true") as server:
        for consumers in (10, 1000):
            topic = f"keys-{consumers}"
            pipes = [Pipe(server) for _ in range(10)]
            for n in range(consumers):
                pipes[n % 10].subscribe(topic, "s", KEY_SHARED, n, {6: f"c{n}"})
            for n in range(consumers):
                pipes[n % 10].queue(wire.frame(wire.FLOW, {1: n, 2: 1_000_000}))
            sender = Pipe(server)
            sender.producer(topic)
            keys = [Frames(1, b"x" * 100, wire.message({6: f"key-{n}"})) for n in range(5000)]
            got = lambda: sum(pipe.count(wire.MESSAGE) for pipe in pipes)  # noqa: E731
            frames = lambda first, n: b"".join(keys[i % 5000].many(i, 1) for i in range(first, first + n))  # noqa: E731
            ready = b"".join(frames(first, 1000) for first in range(0, burst, 1000))
            watch, began = Processors(server.pid), time.monotonic()
            sender.queue(ready)
            pump_all([*pipes, sender], lambda: got() >= burst)
            used, took = watch.stop(), time.monotonic() - began
            yield f"{consumers:,} consumers, {burst:,} at once", f"{used['server_cpu_s'] / burst * 1e6:.1f} µs of CPU a message, {burst / took:,.0f}/s", "the same"
            watch, began, sent = Processors(server.pid), time.monotonic(), 0

            def more():
                nonlocal sent
                due = min(trickle, int((time.monotonic() - began) * rate) + 1)
                if sent < due:
                    sender.queue(frames(burst + sent, due - sent))
                    sent = due
                return got() >= burst + trickle
            pump_all([*pipes, sender], more)
            used = watch.stop()
            yield f"{consumers:,} consumers, {rate:,}/s", f"{used['server_cpu_s'] / trickle * 1e6:.1f} µs of CPU a message", "the same"
            for pipe in [*pipes, sender]:
                pipe.close()


def fan_out(context):
    count, subscriptions = context.size(200_000, 1000), 100
    with context.server() as server:
        for late in (False, True):
            topic = f"fan-{int(late)}"
            pipes = [Pipe(server) for _ in range(10)]
            sender = Pipe(server)
            sender.producer(topic)
            frames = Frames(1, b"x" * 200)
            if late:
                pipes[0].subscribe(topic, "keeps", 0, 999)
                publish(sender, frames.many, count)
                server.stop()
                server.start()
                forget_pages(server.data)
                pipes = [Pipe(server) for _ in range(10)]
            for n in range(subscriptions):
                pipes[n % 10].subscribe(topic, f"s{n}", 0, n, {13: EARLIEST})
            reads = server.metric("geminga_storage_read_entries_total")
            watch, began = Processors(server.pid), time.monotonic()
            for n in range(subscriptions):
                pipes[n % 10].queue(wire.frame(wire.FLOW, {1: n, 2: 10_000_000}))
            wanted = count * subscriptions
            if not late:
                sender.queue(frames.many(0, count))
            pump_all([*pipes, *([] if late else [sender])], lambda: sum(pipe.count(wire.MESSAGE) for pipe in pipes) >= wanted)
            used, took = watch.stop(), time.monotonic() - began
            reads = server.metric("geminga_storage_read_entries_total") - reads
            what = "from a backlog on the disk" if late else "while it is published"
            yield f"{subscriptions} subscriptions {what}: entries read from the disk for each stored", f"{reads / count:.2f}", "1" if late else "0"
            yield f"{subscriptions} subscriptions {what}", f"{wanted / took:,.0f} messages/s, {used['server_cpu_s'] / wanted * 1e6:.2f} µs of CPU each", ""
            for pipe in pipes:
                pipe.close()


# -------------------------------------------------------------------------------------------------- delayed delivery

def delayed(context):
    count = context.size(5_000_000, 5000)
    with context.server() as server:
        pipe = Pipe(server)
        pipe.subscribe("late", "s", SHARED)
        sender = Pipe(server)
        sender.producer("late")
        frames = Frames(1, b"x" * 10, number=(19, 6))
        due = int(time.time() * 1000) + 3_600_000
        choose = random.Random(1).random
        sequence = iter(range(1 << 40))
        began = time.monotonic()
        publish(sender, lambda _, n: b"".join(frames.one(next(sequence), due + int(choose() * 3_600_000)) for _ in range(n)), count)
        yield f"{count:,} published, due within an hour an hour from now", f"{count / (time.monotonic() - began):,.0f}/s", ""
        before = settled_rss(server)
        for restarted in (False, True):
            if restarted:
                server.kill()
                yield "ready after kill -9", f"{server.start():.2f} s", ""
                before = settled_rss(server)
                pipe = Pipe(server)
                pipe.subscribe("late", "s", SHARED)
            began = time.monotonic()
            pipe.queue(wire.frame(wire.FLOW, {1: 1, 2: 1000}))
            pipe.pump()
            complete = until(lambda: pipe.pump() or server.delayed("late", "s") >= count)
            took = time.monotonic() - began
            what = "after kill -9" if restarted else "when a consumer comes"
            yield f"{server.delayed('late', 's'):,} known as delayed {what}", f"after {took:.1f} s" if complete else "not all in 120 s", f"{count:,}"
            yield f"memory each, {what}", f"{(settled_rss(server) - before) / count:.1f} B", "16 B"
            assert pipe.count(wire.MESSAGE) == 0, "delivered too early"


# -------------------------------------------------------------------------------------------------------------- acks

def acks(context):
    """Every message is got first; then all are acked one by one in the order of i * a + b mod n, which no one can merge."""
    wanted = context.size(10_000_000, 10_000)
    with context.server(maxUnackedMessagesPerConsumer=0, maxUnackedMessagesPerSubscription=0) as server:
        consumer = Pipe(server)
        consumer.subscribe("acks", "s", SHARED)
        sender = Pipe(server)
        sender.producer("acks")
        publish(sender, Frames(1, b"x" * 10).many, wanted)
        ranges, total = [], 0

        def look(command, data, at):
            nonlocal total
            if command == wire.MESSAGE:
                ledger, entry = load.message_id(data, at)
                if ranges and ranges[-1][0] == ledger and ranges[-1][1] + ranges[-1][2] == entry:
                    ranges[-1][2] += 1
                else:
                    ranges.append([ledger, entry, 1])
                total += 1
        before = settled_rss(server)
        consumer.look = look
        consumer.queue(wire.frame(wire.FLOW, {1: 1, 2: wanted + 1000}))
        end = time.monotonic() + 100
        while total < wanted and time.monotonic() < end:
            consumer.pump(0.0002)
        consumer.look = None
        out = server.rss()
        yield f"{total:,} delivered to one consumer and unacked: memory each", f"{(out - before) / total:.1f} B", "bounded"
        starts, at = [], 0
        for ledger, first, n in ranges:
            starts.append(at)
            at += n
        step = int(total * 0.6180339887) | 1
        while total % step == 0 or _common(step, total) != 1:
            step += 2
        import bisect
        written, watch, began = int(server.written()), Processors(server.pid), time.monotonic()
        peak, at, n = out, total // 3, 0
        while n < total:
            ids = []
            for _ in range(min(1000, total - n)):
                at = (at + step) % total
                which = bisect.bisect_right(starts, at) - 1
                ledger, first, _ = ranges[which]
                body = b"\x08" + wire.varint(ledger) + b"\x10" + wire.varint(first + at - starts[which])
                ids.append(b"\x1a" + bytes([len(body)]) + body)
            n += len(ids)
            body = b"\x08\x01\x10\x00" + b"".join(ids)
            base = b"\x08\x0a\x52" + wire.varint(len(body)) + body
            consumer.queue(load._LENGTH.pack(4 + len(base)) + load._LENGTH.pack(len(base)) + base)
            while len(consumer.out) > 1 << 18:
                consumer.pump(0.0002)
            if n % 250_000 == 0:
                peak = max(peak, server.rss())
        while consumer.out:
            consumer.pump(0.0002)
        done = until(lambda: server.stats("acks")["subscriptions"]["s"]["msgBacklog"] == 0, 60)
        took, used = time.monotonic() - began, watch.stop()
        yield f"{total:,} acked in random order", (f"{total / took:,.0f}/s, {used['server_cpu_s'] / total * 1e6:.2f} µs of CPU each"
                                                  if done else "acks were lost"), ""
        yield "most memory meanwhile, above that before", f"{(peak - out) / (1 << 20):,.0f} MiB ({(peak - out) / total:.1f} B each)", "bounded"
        yield "written to the disk meanwhile", f"{(int(server.written()) - written) / total:.1f} B an ack", "bounded"
        yield "memory at the end", f"{settled_rss(server) / (1 << 20):,.0f} MiB", ""


def _common(a, b):
    while b:
        a, b = b, a % b
    return a


# ------------------------------------------------------------------------------------- catching up, dedup, transactions

def catch_up(context):
    seconds, rate = context.size(20, 4), 1000
    with context.server() as server:
        perf = lambda *arguments: GemingaPerf(server, context.binary, *arguments)  # noqa: E731
        Pipe(server).subscribe("cold", "keeps", 0)
        perf("produce", "cold", "--size", 1024, "--time", f"{context.size(15, 2)}s").result()
        held = server.stats("cold")["msgInCounter"]
        quiet, busy, read = [], [], []
        for _ in range(2):
            quiet.append(perf("latency", "hot", "--rate", rate, "--time", f"{seconds}s").result())
            forget_pages(server.data)
            tail = perf("latency", "hot", "--rate", rate, "--time", f"{seconds}s")
            time.sleep(1)
            began, got = time.monotonic(), 0
            while tail.running():
                got += perf("consume", "cold", "--count", held, "--until-idle", "1s").result()["messages"]
                if tail.running():
                    forget_pages(server.data)
            read.append(got / (time.monotonic() - began))
            busy.append(tail.result())
        before, during = (statistics.median(_p99(run) for run in runs) for runs in (quiet, busy))
        yield f"p99 of a tailing consumer at {rate:,}/s, alone", f"{before:.2f} ms", ""
        yield (f"p99 with a cold reader of {held:,} messages of 1 KB at {statistics.median(read):,.0f}/s beside it",
               f"{during:.2f} ms ({(during / before - 1) * 100:+.0f} %)", "+50 %")


def _p99(run):
    latency = run.get("latencyMs") or run.get("latency") or run
    return float(next(value for key, value in latency.items() if key.lower().startswith("p99") and "9" not in key[3:4]))


def dedup(context):
    seconds, rounds = context.size(6, 2), context.size(4, 1)
    with context.server() as server:
        rates, costs = {}, {}
        for namespace, on in (("off", False), ("on", True)):
            server.rest("PUT", f"/admin/v2/namespaces/public/{namespace}", {})
            server.rest("POST", f"/admin/v2/namespaces/public/{namespace}/deduplication", on)
        for kind, arguments in (("batches", ["--window", 20_000]), ("single messages", ["--no-batching"])):
            for n in range(rounds * 2):
                # Who is first alternates.
                for namespace in (("off", "on"), ("on", "off"))[n % 2]:
                    watch = Processors(server.pid)
                    result = GemingaPerf(server, context.binary, "produce", f"persistent://public/{namespace}/t", "--size", 100,
                                         "--time", f"{seconds}s", *arguments).result()
                    used = watch.stop()
                    rates.setdefault((kind, namespace), []).append(result["messagesPerSecond"])
                    costs.setdefault((kind, namespace), []).append(used["server_cpu_s"] / result["messages"] * 1e6)
            (off, on), (cheap, dear) = ([statistics.median(of[kind, namespace]) for namespace in ("off", "on")] for of in (rates, costs))
            yield f"{kind} of 100 B, without and with deduplication", f"{off:,.0f}/s, {on:,.0f}/s ({(on / off - 1) * 100:+.1f} %)", "-5 %"
            yield f"{kind}: CPU of the server each", f"{cheap:.2f}, {dear:.2f} µs ({(dear / cheap - 1) * 100:+.1f} %)", "+5 %"


def transactions(context):
    """Each: begin, add the partition and the subscription, one message and one ack in it, commit. Many at once."""
    count, at_once = context.size(60_000, 500), 400
    with context.server(maxUnackedMessagesPerConsumer=0, maxUnackedMessagesPerSubscription=0) as server:
        pipe = Pipe(server)
        pipe.producer("in", 1)
        pipe.subscribe("in", "s", SHARED)
        pipe.producer("out", 2)
        ids = []

        def arrived(command, data, at):
            if command == wire.MESSAGE:
                ids.append(load.message_id(data, at))
        pipe.look = arrived
        publish(pipe, Frames(1, b"x").many, count)
        pipe.queue(wire.frame(wire.FLOW, {1: 1, 2: count}))
        while len(ids) < count:
            pipe.pump(0.0005)
        pipe.ask(62, {1: 1, 2: 0}, 63)
        payload = Frames(2, b"y")
        body = payload.middle + payload.after
        state, receipts, begun, ended = {}, [], 0, 0
        took = []

        def begin():
            nonlocal begun
            state[begun] = [None, 3, time.perf_counter()]
            pipe.queue(wire.frame(50, {1: begun, 2: 60_000, 3: 0}))
            begun += 1

        def step(command, data, at):
            nonlocal ended
            if command in (wire.SEND_RECEIPT, wire.ACK_RESPONSE, 51, 53, 55, 57):
                total, size = load._LENGTH.unpack_from(data, at)[0], load._LENGTH.unpack_from(data, at + 4)[0]
                fields = wire.parse(wire.parse(data[at + 8:at + 8 + size])[command][0])
                assert 4 not in fields or command == wire.SEND_RECEIPT or command == wire.ACK_RESPONSE, (command, fields)
                number = fields[2][0] if command == wire.SEND_RECEIPT else fields.get(6, fields[1])[0] if command == wire.ACK_RESPONSE else fields[1][0]
                txn = state[number]
                if command == 51:
                    txn[0] = {"least": fields.get(2, [0])[0], "most": fields.get(3, [0])[0]}
                    both = {1: number, 2: txn[0]["least"], 3: txn[0]["most"]}
                    pipe.queue(wire.frame(52, {**both, 4: [full_name("out")]})
                               + wire.frame(54, {**both, 4: [{1: full_name("in"), 2: "s"}]}))
                    txn[1] = 2
                    return
                if command == 57:
                    took.append(time.perf_counter() - txn[2])
                    del state[number]
                    ended += 1
                    if begun < count:
                        begin()
                    return
                txn[1] -= 1
                if txn[1]:
                    return
                least, most = txn[0]["least"], txn[0]["most"]
                if command in (53, 55):
                    txn[1] = 2
                    ledger, entry = ids[number]
                    pipe.queue(wire.frame(wire.SEND, {1: 2, 2: number, 4: least, 5: most}, body_of(number, least, most))
                               + wire.frame(wire.ACK, {1: 1, 2: 0, 3: [{1: ledger, 2: entry}], 6: least, 7: most, 8: number}))
                else:
                    pipe.queue(wire.frame(56, {1: number, 2: least, 3: most, 4: 0}))

        def body_of(number, least, most):
            head = wire.message({1: "p", 2: number, 3: 1, 22: least, 23: most})
            return load._LENGTH.pack(len(head)) + head + b"y"
        pipe.look = step
        watch, start = Processors(server.pid), time.monotonic()
        for _ in range(min(at_once, count)):
            begin()
        while ended < count:
            pipe.pump(0.0002)
            if time.monotonic() - start > 150:
                break
        seconds, used = time.monotonic() - start, watch.stop()
        yield (f"commits of one message and one ack, {at_once} at once", f"{ended / seconds:,.0f}/s, {used['server_cpu_s'] / max(1, ended) * 1e6:.0f} µs of "
               f"the server's CPU each; the load took {used['load_cores']:.2f} cores", "5,000/s")
        yield "begin to commit (p50, p99)", f"{quantile(took, .5) * 1000:.1f}, {quantile(took, .99) * 1000:.1f} ms", ""
        left = server.stats("in")["subscriptions"]["s"]["msgBacklog"]
        yield "messages left of those acked in transactions", str(left - (count - ended)), "0"


CASES = {case.__name__: case for case in (
    topics_100k, topics, connections, key_shared, fan_out, delayed, acks, catch_up, dedup, transactions)}
