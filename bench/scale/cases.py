"""Many topics, connections, consumers and subscriptions. Each case gets a place to run servers, and gives back rows."""

import random
import time

import load
import wire
from context import Row, settled_rss, until
from load import Frames, Pipe, full_name, publish, pump_all
from machine import Processors, forget_pages, quantile

KEY_SHARED, EARLIEST = 3, 1


def topics(context):
    """Made by PRODUCER and CLOSE_PRODUCER, so each is in memory once; then idle, then over two restarts, then used cold."""
    clients, window = 8, 2000
    count = context.size(1_000_000, 1000)
    with context.server(gemingaTopicIdleMillis=1000) as server:
        # Frames are built before, by 200, so that the load leaves the processors to the server.
        lots = [[b"".join(load.make_and_close(f"persistent://public/default/many-{at}-{n}", n) for n in range(first, first + 200))
                 for first in range(0, -(-count // clients), 200)] for at in range(clients)]
        before = server.rss()
        pipes = [Pipe(server) for _ in range(clients)]
        for pipe in pipes:
            pipe.made = 0
        made = sum(map(len, lots)) * 200
        watch, began = Processors(server.pid), time.monotonic()
        while sum(pipe.count(wire.SUCCESS) for pipe in pipes) < made:
            moved = False
            for at, pipe in enumerate(pipes):
                if lots[at] and pipe.made - pipe.count(wire.SUCCESS) < window and len(pipe.out) < 1 << 20:
                    pipe.queue(lots[at].pop(0))
                    pipe.made += 200
                    moved = True
                moved |= pipe.pump()
            if not moved:
                time.sleep(0.0005)
        took, used = time.monotonic() - began, watch.stop()
        per = [pipe.made for pipe in pipes]
        for pipe in pipes:
            pipe.close()
        yield Row("rate", f"{made:,} created by {clients} clients", f"{made / took:,.0f}/s ({used['server_cpu_s'] / made * 1e6:.0f} µs of CPU each; "
                  f"the load took {used['load_cores']:.2f} cores)", "≥ 20,000/s", made / took >= 20_000)
        if not context.is_geminga:
            each = (settled_rss(server) - before) / made
            yield Row("made", "memory each, idle, as they were made", f"{each:,.0f} B", "≤ 1,024 B", each <= 1024)
            return
        until(lambda: server.metric("pulsar_broker_topics_count") < 100, 60, 1)
        each = (settled_rss(server) - before) / made
        yield Row("made", "memory each, idle, as they were made", f"{each:,.0f} B", "≤ 1,024 B", each <= 1024)
        server.stop()
        began = server.start()
        yield Row("restart", "restart ready after SIGTERM", f"{began:.2f} s", "≤ 5 s", began <= 5)
        each = (settled_rss(server) - before) / made
        yield Row("restarted", "memory each, idle, after a restart", f"{each:,.0f} B", "≤ 1,024 B", each <= 1024)
        server.kill()
        began = server.start()
        yield Row("killed", "restart ready after kill -9", f"{began:.2f} s", "≤ 5 s", began <= 5)
        pipe, opened, sent, syncs = Pipe(server), [], [], context.sync_probe()
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
            syncs.once()
        p50, p99 = quantile(opened, .5), quantile(opened, .99)
        yield Row("cold", "first use of a cold topic: its producer is open (p50, p99)",
                  f"{p50:.2f}, {p99:.2f} ms; a sync of this disk meanwhile {quantile(syncs.ms, .5):.2f}, {quantile(syncs.ms, .99):.2f}",
                  "p50 ≤ 2 ms", p50 <= 2)
        yield Row("cold_sent", "… its first message is durable (p50, p99)", f"{quantile(sent, .5):.2f}, {quantile(sent, .99):.2f} ms")
        syncs.close()


def connections(context):
    count = context.size(10_000, 100)
    with context.server() as server:
        first = [Pipe(server) for _ in range(10)]
        before = server.rss()
        began = time.monotonic()
        pipes = [Pipe(server) for _ in range(count)]
        took = time.monotonic() - began
        each = (settled_rss(server) - before) / count
        yield Row("idle", f"memory each, {count:,} connected and idle", f"{each:,.0f} B", "≤ 20,000 B", each <= 20_000)
        yield Row("rate", "connected one after another", f"{count / took:,.0f}/s")
        for pipe in pipes:
            pipe.queue(wire.frame(wire.PRODUCER, {1: full_name("shared"), 2: 1, 3: 1}))
            pipe.pump()
        pump_all(pipes, lambda: sum(pipe.count(wire.PRODUCER_SUCCESS) for pipe in pipes) == count)
        each = (settled_rss(server) - before) / count
        yield Row("opened", "memory each, just after each opened a producer", f"{each:,.0f} B", "≤ 20,000 B", each <= 20_000)
        frames = Frames(1, b"x" * 100)
        for pipe in pipes:
            pipe.queue(frames.many(0, 1))
            pipe.pump()
        pump_all(pipes, lambda: sum(pipe.count(wire.SEND_RECEIPT) for pipe in pipes) == count)
        each = (settled_rss(server) - before) / count
        yield Row("used", "memory each, with a producer that sent a message", f"{each:,.0f} B", "≤ 20,000 B", each <= 20_000)
        for pipe in first + pipes:
            pipe.close()


def key_shared(context):
    """CPU of the server a message: all at once, and one by one at a rate, where nothing can be shared."""
    burst, trickle, rate = context.size(400_000, 2000), context.size(20_000, 500), 2000
    costs = {}
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
            ready = b"".join(frames(first, min(1000, burst - first)) for first in range(0, burst, 1000))
            watch, began = Processors(server.pid), time.monotonic()
            sender.queue(ready)
            pump_all([*pipes, sender], lambda: got() >= burst)
            used, took = watch.stop(), time.monotonic() - began
            cost = costs["burst", consumers] = used["server_cpu_s"] / burst * 1e6
            grown = cost / costs["burst", 10] - 1
            yield Row(f"burst_{consumers}", f"{consumers:,} consumers on one subscription, all messages at once",
                      f"{cost:.1f} µs of CPU a message{f' ({grown * 100:+.0f} %)' if consumers > 10 else ''}, {burst / took:,.0f}/s",
                      "does not grow (+25 %)" if consumers > 10 else "", grown <= .25 if consumers > 10 else None)
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
            cost = costs["single", consumers] = used["server_cpu_s"] / trickle * 1e6
            grown = cost / costs["single", 10] - 1
            yield Row(f"single_{consumers}", f"{consumers:,} consumers, {rate:,} messages a second, one by one",
                      f"{cost:.1f} µs of CPU a message{f' ({grown * 100:+.0f} %)' if consumers > 10 else ''}",
                      "does not grow (+25 %)" if consumers > 10 else "", grown <= .25 if consumers > 10 else None)
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
            what = "catch up with a cold backlog" if late else "follow a producer"
            if context.is_geminga:
                each = (server.metric("geminga_storage_read_entries_total") - reads) / count
                yield Row(f"reads_{late}", f"{subscriptions} subscriptions {what}: entries read from the disk for each of {count:,} stored",
                          f"{each:.2f}", "≤ 1.1" if late else "0", each <= (1.1 if late else 0))
            yield Row(f"rate_{late}", f"{subscriptions} subscriptions {what}",
                      f"{wanted / took:,.0f} messages/s, {used['server_cpu_s'] / wanted * 1e6:.2f} µs of CPU each")
            for pipe in pipes:
                pipe.close()
