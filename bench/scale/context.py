"""Where cases run: servers with settings of their own, how much of the full size is done, and what a figure is."""

import contextlib
import os
import time
import urllib.request

import load  # noqa: F401  (sets the path for what follows)
from machine import SyncProbe, memory_mib
from servers import Geminga, Pulsar

# What Pulsar is given of the full size where it cannot hold that, or not in minutes.
PULSAR_SHARE = {"topics": 0.002, "delayed": 0.1, "acks": 0.02, "key_shared": 0.25, "fan_out": 0.25, "transactions": 0.25}


class Row:
    """One figure. `key` names it within its case, whatever the sizes; `met` is None where nothing is aimed at."""

    def __init__(self, key, what, figure, aim="", met=None):
        self.key, self.what, self.figure, self.aim = key, what, figure, aim
        self.met = None if met is None else bool(met)


class Watched:
    """What both servers can be asked."""

    def rss(self):
        """Bytes resident in the server alone."""
        return memory_mib(self.pid)[0] * (1 << 20)

    def written(self):
        """Bytes that it had written to files so far."""
        with open(f"/proc/{self.pid}/io") as io:
            return int(dict(line.strip().split(": ") for line in io).get("write_bytes"))

    def delayed(self, topic, subscription):
        return self.stats(topic)["subscriptions"][subscription]["msgDelayed"]

    def metric(self, name):
        with urllib.request.urlopen(self.admin_url + "/metrics/", timeout=60) as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith(name) and line[len(name)] in "{ ":
                    return float(line.rsplit(" ", 1)[1])
        return 0.0


class PulsarServer(Watched, Pulsar):
    """An Apache Pulsar with settings of its own."""

    def __init__(self, folder, distribution, settings):
        super().__init__(folder, distribution)
        with open(f"{self.folder}/standalone.conf", "a") as file:
            file.writelines(f"{key}={value}\n" for key, value in settings.items())

    def start(self):
        took = super().start()
        for n in range(32):
            # Serves a topic only after a lookup of one in the same bundle, which our load does not ask for.
            self.rest("GET", f"/lookup/v2/topic/persistent/public/default/bundle-{n}")
        return took


class Server(Watched, Geminga):
    """A Geminga with settings of its own."""

    def __init__(self, folder, binary, durability, settings):
        super().__init__(folder, binary, durability)
        self.conf = os.path.join(self.folder, "broker.conf")
        with open(self.conf, "w") as file:
            file.writelines(f"{key}={value}\n" for key, value in settings.items())

    def command(self):
        return [*super().command(), "--config", self.conf]


class Context:
    """Where servers are run, of which system, and how much of the full size is done."""

    def __init__(self, system, binary, distribution, folder, durability, scale):
        self.system, self.binary, self.distribution = system, binary, distribution
        self.folder, self.durability, self.scale = folder, durability, scale
        self.case = ""

    @property
    def is_geminga(self):
        return self.system == "geminga"

    def share(self, case):
        return self.scale * (1 if self.is_geminga else PULSAR_SHARE.get(case, 1))

    def size(self, full, least=1):
        return max(least, int(full * self.share(self.case)))

    def sync_probe(self):
        return SyncProbe(self.folder)

    def pulsar_version(self):
        return PulsarServer(os.path.join(self.folder, "pulsar"), self.distribution, {}).version()

    @contextlib.contextmanager
    def server(self, **settings):
        both = {"brokerDeleteInactiveTopicsEnabled": "false", "backlogQuotaDefaultLimitBytes": -1,
                # A pipe that nobody reads for a while must not be taken for dead.
                "keepAliveIntervalSeconds": 600}
        settings = {**both, **settings}
        if self.is_geminga:
            server = Server(os.path.join(self.folder, "geminga"), self.binary, self.durability, settings)
        else:
            settings = {key: value for key, value in settings.items() if not key.startswith("geminga")}
            server = PulsarServer(os.path.join(self.folder, "pulsar"), self.distribution, settings)
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
