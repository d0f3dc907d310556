#!/usr/bin/env python3
"""Measures Geminga beside Apache Pulsar, and writes the table of docs/benchmarks.md.

    bench/run.py                          everything, both systems (45 minutes)
    bench/run.py --only start,idle        some workloads
    bench/run.py --systems geminga        one system
    bench/run.py --quick                  short runs, to see that all of it works
    bench/run.py --report FILE.json       Markdown of an earlier run

Needs Python 3.9, Linux, Java 17 and Maven (for Pulsar: bench/pulsar-dist.sh assembles it once into target/bench/pulsar).
No Python package is needed. A machine that is busy with something else is refused: a neighbour on each core makes the
median durable write ten times slower.
"""

import argparse
import datetime
import json
import os
import pathlib
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import machine  # noqa: E402
import report  # noqa: E402
import workloads  # noqa: E402
from servers import ROOT, Geminga, Pulsar  # noqa: E402

BUSY_LOAD = 0.5     # load average at the beginning
BUSY_CORES = 0.15   # cores that others use just before a workload

# workload -> where it makes sense. `fresh` = on an empty data folder.
PLAN = [
    ("start", ("pulsar", "geminga"), True),
    ("idle", ("pulsar", "geminga"), True),
    ("produce_batched", ("pulsar", "geminga", "geminga-os"), True),
    ("produce_unbounded", ("pulsar", "geminga"), True),
    ("produce_unbatched", ("pulsar", "geminga", "geminga-os"), False),
    ("own_produce_single", ("pulsar", "geminga", "geminga-os"), False),
    ("own_produce_batched", ("pulsar", "geminga", "geminga-os"), False),
    ("durable_send", ("pulsar", "pulsar-fsync", "geminga"), False),
    ("latency_1k", ("pulsar", "geminga"), True),
    ("latency_10k", ("pulsar", "geminga"), False),
    ("latency_50k", ("pulsar", "geminga"), False),
    ("catch_up", ("pulsar", "geminga"), True),
    ("topics", ("pulsar", "geminga"), True),
    ("restart", ("pulsar", "geminga"), True),
    ("function_bash_warm", ("geminga",), True),
    ("function_bash_spawn", ("geminga",), False),
    ("function_python", ("geminga",), False),
    ("function_java", ("pulsar",), True),
    ("cold_start_bash", ("geminga",), False),
    ("cold_start_python", ("geminga",), False),
    ("cold_start_java", ("pulsar",), False),
]


def log(*words):
    print(time.strftime("%H:%M:%S"), *words, file=sys.stderr, flush=True)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", default="pulsar,pulsar-fsync,geminga,geminga-os")
    parser.add_argument("--only", default="", help="workloads, separated by commas")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--busy", choices=("refuse", "warn"), default="refuse", help="what to do on a busy machine")
    parser.add_argument("--geminga", default=os.environ.get("GEMINGA_BIN", str(ROOT / "target/release/geminga")))
    parser.add_argument("--pulsar", default=os.environ.get("PULSAR_DIST", str(ROOT / "target/bench/pulsar")), help="assembled by pulsar-dist.sh")
    parser.add_argument("--out", default=str(ROOT / "target/bench"), help="data, logs and results.json")
    parser.add_argument("--markdown", default="", help="where the table goes; stdout when absent")
    parser.add_argument("--report", default="", help="results.json of an earlier run, or several joined by commas")
    return parser.parse_args()


def merged(paths):
    run = None
    for path in paths.split(","):
        one = json.loads(pathlib.Path(path).read_text())
        one["about"]["runs"] = [f"{each} by Geminga's {one['about']['commit']}" for each in one["systems"]]
        if run is None:
            run = one
        else:
            run["about"]["runs"] += one["about"]["runs"]
            run["systems"].update(one["systems"])
            for name, figures in one["results"].items():
                run["results"].setdefault(name, {}).update(figures)
    return run


def write_markdown(run, path):
    # What a person found behind the figures.
    text = report.markdown(run) + (pathlib.Path(__file__).resolve().parent / "notes.md").read_text()
    if path:
        pathlib.Path(path).write_text(text)
    else:
        print(text)


def check_quiet(options):
    load = machine.load_average()
    if load > BUSY_LOAD:
        say = f"load average {load:.2f}: figures of a busy machine mean nothing"
        if options.busy == "refuse":
            raise SystemExit(f"{say}. Wait, or say --busy warn.")
        log(say)


def wait_until_quiet(options):
    """Before each workload: nobody else at work. The load average still holds our own last one, so processors are asked."""
    for attempt in range(30):
        busy = machine.busy_cores()
        if busy <= BUSY_CORES:
            return
        if attempt == 0:
            log(f"others use {busy} cores, waiting")
    if options.busy == "warn":
        log("going on all the same: --busy warn")
        return
    raise SystemExit(f"others use {busy} cores for a minute now. Wait, or say --busy warn.")


def make(name, options):
    folder = os.path.join(options.out, "run", name)
    if name.startswith("geminga"):
        return Geminga(folder, options.geminga, "os" if name.endswith("-os") else "fsync")
    return Pulsar(folder, options.pulsar, "fsync" if name.endswith("-fsync") else "no fsync")


def measure(name, options, context, results, save):
    system = make(name, options)
    wanted = [each for each in options.only.split(",") if each]
    try:
        for workload, systems, fresh in PLAN:
            if name not in systems or (wanted and workload not in wanted):
                continue
            if fresh or system.process is None:
                system.stop()
                system.wipe()
                system.start()
            wait_until_quiet(options)
            log(f"{system.label}: {workload}")
            figures = getattr(workloads, workload)(context, system)
            results[workload] = figures
            log("   ", json.dumps({key: value for key, value in figures.items() if key != "command"}))
            save()
    finally:
        system.stop()
        system.wipe()
    return {"label": system.label, "durability": system.durability, "version": system.version(), "command": system.shown_command()}


def main():
    options = arguments()
    if options.report:
        write_markdown(merged(options.report), options.markdown)
        return
    check_quiet(options)
    names = options.systems.split(",")
    if not os.access(options.geminga, os.X_OK):
        raise SystemExit(f"no geminga at {options.geminga}: run `cargo build --release`, or say --geminga FILE (its `perf` is a load generator for both)")
    if not os.path.exists(os.path.join(options.pulsar, "VERSION")):
        log("assembling Apache Pulsar")
        subprocess.run([str(ROOT / "bench/pulsar-dist.sh"), options.pulsar], check=True)
    options.pulsar = os.path.abspath(options.pulsar)
    os.makedirs(options.out, exist_ok=True)
    context = workloads.Context(options.pulsar, os.path.abspath(options.geminga), options.out, options.quick)
    commit = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    run = {"about": {"date": datetime.date.today().isoformat(), "commit": commit, "quick": options.quick,
                     "machine": machine.describe(options.out), "command": "bench/run.py " + " ".join(
                         word for word in sys.argv[1:] if "/" not in word and word not in ("--out", "--pulsar", "--geminga", "--markdown"))},
           "systems": {}, "results": {}}
    path = os.path.join(options.out, "results.json")

    def save():
        pathlib.Path(path).write_text(json.dumps(run, indent=1))
    for name in names:
        run["results"][name] = {}
        run["systems"][name] = measure(name, options, context, run["results"][name], save)
        save()
    log(f"figures: {path}")
    write_markdown(run, options.markdown)


if __name__ == "__main__":
    main()
