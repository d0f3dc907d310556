#!/usr/bin/env python3
"""Counts words by an effectively-once function while it kills what runs it, and compares with the sequential answer.

    bench/functions/exactly.py                                      a million events, 50 kills, each language that is here
    bench/functions/exactly.py --languages java --events 20000 --kills 6
    bench/functions/exactly.py --seed 42                            the same words and the same kills at the same places

Broker, worker (`geminga worker`) and hosts are processes of their own. At places that the seed chooses one of them is ended by
`kill -9`: the host, the worker with or without its host, or the broker; now and then a worker is only paused, and wakes up when its
successor is at work. The answer is that of one run in order: each output once and in order, and every counter of the state.
A difference ends the program with 1, after the first ten of them.
"""

import argparse
import collections
import contextlib
import glob
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import machine  # noqa: E402
from servers import ROOT, Geminga, System  # noqa: E402
from workloads import multipart  # noqa: E402

BASH = """process() {
  local n=0
  if state get "n-$MSG"; then n=$REPLY; fi
  n=$((n + 1))
  state put "n-$MSG" "$n"
  state incr "$MSG"
  emit "$MSG $n"
}
"""
PYTHON = """from pulsar import Function

class Count(Function):
    def process(self, word, context):
        context.incr_counter(word, 1)
        return f"{word} {context.get_counter(word)}"
"""
GO = """package main

import (
	"context"
	"fmt"

	"github.com/apache/pulsar/pulsar-function-go/pf"
)

func process(ctx context.Context, in []byte) ([]byte, error) {
	fc, _ := pf.FromContext(ctx)
	if err := fc.IncrCounter(string(in), 1); err != nil {
		return nil, err
	}
	n, err := fc.GetCounter(string(in))
	return fmt.Appendf(nil, "%s %d", in, n), err
}

func main() { pf.Start(process) }
"""
JAVA = """import org.apache.pulsar.functions.api.*;

public class Count implements Function<String, String> {
    public String process(String word, Context context) {
        context.incrCounter(word, 1);
        return word + " " + context.getCounter(word);
    }
}
"""
# name of the file, its text, what the configuration says of it
LANGUAGES = {
    "bash": ("count.sh", BASH, {"runtime": "BASH", "sh": "count.sh"}),
    "python": ("count.py", PYTHON, {"runtime": "PYTHON", "py": "count.py", "className": "count.Count"}),
    "go": ("main.go", GO, {"runtime": "GO", "go": "main.go"}),
    "java": ("count.jar", JAVA, {"runtime": "JAVA", "jar": "count.jar", "className": "Count"}),
    "wasm": ("main.go", GO, {"runtime": "WASM", "wasm": "main.go"}),
}
INPUT, OUTPUT = "words", "counts"
NAMESPACE = "public/exactly"                                 # of the worker's own topics: the broker's own worker takes no part


class Worker(System):
    """`geminga worker` beside a broker."""

    name = label = "worker"

    def __init__(self, folder, broker, lease):
        super().__init__(folder)
        self.broker, self.lease = broker, lease

    def command(self):
        return [self.broker.binary, "worker", "--service-url", self.broker.service_url, "--http-port", str(self.http_port), "--data", self.data,
                "--functions-namespace", NAMESPACE, "--lease", str(self.lease)]

    def host(self):
        """The process of the function, if it has one now."""
        for pid in machine.tree(self.pid):
            with contextlib.suppress(OSError):
                if pid != self.pid and b"GMG_FUNCTION=" in pathlib.Path(f"/proc/{pid}/environ").read_bytes():
                    return pid
        return None


class Outputs:
    """Reads the outputs as they come, over all interruptions, to know how far it is."""

    def __init__(self, broker):
        self.broker, self.count, self.last, self.over = broker, 0, (-1, -1, -1), False
        self.process = None
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        while not self.over:
            self.process = consume(self.broker, OUTPUT, "-s", "progress", "-o", "wide")
            for line in self.process.stdout:
                ledger, entry, _, *batch = line.split("\t")[0].split(":")
                place = (int(ledger), int(entry), int(batch[0]) if batch else -1)
                if place > self.last:
                    self.last, self.count = place, self.count + 1
            self.process.wait()
            time.sleep(0.2)

    def stop(self):
        self.over = True
        self.process.kill()


def consume(broker, topic, *arguments):
    return subprocess.Popen([broker.binary, "--service-url", broker.service_url, "consume", topic, "--from", "earliest", *arguments],
                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


class Run:
    def __init__(self, folder, options, seed):
        self.folder, self.options, self.random = folder, options, random.Random(seed)
        self.broker = Geminga(f"{folder}/broker", options.geminga, options.durability)
        self.workers = [Worker(f"{folder}/worker-0", self.broker, options.lease)]
        self.zombie = None
        self.struck = collections.Counter()

    def strike(self):
        """Ends something; its name."""
        if self.zombie:
            self.zombie.kill()
            self.zombie = None
        worker = self.workers[-1]
        what = self.random.choices(["host", "worker", "worker and host", "broker", "pause"], [30, 20, 10, 30, 10])[0]
        host = worker.process.poll() is None and worker.host()
        if what == "host" and not host:
            what = "worker"                                  # it starts just now, or, of WASM, is the worker
        if what == "host":
            os.kill(host, signal.SIGKILL)
        elif what == "worker":
            worker.process.kill()                            # its hosts have to see by themselves that it has gone
            worker.process.wait()
            worker.launch()
        elif what == "worker and host":
            worker.kill()
            worker.launch()
        elif what == "broker":
            self.broker.kill()
            self.broker.launch()
        else:
            worker.process.send_signal(signal.SIGSTOP)
            self.zombie = worker
            self.workers.append(Worker(f"{self.folder}/worker-{len(self.workers)}", self.broker, self.options.lease))
            self.workers[-1].launch()
            until = time.monotonic() + self.options.lease + 4
            self.waking = threading.Timer(until - time.monotonic(), lambda process=worker.process: process.send_signal(signal.SIGCONT))
            self.waking.start()
        self.struck[what] += 1
        return what

    def stop(self):
        for worker in self.workers:
            worker.kill()
        self.broker.kill()


def code(language, folder, java_lib):
    filename, text, _ = LANGUAGES[language]
    if language != "java":
        return text.encode()
    pathlib.Path(folder, "Count.java").write_text(text)
    subprocess.run(["javac", "--release", "11", "-nowarn", "-proc:none", "-cp", f"{java_lib}/*", "-d", f"{folder}/classes", f"{folder}/Count.java"],
                   check=True)
    subprocess.run(["jar", "cf", f"{folder}/{filename}", "-C", f"{folder}/classes", "."], check=True)
    return pathlib.Path(folder, filename).read_bytes()


def one(language, options, seed, folder):
    """One language; the number of differences."""
    options.language = language
    run = Run(folder, options, seed)
    filename, _, fields = LANGUAGES[language]
    content = code(language, folder, options.java_lib)
    words = [f"w{run.random.randrange(options.words)}" for _ in range(options.events)]
    pathlib.Path(folder, "words").write_text("".join(f"{word}\n" for word in words))
    try:
        run.broker.start()
        run.broker.rest("PUT", f"/admin/v2/namespaces/{NAMESPACE}", {})
        for topic, name in ((INPUT, "keep"), (OUTPUT, "keep")):
            run.broker.create_subscription(topic, name)
        subprocess.run([options.geminga, "--service-url", run.broker.service_url, "produce", INPUT, "-f", f"{folder}/words"], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        run.workers[0].launch()
        config = {"tenant": "public", "namespace": "default", "name": "count", "inputs": [INPUT], "output": OUTPUT, "subscriptionPosition": "Earliest",
                  "processingGuarantees": "EFFECTIVELY_ONCE", **fields}
        body, kind = multipart([("functionConfig", None, "application/json", json.dumps(config).encode()),
                                ("data", filename, "application/octet-stream", content)])
        create(run.workers[0], body, kind)
        outputs = Outputs(run.broker)
        strikes = sorted(run.random.randrange(options.events) for _ in range(options.kills))
        began = shown = time.monotonic()
        before, since = 0, began
        while outputs.count < options.events:
            now = time.monotonic()
            if outputs.count > before:
                before, since = outputs.count, now
            if now - since > options.patience:
                raise SystemExit(f"{language}, seed {seed}: nothing came for {options.patience} s after {before} outputs")
            if run.workers[-1].process.poll() is not None:
                run.workers[-1].launch()                     # it ended by itself, since it found no broker: a supervisor's part
            while strikes and strikes[0] <= outputs.count:
                strikes.pop(0)
                what = run.strike()
                if options.verbose:
                    print(f"{now - began:7.1f} s: {outputs.count} of {options.events}, {what}", flush=True)
            if now - shown > 30:
                shown = now
                print(f"{now - began:7.1f} s: {outputs.count} of {options.events}, {sum(run.struck.values())} kills", flush=True)
            time.sleep(0.005)
        took = time.monotonic() - began
        outputs.stop()
        if run.zombie:                                       # it wakes up, and must do nothing that counts
            run.waking.join()
            time.sleep(1)
        return compare(language, run, words, took, seed)
    finally:
        run.stop()


def create(worker, body, kind):
    until = time.monotonic() + 60
    while True:
        try:
            return worker.rest("POST", "/admin/v3/functions/public/default/count", body, kind=kind, timeout=300)
        except urllib.error.HTTPError as error:
            raise SystemExit(f"not created: {error.code} {error.read().decode(errors='replace')[:500]}") from None
        except OSError:
            if time.monotonic() > until or worker.process.poll() is not None:
                raise SystemExit(f"no worker, see {worker.log}") from None
            time.sleep(0.05)


def compare(language, run, words, took, seed):
    differences, counts, expected = [], collections.Counter(), []
    for word in words:
        counts[word] += 1
        expected.append(f"{word} {counts[word]}")
    # A message more would come within a moment.
    got = consume(run.broker, OUTPUT, "--until-idle", "3s").communicate()[0].splitlines()
    if len(got) != len(expected):
        differences.append(f"{len(got)} outputs, not {len(expected)}")
    wrong = next((at for at, (one, other) in enumerate(zip(got, expected)) if one != other), None)
    if wrong is not None:
        differences.append(f"output {wrong} is `{got[wrong]}`, not `{expected[wrong]}`")
        doubled = [text for text, times in collections.Counter(got).items() if times > 1]
        lost = set(expected) - set(got)
        differences.append(f"{len(doubled)} outputs came more than once, {len(lost)} never: {doubled[:3]} {sorted(lost)[:3]}")
    worker = run.workers[-1]
    for word, wanted in counts.items():
        value = state(worker, word)
        if value != wanted:
            differences.append(f"the state of `{word}` is {value}, not {wanted}")
    struck = ", ".join(f"{times} × {what}" for what, times in sorted(run.struck.items()))
    said = "exactly the sequential answer" if not differences else "DIFFERENT"
    print(f"{language}: {len(words)} events over {len(counts)} words, {sum(run.struck.values())} kills ({struck}), {took:.0f} s, seed {seed}: {said}",
          flush=True)
    for difference in differences[:10]:
        print(f"  {difference}", flush=True)
    return len(differences)


def state(worker, word):
    """Asked again while the instance is being started."""
    until = time.monotonic() + 60
    while True:
        try:
            return worker.rest("GET", f"/admin/v3/functions/public/default/count/state/{word}").get("numberValue")
        except urllib.error.HTTPError as error:
            if time.monotonic() > until:
                return f"error {error.code}"
        except OSError:
            if time.monotonic() > until:
                raise
        time.sleep(0.2)


def main():
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--languages", help="those whose tools are here, when left out")
    parse.add_argument("--geminga", default=str(ROOT / "target/release/geminga"))
    parse.add_argument("--events", type=int, default=1_000_000)
    parse.add_argument("--kills", type=int, default=50)
    parse.add_argument("--words", type=int, default=2000, help="how many different ones")
    parse.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parse.add_argument("--durability", default="fsync")
    parse.add_argument("--lease", type=int, default=2, help="seconds after which a silent worker counts as dead")
    parse.add_argument("--patience", type=int, default=90, help="seconds without an output that end a run")
    parse.add_argument("--java-lib", default=os.environ.get("GEMINGA_JAVA_LIB") or next(iter(
        glob.glob(os.path.expanduser("~/.cache/geminga/java-api-*"))), ""), help="a folder with Pulsar's functions API")
    parse.add_argument("--keep", metavar="DIR", help="work here, and leave it")
    parse.add_argument("-v", "--verbose", action="store_true", help="tell each kill")
    options = parse.parse_args()
    tools = {"bash": "bash", "python": "python3", "go": "go", "java": "javac", "wasm": "go"}
    languages = options.languages.split(",") if options.languages else [each for each in LANGUAGES if shutil.which(tools[each])]
    differences = 0
    for language in languages:
        print(f"{language}: seed {options.seed}, {options.events} events, {options.kills} kills", flush=True)
        with contextlib.ExitStack() as stack:
            folder = options.keep and os.path.join(options.keep, language) or stack.enter_context(tempfile.TemporaryDirectory(prefix="geminga-exactly-"))
            os.makedirs(folder, exist_ok=True)
            differences += one(language, options, options.seed, folder)
    sys.exit(differences > 0)


if __name__ == "__main__":
    main()
