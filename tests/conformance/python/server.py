"""A Geminga server of our own: started, killed and started again by the tests.

Where the binary is: $GEMINGA_BIN, else target/release/geminga, else target/debug/geminga.
"""

import json
import os
import pathlib
import random
import selectors
import signal
import socket
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[3]
READY_SECONDS = 20


def binary():
    named = os.environ.get("GEMINGA_BIN")
    if named:
        if not os.access(named, os.X_OK):
            raise RuntimeError(f"GEMINGA_BIN={named} is not an executable file")
        return os.path.abspath(named)
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    for profile in ("release", "debug"):
        path = target / profile / "geminga"
        if os.access(path, os.X_OK):
            return str(path)
    raise RuntimeError(f"no geminga in {target}: run `cargo build --release`, or set GEMINGA_BIN or SERVICE_URL and ADMIN_URL")


def quiet_ports():
    """Two free ports outside the range from which the system takes ports for outgoing connections. A server that is
    killed and started again needs them: while it is down, a client that tries to reconnect can be given the server's
    port for its own end, and talks to itself."""
    found = []
    while len(found) < 2:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
    return found


class Server:
    """One `geminga standalone` process and its data directory. Ports are free ones at the first start
    and stay the same afterwards, so that clients find the server again."""

    def __init__(self, *options, ports=(0, 0), ephemeral=False, data=None):
        self._folder = tempfile.TemporaryDirectory(prefix="geminga-conformance-")
        self.data = None if ephemeral else str(data or os.path.join(self._folder.name, "data"))
        self.log_path = os.path.join(self._folder.name, "server.log")
        self.environment = dict(os.environ)
        self.options = options
        self.process = None
        self.port, self.http_port = ports
        self.ready_seconds = None

    def command(self):
        return [binary(), "standalone", "--port", str(self.port), "--http-port", str(self.http_port),
                *(["--data", self.data] if self.data else ["--ephemeral"]), "-o", "json", *self.options]

    def launch(self):
        """Starts the process and does not wait for it."""
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(self.command(), stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL,
                                            env=self.environment)

    def start(self):
        """Starts the process and waits until it says its addresses."""
        began = time.monotonic()
        self.launch()
        line = self._first_line(began + READY_SECONDS)
        self.ready_seconds = time.monotonic() - began
        told = json.loads(line)
        self.told = told
        self.hear(told)
        return self

    def hear(self, told):
        self.service_url, self.admin_url = told["serviceUrl"], told["adminUrl"].rstrip("/")
        self.port = int(self.service_url.rsplit(":", 1)[1])
        self.http_port = int(self.admin_url.rsplit(":", 1)[1])

    def _first_line(self, until):
        pipe = self.process.stdout
        with selectors.DefaultSelector() as ready:
            ready.register(pipe, selectors.EVENT_READ)
            line = b""
            while not line.endswith(b"\n"):
                if not ready.select(max(0, until - time.monotonic())):
                    self.kill()
                    raise RuntimeError(f"the server was not ready in {READY_SECONDS} s: {self.log_tail()}")
                byte = os.read(pipe.fileno(), 1)
                if not byte:
                    raise RuntimeError(f"the server ended with {self.process.wait()} before it was ready: {self.log_tail()}")
                line += byte
        return line

    def kill(self):
        """`kill -9`: what a crash of the process looks like to the disk and to the clients."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()

    def restart(self):
        self.kill()
        return self.start()

    def stop(self, seconds=10):
        """Clean stop; the exit status and how long it took."""
        began = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the server did not stop {seconds} s after SIGTERM: {self.log_tail()}") from None
        self.process.stdout.close()
        return status, time.monotonic() - began

    def close(self):
        try:
            if self.process and self.process.poll() is None:
                self.stop()
        finally:
            self._folder.cleanup()

    def rss_kib(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))

    def log_tail(self, size=4000):
        with open(self.log_path, "rb") as log:
            log.seek(max(0, os.path.getsize(self.log_path) - size))
            return log.read().decode(errors="replace")


class Worker(Server):
    """A `geminga worker` beside a broker that runs elsewhere. `service_url` is the broker's, `admin_url` its own."""

    def __init__(self, broker, *options, namespace=None):
        super().__init__(*options, ports=quiet_ports())
        self.service_url, self.namespace = broker.service_url, namespace

    def command(self):
        return [binary(), "worker", "--service-url", self.service_url, "--http-port", str(self.http_port), "--data", self.data,
                *(["--functions-namespace", self.namespace] if self.namespace else []), "-o", "json", *self.options]

    def hear(self, told):
        self.admin_url = told["adminUrl"].rstrip("/")


class OutsideServer:
    """A server that somebody else runs: SERVICE_URL and ADMIN_URL."""

    def __init__(self):
        self.service_url = os.environ["SERVICE_URL"]
        self.admin_url = os.environ["ADMIN_URL"].rstrip("/")

    def log_tail(self):
        return "(the log of an outside server is not ours)"

    def close(self):
        pass


def is_outside():
    return "SERVICE_URL" in os.environ


def has_functions():
    """Whether functions can be made: on a server of ours, or with FUNCTIONS_WORKER=1 on a worker of ours beside an outside one."""
    return not is_outside() or os.environ.get("FUNCTIONS_WORKER") == "1"
