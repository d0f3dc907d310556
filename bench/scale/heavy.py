"""Delayed messages, acks in random order, catching up, deduplication, transactions."""

import bisect
import math
import random
import statistics
import time

import load
import wire
from context import Row, settled_rss, until
from load import Frames, Pipe, full_name, publish
from machine import Processors, forget_pages, quantile
from servers import GemingaPerf

SHARED = 1


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
        yield Row("published", f"{count:,} published, due within an hour an hour from now", f"{count / (time.monotonic() - began):,.0f}/s")
        before = settled_rss(server)
        for restarted in (False, True):
            if restarted:
                server.kill()
                yield Row("restart", "ready after kill -9", f"{server.start():.2f} s")
                before = settled_rss(server)
                pipe = Pipe(server)
                pipe.subscribe("late", "s", SHARED)
            began = time.monotonic()
            pipe.queue(wire.frame(wire.FLOW, {1: 1, 2: 1000}))
            pipe.pump()
            complete = until(lambda: pipe.pump() or server.delayed("late", "s") >= count)
            took = time.monotonic() - began
            what = "after kill -9" if restarted else "when a consumer comes"
            known = server.delayed("late", "s")
            yield Row(f"known_{restarted}", f"known as delayed {what}", f"{known:,} after {took:.1f} s" if complete else f"{known:,} after 120 s",
                      f"{count:,}", complete)
            if restarted:
                # The first time the memory that publishing used is used again, which would flatter.
                each = (settled_rss(server) - before) / count
                yield Row("memory", f"memory each, {what}", f"{each:.1f} B", "≤ 16 B", each <= 16)
            assert pipe.count(wire.MESSAGE) == 0, "delivered too early"
            if not context.is_geminga:
                return


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
        each = (out - before) / total
        yield Row("unacked", f"{total:,} delivered to one consumer and unacked: memory each", f"{each:.1f} B", "≤ 24 B", each <= 24)
        ids = Ids(ranges)
        written, watch, began = server.written(), Processors(server.pid), time.monotonic()
        peak, n = out, 0
        while n < total:
            some = ids.some(min(1000, total - n))
            n += 1000
            body = b"\x08\x01\x10\x00" + some
            base = b"\x08\x0a\x52" + wire.varint(len(body)) + body
            consumer.queue(load._LENGTH.pack(4 + len(base)) + load._LENGTH.pack(len(base)) + base)
            while len(consumer.out) > 1 << 18:
                consumer.pump(0.0002)
            if n % 250_000 == 0:
                peak = max(peak, server.rss())
        while consumer.out:
            consumer.pump(0.0002)
        left = lambda: server.stats("acks")["subscriptions"]["s"]["msgBacklog"]  # noqa: E731
        done = until(lambda: consumer.pump() or left() == 0, 60)
        took, used = time.monotonic() - began, watch.stop()
        yield Row("acked", f"{total:,} acked one by one in random order",
                  f"{total / took:,.0f}/s, {used['server_cpu_s'] / total * 1e6:.2f} µs of CPU each" if done else f"{left():,} are not acked",
                  "all", done)
        more = peak - out
        yield Row("peak", "most memory meanwhile, above that before", f"{more / (1 << 20):,.0f} MiB", "≤ 64 MiB", more <= 64 << 20)
        each = (server.written() - written) / total
        yield Row("written", "written to the disk meanwhile", f"{each:.1f} B an ack", "≤ 16 B", each <= 16)
        if not context.is_geminga:
            return
        server.kill()
        yield Row("restart", "ready after kill -9", f"{server.start():.2f} s")
        back = left()
        yield Row("kept", "messages that come again after kill -9", f"{back:,}", "≤ 1 % (acks of 100 ms)", back <= total * .01)


class Ids:
    """Message ids of an ack, encoded, each once, in an order that cannot be merged."""

    def __init__(self, ranges):
        self.ranges, self.starts, at = ranges, [], 0
        for _, _, n in ranges:
            self.starts.append(at)
            at += n
        self.total, self.at = at, at // 3
        self.step = int(at * 0.6180339887) | 1
        while math.gcd(self.step, at) != 1:
            self.step += 2

    def some(self, count):
        out = []
        for _ in range(count):
            self.at = (self.at + self.step) % self.total
            which = bisect.bisect_right(self.starts, self.at) - 1
            ledger, first, _ = self.ranges[which]
            body = b"\x08" + wire.varint(ledger) + b"\x10" + wire.varint(first + self.at - self.starts[which])
            out.append(b"\x1a" + bytes([len(body)]) + body)
        return b"".join(out)


def catch_up(context):
    """Pairs of runs, one behind the other, alone and beside a reader that began before and ends after: the disk of a shared
    machine has bad seconds of its own."""
    seconds, rate, rounds = context.size(8, 3), 1000, context.size(9, 1)
    with context.server() as server:
        perf = lambda *arguments: GemingaPerf(server, context.binary, *arguments)  # noqa: E731
        Pipe(server).subscribe("cold", "keeps", 0)
        perf("produce", "cold", "--size", 1024, "--time", f"{context.size(15, 2)}s").result()
        held = server.stats("cold")["msgInCounter"]
        settled_disk(server)
        quiet, busy, read = [], [], []
        for n in range(rounds * 2):
            # Who is first alternates.
            if n % 4 in (0, 3):
                quiet.append(perf("latency", "hot", "--rate", rate, "--time", f"{seconds}s").result())
                continue
            forget_pages(server.data)
            reader = perf("consume", "cold", "--count", held, "--until-idle", "1s")
            out = lambda: server.stats("cold")["msgOutCounter"]  # noqa: E731
            before = out()
            until(lambda: out() > before)
            began, first = time.monotonic(), out()
            tail = perf("latency", "hot", "--rate", rate, "--time", f"{seconds}s")
            while tail.running():
                if not reader.running():
                    forget_pages(server.data, sync=False)
                    reader = perf("consume", "cold", "--count", held, "--until-idle", "1s")
                time.sleep(0.05)
            read.append((out() - first) / (time.monotonic() - began))
            busy.append(tail.result())
            reader.end()
        half, tail = (Pairs([_quantile(run, name) for run in quiet], [_quantile(run, name) for run in busy]) for name in ("p50", "p99"))
        yield Row("alone", f"p99 of a tailing consumer at {rate:,}/s, alone", f"{tail.before:.2f} ms")
        yield Row("beside", "p99 with a cold reader of 1 KB messages beside it",
                  f"{tail.after:.2f} ms ({tail}), the reader at {statistics.median(read):,.0f}/s", "≤ +50 %", tail.most <= .5)
        yield Row("median", "… p50", f"{half.before:.2f}, {half.after:.2f} ms ({half})")


class Pairs:
    """Runs of the one kind and of the other, side by side. What the machine does in the meantime is alike for both of a pair,
    so the ratios within pairs tell more than the two medians; an aim is met only when both ways of looking meet it."""

    def __init__(self, before, after):
        self.before, self.after = statistics.median(before), statistics.median(after)
        ratios = [b / a - 1 for a, b in zip(before, after)]
        self.count, self.ratio = len(ratios), statistics.median(ratios)
        self.quartiles = statistics.quantiles(ratios, n=4)[::2] if len(ratios) > 1 else ratios * 2
        self.most, self.least = (pick(self.ratio, self.after / self.before - 1) for pick in (max, min))

    def __str__(self):
        low, high = self.quartiles
        return f"{self.ratio * 100:+.1f} % in the median of {self.count} pairs, half of them {low * 100:+.0f} to {high * 100:+.0f} %"


def settled_disk(server):
    """What was published is sorted into its files in the background."""
    written = -1
    while written != server.written():
        written = server.written()
        time.sleep(2)


def _quantile(run, name):
    return float(run["latencyMs"][name])


def dedup(context):
    seconds, rounds = context.size(2, 2), context.size(10, 1)
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
            speed, cost = (Pairs(of[kind, "off"], of[kind, "on"]) for of in (rates, costs))
            yield Row(f"rate_{kind}", f"{kind} of 100 B, without and with deduplication", f"{speed.before:,.0f}, {speed.after:,.0f}/s ({speed})",
                      "≥ -5 %", speed.least >= -.05)
            yield Row(f"cpu_{kind}", f"{kind}: CPU of the server each", f"{cost.before:.3f}, {cost.after:.3f} µs ({cost})", "≤ +5 %", cost.most <= .05)


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
        # The lookup is what makes Pulsar take the coordinator.
        pipe.ask(23, {1: "persistent://pulsar/system/transaction_coordinator_assign-partition-0", 2: 1, 3: 0}, 24)
        pipe.ask(62, {1: 1, 2: 0}, 63)
        run = Commits(pipe, ids, count)
        watch, start = Processors(server.pid), time.monotonic()
        for _ in range(min(at_once, count)):
            run.begin()
        while run.ended < count and time.monotonic() - start < 60:
            pipe.pump(0.0002)
        seconds, used = time.monotonic() - start, watch.stop()
        rate = run.ended / seconds
        yield Row("commits", f"commits of one message and one ack, {at_once} at once", f"{rate:,.0f}/s, {used['server_cpu_s'] / max(1, run.ended) * 1e6:.0f} µs of "
                  f"the server's CPU each; the load took {used['load_cores']:.2f} cores", "≥ 5,000/s", rate >= 5000)
        yield Row("latency", "begin to commit (p50, p99)", f"{quantile(run.took, .5) * 1000:.1f}, {quantile(run.took, .99) * 1000:.1f} ms")
        if run.ended == count:
            left = lambda: server.stats("in")["subscriptions"]["s"]["msgBacklog"]  # noqa: E731
            until(lambda: left() == 0, 10)
            yield Row("left", "messages left of those acked in transactions", str(left()), "0", left() == 0)


class Commits:
    """Transactions under way on one connection, each a step further with each answer."""

    NEW, NEW_DONE, ADD, ADD_DONE, ADD_SUB, ADD_SUB_DONE, END, END_DONE = range(50, 58)

    def __init__(self, pipe, ids, count):
        self.pipe, self.ids, self.count = pipe, ids, count
        self.state, self.took, self.begun, self.ended = {}, [], 0, 0
        pipe.look = self.step

    def begin(self):
        self.state[self.begun] = [None, 0, time.perf_counter()]
        self.pipe.queue(wire.frame(self.NEW, {1: self.begun, 2: 60_000, 3: 0}))
        self.begun += 1

    def step(self, command, data, at):
        if command not in (wire.SEND_RECEIPT, wire.ACK_RESPONSE, self.NEW_DONE, self.ADD_DONE, self.ADD_SUB_DONE, self.END_DONE):
            return
        size = load._LENGTH.unpack_from(data, at + 4)[0]
        fields = wire.parse(wire.parse(data[at + 8:at + 8 + size])[command][0])
        assert 4 not in fields or command in (wire.SEND_RECEIPT, wire.ACK_RESPONSE), (command, fields)
        number = fields[2][0] if command == wire.SEND_RECEIPT else fields.get(6, fields[1])[0] if command == wire.ACK_RESPONSE else fields[1][0]
        txn = self.state[number]
        if command == self.NEW_DONE:
            txn[0] = {2: fields.get(2, [0])[0], 3: fields.get(3, [0])[0]}
            self.pipe.queue(wire.frame(self.ADD, {1: number, **txn[0], 4: [full_name("out")]})
                            + wire.frame(self.ADD_SUB, {1: number, **txn[0], 4: [{1: full_name("in"), 2: "s"}]}))
            txn[1] = 2
        elif command == self.END_DONE:
            self.took.append(time.perf_counter() - txn[2])
            del self.state[number]
            self.ended += 1
            if self.begun < self.count:
                self.begin()
        else:
            txn[1] -= 1
            if not txn[1]:
                self.both_done(command, number, txn)

    def both_done(self, command, number, txn):
        least, most = txn[0][2], txn[0][3]
        if command in (self.ADD_DONE, self.ADD_SUB_DONE):
            txn[1] = 2
            ledger, entry = self.ids[number]
            head = wire.message({1: "p", 2: number, 3: 1, 22: least, 23: most})
            self.pipe.queue(wire.frame(wire.SEND, {1: 2, 2: number, 4: least, 5: most}, load._LENGTH.pack(len(head)) + head + b"y")
                            + wire.frame(wire.ACK, {1: 1, 2: 0, 3: [{1: ledger, 2: entry}], 6: least, 7: most, 8: number}))
        else:
            self.pipe.queue(wire.frame(self.END, {1: number, 2: least, 3: most, 4: 0}))
