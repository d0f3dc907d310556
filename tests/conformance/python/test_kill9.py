"""Random `kill -9` under load: a Python producer and functions at work, and the server dies again and again.

At the end every message that was acknowledged to the producer is read back in order, every one of them has its
function outputs, in order where that was asked for, and no process of a dead server is left. KILL9_ROUNDS says how often (15),
CONFORMANCE_SEED repeats the choice of moments.
"""

import os
import random
import threading
import time

import pulsar
import pytest

from cli import create_function
from support import eventually

ROUNDS = int(os.environ.get("KILL9_ROUNDS", "15"))
# messages a second: what the slowest function does easily, so that the load is on all the time
RATE = 1500
# one start in this many is itself killed before it is ready
KILLED_STARTS = 4

BASH = """\
process() { emit "$MSG!"; }
"""
PYTHON = """\
def process(input):
    return "%s?" % input        # digits come as a number, as in Pulsar
"""

pytestmark = [pytest.mark.own_server, pytest.mark.timeout(120 + 10 * ROUNDS)]


class Load(threading.Thread):
    """Sends 0, 1, 2, ... without end; remembers what was acknowledged. Send time-outs are off: a message waits for
    the server to come back, and the client sends it again."""

    def __init__(self, client, topic):
        super().__init__(daemon=True)
        self.producer = client.create_producer(topic, send_timeout_millis=0, max_pending_messages=300, block_if_queue_full=True,
                                               batching_enabled=True, batching_max_publish_delay_ms=2, batching_max_messages=50)
        self.sent = self.acknowledged = 0
        self.failed = []
        self.stopping = threading.Event()

    def _done(self, result, _):
        if result == pulsar.Result.Ok:
            self.acknowledged += 1          # callbacks come from one thread, in the order of sending
        else:
            self.failed.append(result)

    def run(self):
        began = time.monotonic()
        paced = 0
        while not self.stopping.is_set():
            self.producer.send_async(b"%d" % self.sent, self._done)
            self.sent += 1
            paced += 1
            ahead = paced / RATE - (time.monotonic() - began)
            if ahead > 0.01:
                time.sleep(ahead)           # the pace of the load, not a wait for anything
            elif ahead < -0.5:
                began, paced = time.monotonic(), 0

    def stop(self):
        self.stopping.set()
        self.join(30)
        eventually(lambda: self.acknowledged + len(self.failed) == self.sent, 30, "the last sends are answered")


def children(pid):
    """(pid, start time) of every process below `pid`."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as stat:
                    fields = stat.read().rsplit(")", 1)[1].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append((int(name), fields[19]))
    found, todo = set(), [pid]
    while todo:
        for child in parents.get(todo.pop(), []):
            found.add(child)
            todo.append(child[0])
    return found


def alive(process):
    pid, started = process
    try:
        with open(f"/proc/{pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
    except OSError:
        return False
    return fields[19] == started and fields[0] != "Z"


def read_back(client, topic, suffix, total, seconds, ordered=True):
    """Reads until every number below `total` was seen. A number may come twice; where order is promised, none may
    come before its time. The count of those that came twice."""
    reader = client.create_reader(topic, pulsar.MessageId.earliest, receiver_queue_size=5000)
    seen, top, twice, until = set(), -1, 0, time.monotonic() + seconds
    while len(seen) < total:
        left = until - time.monotonic()
        assert left > 0, f"{topic}: {len(seen)} of {total} in {seconds} s, the first missing is {min(set(range(total)) - seen)}"
        try:
            message = reader.read_next(int(left * 1000) + 1)
        except pulsar.Timeout:
            continue
        text = message.data().decode()
        assert text.endswith(suffix), text
        value = int(text[:len(text) - len(suffix)])
        assert value <= top + 1 or not ordered, f"{topic}: {value} came, {top + 1} was due: something is missing or out of order"
        top = max(top, value)
        twice += value in seen
        seen.add(value)
    reader.close()
    return twice


def crash(server, source):
    """`kill -9` now, and sometimes again while it starts."""
    hosts = children(server.process.pid)
    server.kill()
    while source.randrange(KILLED_STARTS) == 0:
        server.launch()
        time.sleep(source.uniform(0, 0.06))     # a random moment is the point
        hosts |= children(server.process.pid)
        server.kill()
    server.start()
    return hosts


class Trial:
    """A server that is killed `ROUNDS` times while a producer works, and what it takes to do it again."""

    def __init__(self, server, client, topic, seed):
        self.server, self.topic, self.seed = server, topic, seed
        self.source = random.Random(seed)
        self.load = Load(client, topic)
        self.hosts, self.ready = set(), []

    def run(self):
        load = self.load
        load.start()
        for number in range(ROUNDS):
            goal = load.acknowledged + self.source.randrange(1, 1200)
            eventually(lambda: load.acknowledged >= goal or load.failed, 30, f"round {number}: the producer goes on")
            time.sleep(self.source.uniform(0, 0.1))      # a random moment is the point
            self.hosts |= crash(self.server, self.source)
            self.ready.append(self.server.ready_seconds)
        load.stop()
        assert not load.failed, load.failed[:3]

    def report(self, more):
        ready = sorted(self.ready)
        print(f"\nkill -9: {ROUNDS} rounds, CONFORMANCE_SEED={self.seed}: {self.load.sent} messages acknowledged, all read back in order; "
              f"{more}; ready again in {ready[len(ready) // 2] * 1000:.0f} ms (p50), {ready[-1] * 1000:.0f} ms (max)")


def test_nothing_acknowledged_is_lost(own_server, new_client, topic, seed):
    trial = Trial(own_server, new_client(own_server.service_url), topic, seed)
    trial.run()
    twice = read_back(new_client(own_server.service_url), topic, "", trial.load.sent, 60)
    trial.report(f"{twice} were sent twice by the client")


def test_no_function_output_is_missing(own_server, new_client, topic, tmp_path, seed):
    trial = Trial(own_server, new_client(own_server.service_url), topic, seed)
    (tmp_path / "bang.sh").write_text(BASH)
    (tmp_path / "ask.py").write_text(PYTHON)
    create_function(own_server, "bang", "--sh", tmp_path / "bang.sh", "--inputs", topic, "--output-topic", f"{topic}-bang",
                    "--subs-position", "Earliest", "--retain-ordering")
    create_function(own_server, "ask", "--py", tmp_path / "ask.py", "--inputs", topic, "--output-topic", f"{topic}-ask",
                    "--subs-position", "Earliest")
    trial.run()
    reader, sent = new_client(own_server.service_url), trial.load.sent
    read_back(reader, topic, "", sent, 60)
    # `bang` promised order by --retain-ordering; the other subscription is Shared, where a crash may reorder
    twice = {"bang": read_back(reader, f"{topic}-bang", "!", sent, 90),
             "ask": read_back(reader, f"{topic}-ask", "?", sent, 90, ordered=False)}
    eventually(lambda: not [host for host in trial.hosts if alive(host)], 10, "processes of dead servers end")
    trial.report(f"function outputs all there, some twice: {twice}")
