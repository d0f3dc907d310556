#!/usr/bin/env python3
"""What a function that misbehaves costs those beside it: the latency of messages at 1,000 a second, alone and beside one.

    bench/functions/hostile.py                  all of them, 8 pairs each (about 10 minutes)
    bench/functions/hostile.py --only forks,floods --pairs 2

Each function is Bash or Python with the limits of its row, and gets a message that it never does well; what it did is read from
its status afterwards. Runs alone and beside it take turns: while it is not wanted, the function is stopped by the admin API.
"""

import argparse
import json
import pathlib
import sys
import tempfile
import time
import urllib.error

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "scale")]
from heavy import Pairs  # noqa: E402
from servers import ROOT, Geminga, GemingaPerf  # noqa: E402
from workloads import full_name, look_up, multipart, wire  # noqa: E402

# what it does: runtime, code, settings
HOSTILE = {
    "nothing": ("bash", 'process() { emit "$MSG"; }\n', {}),
    "hangs": ("bash", 'process() { while :; do :; done; }\n', {"timeoutMs": 2000}),
    "hangs on a half of a processor": ("bash", 'process() { while :; do :; done; }\n', {"timeoutMs": 2000, "resources": {"cpu": 0.5}}),
    "floods": ("bash", 'process() { while :; do emit "$MSG$MSG$MSG$MSG"; done; }\n', {"timeoutMs": 2000, "resources": {"cpu": 0.5}}),
    "prints": ("bash", 'process() { while :; do echo "$MSG" >&2; done; }\n', {"timeoutMs": 2000, "resources": {"cpu": 0.5}}),
    "forks": ("bash", 'process() { b() { b | b & }; b; sleep 60; }\n', {"timeoutMs": 2000, "resources": {"cpu": 0.5}}),
    "takes memory": ("python", "def process(input):\n    all = []\n    while True:\n        all.append(bytearray(1 << 20))\n", {"resources": {"cpu": 0.5, "ram": 1 << 28}}),
}


def create(system, name, runtime, code, more):
    field, filename = {"bash": ("sh", "it.sh"), "python": ("py", "it.py")}[runtime]
    config = {"tenant": "public", "namespace": "default", "name": name, "inputs": [name], "output": f"{name}-out", "runtime": runtime.upper(),
              field: filename, "subscriptionPosition": "Earliest", **({"className": "it"} if runtime == "python" else {}), **more}
    body, form = multipart([("functionConfig", None, "application/json", json.dumps(config).encode()),
                            ("data", filename, "application/octet-stream", code.encode())])
    try:
        system.rest("POST", f"/admin/v3/functions/public/default/{name}", body, kind=form, timeout=60)
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{name}: {error.read().decode(errors='replace')[:300]}") from None


def latency(system, binary, topic, seconds):
    return GemingaPerf(system, binary, "latency", topic, "--rate", 1000, "--time", f"{seconds}s").result()["latencyMs"]


def main():
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--only", default=",".join(HOSTILE))
    parse.add_argument("--pairs", type=int, default=8)
    parse.add_argument("--seconds", type=int, default=5)
    parse.add_argument("--geminga", default=str(ROOT / "target/release/geminga"))
    options = parse.parse_args()
    with tempfile.TemporaryDirectory(prefix="geminga-bench-") as folder:
        system = Geminga(folder, options.geminga)
        system.start()
        try:
            print("| a function that | p50 alone, beside it | p99 alone, beside it, ms | p99 | what its status says |\n|---|---|---|---|---|", flush=True)
            latency(system, options.geminga, "warm", 3)
            for number, what in enumerate(options.only.split(",")):
                runtime, code, more = HOSTILE[what]
                name = f"hostile-{number}"
                path = f"/admin/v3/functions/public/default/{name}"
                with wire.Connection(system) as connection:
                    look_up(connection, name)
                    connection.producer(full_name(name))
                    for message in range(3):
                        connection.publish(b"x" * 100, sequence=message)
                create(system, name, runtime, code, more)
                alone, beside = [], []
                for turn in range(options.pairs):
                    for wanted in ((False, True), (True, False))[turn % 2]:
                        system.rest("POST", f"{path}/{'start' if wanted else 'stop'}", timeout=60)
                        time.sleep(1.5)
                        (beside if wanted else alone).append(latency(system, options.geminga, f"quiet-{number}", options.seconds))
                status = system.rest("GET", f"{path}/status")
                told = status["instances"][0]["status"]
                errors = [one["exceptionString"] for one in told.get("latestUserExceptions", []) + told.get("latestSystemExceptions", [])]
                system.rest("DELETE", path, timeout=60)
                p50, p99 = (Pairs([run[q] for run in alone], [run[q] for run in beside]) for q in ("p50", "p99"))
                print(f"| {what} | {p50.before:.2f}, {p50.after:.2f} | {p99.before:.2f}, {p99.after:.2f} | {p99} | "
                      f"{errors[-1].splitlines()[0][:90] if errors else ''} |", flush=True)
        finally:
            system.stop()


if __name__ == "__main__":
    main()
