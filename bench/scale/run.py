#!/usr/bin/env python3
"""How Geminga scales, beside Apache Pulsar: measures each case on a server of its own and writes a Markdown table. See README.md."""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
import machine  # noqa: E402
import cases  # noqa: E402
import heavy  # noqa: E402
from context import Context, Row  # noqa: E402

CASES = {case.__name__: case for case in (
    cases.topics, cases.connections, cases.key_shared, cases.fan_out, heavy.delayed, heavy.acks, heavy.catch_up, heavy.dedup,
    heavy.transactions)}
# Rows as measured last: of a case that is not measured again the table keeps what there is.
PULSAR, GEMINGA = HERE / "pulsar.json", HERE / "geminga.json"


def arguments():
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--geminga", default=str(HERE.parent.parent / "target" / "release" / "geminga"))
    given.add_argument("--pulsar", metavar="DISTRIBUTION", help="measure Apache Pulsar (see bench/pulsar-dist.sh), and keep its rows in pulsar.json")
    given.add_argument("--only", default=",".join(CASES), help="cases, with commas: " + ", ".join(CASES))
    given.add_argument("--scale", type=float, default=1.0, help="the share of the full size to do")
    given.add_argument("--durability", default="fsync", choices=("fsync", "os"))
    given.add_argument("--out", default="bench-out/scale", help="where servers keep their data")
    given.add_argument("--markdown", help="a file that the table is written into, between its two marks")
    return given.parse_args()


def measure(context, names):
    """Rows by case, each shown when it is there."""
    found = {}
    for name in names:
        context.case = name
        rows = found.setdefault(name, [])
        watch = machine.Processors()
        try:
            for row in CASES[name](context):
                rows.append(row)
                print(f"{name}: {row.what}: {row.figure} [{row.aim}]", flush=True)
        except (SystemExit, AssertionError, OSError, KeyError) as error:
            rows.append(Row("failed", "did not end", f"{type(error).__name__}: {error}", "", False))
            print(f"{name}: {rows[-1].figure}", flush=True)
        print(f"{name}: {watch.stop()['seconds']:.0f} s", file=sys.stderr, flush=True)
    return found


def commit():
    return subprocess.run(["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()


def table(known, pulsar):
    """`known`: for each case its rows, and when and how they were measured."""
    lines = []
    for how in dict.fromkeys(case["how"] for case in known.values()):
        names = [f"`{name}`" for name, case in known.items() if case["how"] == how]
        lines.append(f"- {how}" + ("" if len(names) == len(known) else ": " + ", ".join(names)))
    if pulsar:
        lines.append(f"- {pulsar['version']}, {pulsar['durability']}, {pulsar['date']}; at a smaller size where it says so")
    lines += ["", "| case | what | Geminga | aim | met | Pulsar |", "|---|---|---|---|---|---|"]
    met = {None: "", True: "yes", False: "**no**"}
    for name, case in known.items():
        beside = pulsar.get("rows", {}).get(name, {}) if pulsar else {}
        for row in (Row(**row) for row in case["rows"]):
            lines.append(f"| `{name}` | {row.what} | {row.figure} | {row.aim} | {met[row.met]} | {beside.get(row.key, '')} |")
        if "failed" in beside:
            lines.append(f"| `{name}` | Pulsar did not end | | | | {beside['failed']} |")
    return "\n".join(lines) + "\n"


def write_into(path, text):
    """Between the marks; at the end of a file without."""
    begin, end = "<!-- scale -->\n", "<!-- end of scale -->\n"
    old = pathlib.Path(path).read_text() if os.path.exists(path) else ""
    if begin not in old:
        old += begin + end
    before, rest = old.split(begin, 1)
    pathlib.Path(path).write_text(before + begin + "\n" + text + "\n" + end + rest.split(end, 1)[1])


def main():
    given = arguments()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if given.markdown and given.scale < 1:
        sys.exit("error: --markdown: the table holds figures of the full size; leave --scale out, or print the table by leaving --markdown out")
    os.makedirs(given.out, exist_ok=True)
    system = "pulsar" if given.pulsar else "geminga"
    context = Context(system, given.geminga, given.pulsar, os.path.abspath(given.out), given.durability, given.scale)
    found = measure(context, given.only.split(","))
    pulsar = json.loads(PULSAR.read_text()) if PULSAR.exists() else {}
    if given.pulsar:
        pulsar.update(version=context.pulsar_version(), durability="no fsync", date=time.strftime("%Y-%m-%d"))
        for name, rows in found.items():
            size = f" (at {context.share(name):g} of the size)" if context.share(name) < 1 else ""
            pulsar.setdefault("rows", {})[name] = {row.key: row.figure + size for row in rows}
        PULSAR.write_text(json.dumps(pulsar, indent=1, ensure_ascii=False) + "\n")
        return
    how = f"{time.strftime('%Y-%m-%d')}, Geminga {commit()}, durability `{given.durability}`, {machine.CORES} cores, scale {given.scale:g}"
    measured = {name: {"how": how, "rows": [vars(row) for row in rows]} for name, rows in found.items()}
    if not given.markdown:
        print(table(measured, pulsar))
        return
    known = json.loads(GEMINGA.read_text()) if GEMINGA.exists() else {}
    # What did not end takes no figure's place.
    ended = {name: case for name, case in measured.items() if all(row["key"] != "failed" for row in case["rows"])}
    known = {name: case for name in CASES if (case := ended.get(name, known.get(name)) or measured.get(name))}
    GEMINGA.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")
    write_into(given.markdown, table(known, pulsar))


if __name__ == "__main__":
    main()
