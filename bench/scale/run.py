#!/usr/bin/env python3
"""How Geminga scales: measures each case on a server of its own and prints a Markdown table. See README.md."""

import argparse
import os
import pathlib
import resource
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
import machine  # noqa: E402
from cases import CASES, Context  # noqa: E402


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--geminga", default=str(HERE.parent.parent / "target" / "release" / "geminga"))
    arguments.add_argument("--only", default=",".join(CASES), help="cases, with commas: " + ", ".join(CASES))
    arguments.add_argument("--scale", type=float, default=1.0, help="the share of the full size to do")
    arguments.add_argument("--durability", default="fsync", choices=("fsync", "os"))
    arguments.add_argument("--out", default="bench-out/scale", help="where servers keep their data")
    arguments.add_argument("--markdown", help="a file that the table is added to")
    given = arguments.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.makedirs(given.out, exist_ok=True)
    context = Context(given.geminga, os.path.abspath(given.out), given.durability, given.scale)
    lines = [f"Geminga, durability `{given.durability}`, {machine.CORES} cores, scale {given.scale:g}, {time.strftime('%Y-%m-%d')}.", "",
             "| case | what | figure | aim |", "|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    for name in given.only.split(","):
        watch = machine.Processors()
        try:
            for what, figure, aim in CASES[name](context):
                lines.append(f"| `{name}` | {what} | {figure} | {aim} |")
                print(lines[-1], flush=True)
        except (SystemExit, AssertionError, OSError) as error:
            lines.append(f"| `{name}` | did not end | {type(error).__name__}: {error} | |")
            print(lines[-1], flush=True)
        print(f"{name}: {watch.stop()['seconds']:.0f} s", file=sys.stderr, flush=True)
    if given.markdown:
        with open(given.markdown, "a") as file:
            file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
