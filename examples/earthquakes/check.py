#!/usr/bin/env python3
"""Computes the right answer without Geminga and compares it with what the mesh wrote.

    python3 examples/earthquakes/check.py
"""

import json
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent


def lines(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def expected(events):
    alerts, regions = [], {}
    for event in events:
        about = event["properties"]
        magnitude = about["mag"]
        if magnitude is not None and magnitude >= 4.5:
            alerts.append({"id": event["id"], "magnitude": magnitude, "place": about["place"]})
        if about["type"] == "earthquake":
            region = (about["place"] or "unknown").split(", ")[-1]
            region = {"CA": "California"}.get(region, region)
            count, strongest = regions.get(region, (0, None))
            if magnitude is not None and (strongest is None or magnitude > strongest):
                strongest = magnitude
            regions[region] = (count + 1, strongest)
    return alerts, regions


def main():
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "out"
    alerts, regions = expected(lines(HERE / "data" / "earthquakes.jsonl"))
    try:
        got_alerts = lines(out / "alerts.jsonl")
        rows = lines(out / "regions.jsonl")
    except OSError as error:
        sys.exit(f"no answer to check: {error}")

    wrong = []
    if got_alerts != alerts:
        wrong.append(f"alerts: {len(got_alerts)} instead of {len(alerts)}, or in another order")
        wrong += [f"  missing {alert}" for alert in alerts if alert not in got_alerts][:5]
        wrong += [f"  too much {alert}" for alert in got_alerts if alert not in alerts][:5]
    counted = sum(count for count, _ in regions.values())
    if len(rows) != counted:
        wrong.append(f"regions: {len(rows)} changes instead of {counted}")
    # The newest row of a region is its result.
    got = {row["region"]: (row["quakes"], row["strongest"]) for row in rows}
    for region in sorted(set(got) | set(regions)):
        if got.get(region) != regions.get(region):
            wrong.append(f"  {region}: {got.get(region)} instead of {regions.get(region)}")
    if wrong:
        sys.exit("the answer is wrong\n" + "\n".join(wrong))
    print(f"the answer is right: {len(alerts)} alerts, {counted} earthquakes in {len(regions)} regions")


if __name__ == "__main__":
    main()
