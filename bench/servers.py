"""The two systems: how each is started, stopped, killed and wiped. Everything else treats them alike."""

import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent


def free_port():
    """Below the range that outgoing connections use: see `quiet_ports` in tests/conformance/python/server.py."""
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                pass


class System:
    """A server process, its data folder and its addresses."""

    name = durability = label = ""

    def __init__(self, folder):
        self.folder = os.path.abspath(folder)
        os.makedirs(self.folder, exist_ok=True)
        self.data = os.path.join(self.folder, "data")
        self.log = os.path.join(self.folder, "server.log")
        self.process = None
        self.port, self.http_port = free_port(), free_port()
        self.service_url = f"pulsar://127.0.0.1:{self.port}"
        self.admin_url = f"http://127.0.0.1:{self.http_port}"

    @property
    def pid(self):
        return self.process.pid

    def command(self):
        raise NotImplementedError

    def launch(self):
        """Starts the process; the moment before it."""
        began = time.monotonic()
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.command(), cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=subprocess.STDOUT, start_new_session=True)
        return began

    def start(self):
        began = self.launch()
        self.wait_for_admin()
        return time.monotonic() - began

    def wait_for_admin(self, seconds=120):
        """The moment of the first good answer of the admin API."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            try:
                self.rest("GET", "/admin/v2/namespaces/public/default", timeout=2)
                return time.monotonic()
            except (OSError, urllib.error.URLError):
                if self.process.poll() is not None:
                    raise SystemExit(f"{self.label} ended while starting, see {self.log}") from None
                time.sleep(0.001)
        raise SystemExit(f"{self.label}: no answer in {seconds} s, see {self.log}")

    def stop(self, how=signal.SIGTERM):
        if self.process is None:
            return 0.0
        began = time.monotonic()
        if self.process.poll() is None:
            os.kill(self.pid, how)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(self.pid, signal.SIGKILL)      # whatever it left behind: it had a session of its own
        except ProcessLookupError:
            pass
        self.process.wait()
        self.process = None
        return time.monotonic() - began

    def kill(self):
        return self.stop(signal.SIGKILL)

    def wipe(self):
        shutil.rmtree(self.data, ignore_errors=True)

    def rest(self, method, path, body=None, timeout=60, kind="application/json"):
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        request = urllib.request.Request(self.admin_url + path, data=data, method=method, headers={"Content-Type": kind})
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            content = answer.read()
        try:
            return json.loads(content) if content else None
        except ValueError:
            return content.decode(errors="replace")

    def stats(self, topic):
        return self.rest("GET", f"/admin/v2/persistent/public/default/{topic}/stats")

    def create_subscription(self, topic, subscription):
        try:
            self.rest("PUT", f"/admin/v2/persistent/public/default/{topic}")
        except urllib.error.HTTPError as error:
            if error.code != 409:
                raise
        self.rest("PUT", f"/admin/v2/persistent/public/default/{topic}/subscription/{subscription}",
                  {"ledgerId": -1, "entryId": -1, "partitionIndex": -1})


class Geminga(System):
    name = "geminga"

    def __init__(self, folder, binary, durability="fsync"):
        super().__init__(folder)
        self.binary, self.durability = os.path.abspath(binary), durability
        self.label = f"Geminga ({durability})"

    def command(self):
        return [self.binary, "standalone", "--port", str(self.port), "--http-port", str(self.http_port), "--data", self.data,
                "--durability", self.durability]

    def shown_command(self):
        return f"geminga standalone --data DIR --durability {self.durability}"

    def version(self):
        return subprocess.run([self.binary, "--version"], capture_output=True, text=True, check=True).stdout.strip()


class Pulsar(System):
    name = "pulsar"
    HEAP = "2g"

    def __init__(self, folder, distribution, durability="no fsync", functions="process"):
        """`functions`: where instances run, each a `process` or a `thread` of the server."""
        super().__init__(folder)
        self.distribution, self.durability, self.functions = os.path.abspath(distribution), durability, functions
        self.label = f"Pulsar ({durability})"
        self._write_settings()

    def version(self):
        return "Apache Pulsar " + pathlib.Path(self.distribution, "VERSION").read_text().strip()

    def shown_command(self):
        return f"PulsarStandaloneStarter, heap {self.HEAP}, ZGC, journalSyncData={str(self.durability == 'fsync').lower()}"

    def _write_settings(self):
        """A standalone as Pulsar ships it, on our ports. What differs from its own standalone.conf: journalSyncData as
        asked, batch index acknowledgement on, idle topics are kept, cache sizes that fit the machine."""
        settings = {
            "clusterName": "standalone", "brokerServicePort": self.port, "webServicePort": self.http_port,
            "bindAddress": "127.0.0.1", "advertisedAddress": "127.0.0.1", "allowAutoTopicCreation": "true",
            "brokerDeleteInactiveTopicsEnabled": "false", "managedLedgerDefaultEnsembleSize": 1,
            "managedLedgerDefaultWriteQuorum": 1, "managedLedgerDefaultAckQuorum": 1,
            "ledgerStorageClass": "org.apache.bookkeeper.bookie.storage.ldb.DbLedgerStorage",
            "transactionCoordinatorEnabled": "true", "systemTopicEnabled": "true", "topicLevelPoliciesEnabled": "true",
            "enablePackagesManagement": "true", "packagesReplicas": 1,
            "packagesManagementStorageProvider":
                "org.apache.pulsar.packages.management.storage.filesystem.FileSystemPackagesStorageProvider",
            "acknowledgmentAtBatchIndexLevelEnabled": "true", "dispatcherMinReadBatchSize": 1, "numHttpServerThreads": 8,
            "nettyMaxFrameSizeBytes": 5253120, "journalSyncData": str(self.durability == "fsync").lower(),
            "journalMaxSizeMB": 256, "dbStorage_writeCacheMaxSizeMb": 256, "dbStorage_readAheadCacheMaxSizeMb": 64,
            "diskUsageThreshold": 0.99, "diskUsageWarnThreshold": 0.99,
        }
        worker = {
            "workerId": "standalone", "workerHostname": "localhost", "workerPort": free_port(),
            "configurationMetadataStoreUrl": '""', "pulsarServiceUrl": self.service_url, "pulsarWebServiceUrl": self.admin_url,
            "numFunctionPackageReplicas": 1, "downloadDirectory": f"{self.folder}/downloads",
            "pulsarFunctionsNamespace": "public/functions", "pulsarFunctionsCluster": "standalone",
            "functionMetadataTopicName": "metadata", "clusterCoordinationTopicName": "coordinate",
            "functionAssignmentTopicName": "assignments",
            "schedulerClassName": "org.apache.pulsar.functions.worker.scheduler.RoundRobinScheduler",
            "failureCheckFreqMs": 30000, "rescheduleTimeoutMs": 60000, "initialBrokerReconnectMaxRetries": 60,
            "assignmentWriteMaxRetries": 60, "instanceLivenessCheckFreqMs": 30000,
            **self._function_runtime(),
        }
        with open(f"{self.folder}/standalone.conf", "w") as file:
            file.writelines(f"{key}={value}\n" for key, value in settings.items())
        with open(f"{self.folder}/functions_worker.yml", "w") as file:
            file.writelines(f"{key}: {value}\n" for key, value in worker.items())

    def _function_runtime(self):
        package = "org.apache.pulsar.functions.runtime"
        if self.functions == "thread":
            return {"functionRuntimeFactoryClassName": f"{package}.thread.ThreadRuntimeFactory",
                    "functionRuntimeFactoryConfigs": '\n  threadGroupName: "functions"'}
        return {"functionRuntimeFactoryClassName": f"{package}.process.ProcessRuntimeFactory",
                "functionRuntimeFactoryConfigs": "\n  javaInstanceJarLocation: {0}/instances/java-instance.jar"
                "\n  pythonInstanceLocation: {0}/instances/python-instance/python_instance_main.py"
                "\n  logDirectory: {1}/function-logs".format(self.distribution, self.folder)}

    def command(self):
        return [*java(self.distribution, self.HEAP, "4g", "-XX:+UseZGC", "-XX:+ExitOnOutOfMemoryError",
                      "-Dpulsar.allocator.exit_on_oom=true",
                      f"-Dpulsar.functions.instance.classpath={self.distribution}/lib/*"),
                "org.apache.pulsar.PulsarStandaloneStarter", "--config", f"{self.folder}/standalone.conf",
                "--functions-worker-conf", f"{self.folder}/functions_worker.yml", "--no-stream-storage",
                "--metadata-dir", f"{self.data}/metadata", "--bookkeeper-dir", f"{self.data}/bookkeeper"]


def java(distribution, heap, direct, *more):
    """A Java command line with all of the distribution on its class path."""
    opened = [f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in
              ("java.nio", "java.lang", "java.util.zip", "sun.net", "jdk.internal.misc", "jdk.internal.platform")]
    return ["java", f"-Xms{heap}", f"-Xmx{heap}", f"-XX:MaxDirectMemorySize={direct}", *more, *opened,
            "--add-opens=java.management/sun.management=ALL-UNNAMED", "-Dio.netty.tryReflectionSetAccessible=true",
            f"-Dlog4j.configurationFile={distribution}/conf/log4j2.xml", "-cp", f"{distribution}/lib/*"]


class PulsarPerf:
    """One run of pulsar-perf, the load generator that both systems get."""

    REPORT = re.compile(r"Throughput .*?---\s*([\d.]+) +msg/s")
    INTERVAL = re.compile(r"Throughput received.*?--- Latency: (.*)")
    LATENCY = re.compile(r"(?:mean|avg):\s*([\d.]+)\s*ms\s*-\s*med:\s*([\d.]+)\s*-\s*95pct:\s*([\d.]+)\s*-\s*99pct:\s*([\d.]+)"
                         r"\s*-\s*99\.9pct:\s*([\d.]+).*?Max:\s*([\d.]+)", re.I)
    COUNT = re.compile(r"Aggregated throughput.*?---\s*(\d+)\s*records")

    def __init__(self, system, distribution, log, *arguments):
        self.log = log
        settings = os.path.join(system.folder, "perf-client.conf")
        with open(settings, "w") as file:
            file.write(f"webServiceUrl={system.admin_url}/\nbrokerServiceUrl={system.service_url}\n")
        arguments = [arguments[0], "-u", system.service_url, *map(str, arguments[1:])]
        with open(log, "wb") as out:
            self.process = subprocess.Popen(
                [*java(distribution, "1g", "1g"), "org.apache.pulsar.testclient.PulsarPerfTestTool", settings, *arguments],
                stdout=out, stderr=subprocess.STDOUT)

    def running(self):
        return self.process.poll() is None

    def wait(self, seconds):
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise SystemExit(f"pulsar-perf did not end, see {self.log}") from None

    def result(self):
        """Messages in all, the latency of the whole run, and that of each ten seconds after the first (ms)."""
        result = {"messages": None, "latency_ms": None, "intervals_ms": []}
        with open(self.log, errors="replace") as log:
            for line in log:
                if found := self.COUNT.search(line):
                    result["messages"] = int(found[1])
                if (found := self.INTERVAL.search(line)) and (found := self.LATENCY.search(found[1])):
                    result["intervals_ms"].append(dict(zip(("mean", "p50", "p95", "p99", "p999", "max"), map(float, found.groups()))))
                if "Aggregated latency" in line and (found := self.LATENCY.search(line)):
                    result["latency_ms"] = dict(zip(("mean", "p50", "p95", "p99", "p999", "max"), map(float, found.groups())))
        return result


class GemingaPerf:
    """One run of `geminga perf`; it says its result as JSON."""

    def __init__(self, system, binary, *arguments):
        self.shown = "geminga perf " + " ".join(map(str, arguments))
        self.process = subprocess.Popen([binary, "perf", *map(str, arguments), "--service-url", system.service_url, "-o", "json"],
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def running(self):
        return self.process.poll() is None

    def end(self):
        """Before it is done, for one whose result is not wanted."""
        self.process.kill()
        self.process.communicate()

    def result(self, seconds=300):
        out, err = self.process.communicate(timeout=seconds)
        if self.process.returncode:
            raise SystemExit(f"{self.shown}: {err}")
        return json.loads(out.strip().splitlines()[-1])

