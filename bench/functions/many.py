#!/usr/bin/env python3
"""Many functions on one server: WASM functions that all answer, and functions of processes that sleep.

    bench/functions/many.py                     10,000 WASM functions, then 1,000 of Bash that are asleep (about 3 minutes)
    bench/functions/many.py --wasm 500 --asleep 50

Each is created by REST, has a topic and a subscription of its own, and gets one message; it counts when its output has come.
Memory is the server's (PSS, /proc/PID/smaps_rollup), and of the sleeping ones that of their processes too.
"""

import argparse
import concurrent.futures
import os
import pathlib
import resource
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
import machine  # noqa: E402
import run  # noqa: E402
from servers import ROOT, Geminga  # noqa: E402
from workloads import full_name, look_up, multipart, wire  # noqa: E402

BASH = 'process() { emit "$MSG!"; }\n'


def memory(pids):
    """Proportional, in MiB."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup") as rollup:
                total += sum(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
        except OSError:
            pass
    return total / 1024


def create(system, kind, number, more):
    name = f"{kind}-{number}"
    field, filename, content = {"wasm": ("wasm", "bang.wat", (HERE / "bang.wat").read_bytes()), "bash": ("sh", "bang.sh", BASH.encode())}[kind]
    config = {"tenant": "public", "namespace": "default", "name": name, "inputs": [name], "output": f"{kind}-out", "runtime": kind.upper(),
              field: filename, "subscriptionPosition": "Earliest", "producerConfig": {"compressionType": "NONE"}, **more}
    body, form = multipart([("functionConfig", None, "application/json", run.json.dumps(config).encode()),
                            ("data", filename, "application/octet-stream", content)])
    system.rest("POST", f"/admin/v3/functions/public/default/{name}", body, kind=form, timeout=120)


def deploy(system, kind, count, **more):
    """Seconds it took, by eight clients."""
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: create(system, kind, number, more), range(count)))
    return time.monotonic() - began


def ask_all(system, kind, count):
    """Sends each function one message, and waits until every one of them has answered; seconds it took."""
    with wire.Connection(system, seconds=300) as outputs, wire.Connection(system, seconds=300) as inputs:
        look_up(outputs, f"{kind}-out")
        outputs.subscribe(full_name(f"{kind}-out"), "all", consumer_id=1, request=1)
        outputs.send(wire.FLOW, {1: 1, 2: 2 * count})
        for number in range(count):
            inputs.producer(full_name(f"{kind}-{number}"), producer_id=number + 1, request=number + 1)
        began = time.monotonic()
        for number in range(count):
            inputs.raw(wire.frame(wire.SEND, {1: number + 1, 2: 0}, wire.payload(0, b"%08d" % number + b"x" * 16)))
        missing = set(range(count))
        while missing:
            got = outputs.next()
            if got == wire.CLOSED:
                raise SystemExit(f"{kind}: the server closed the connection; {len(missing)} have not answered")
            command, _, payload = got
            if command == wire.MESSAGE:
                missing.difference_update(run.numbers(payload, count))
        return time.monotonic() - began


def settle(system):
    """Until the server has nothing more to do."""
    for _ in range(60):
        watch = machine.Processors(system.pid)
        time.sleep(1)
        if watch.stop()["server_cores"] < 0.05:
            return


def main():
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--wasm", type=int, default=10_000)
    parse.add_argument("--asleep", type=int, default=1_000)
    parse.add_argument("--geminga", default=str(ROOT / "target/release/geminga"))
    options = parse.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for kind, count, more in [("wasm", options.wasm, {}), ("bash", options.asleep, {"idleTimeoutMs": 1000})]:
        if not count:
            continue
        with tempfile.TemporaryDirectory(prefix="geminga-bench-") as folder:
            system = Geminga(folder, options.geminga)
            system.start()
            try:
                time.sleep(1)
                before = memory([system.pid])
                took = deploy(system, kind, count, **more)
                print(f"{kind}: {count:,} functions created in {took:.1f} s ({count / took:,.0f}/s)", flush=True)
                settle(system)
                print(f"  memory {memory([system.pid]):,.0f} MiB (the empty server {before:,.0f})", flush=True)
                took = ask_all(system, kind, count)
                print(f"  each got a message and answered, in {took:.1f} s", flush=True)
                if more:
                    until = time.monotonic() + 60
                    while len(machine.tree(system.pid)) > 1 and time.monotonic() < until:
                        time.sleep(1)
                settle(system)
                after = memory([system.pid])
                children = [pid for pid in machine.tree(system.pid) if pid != system.pid]
                print(f"  memory after that {after:,.0f} MiB, {(after - before) * 1024 / count:,.0f} KiB each; {len(children)} processes beside it", flush=True)
            finally:
                system.stop()


if __name__ == "__main__":
    main()
