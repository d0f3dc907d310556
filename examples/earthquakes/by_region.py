"""Counts earthquakes by region and remembers the strongest of each.

Written against Pulsar's own function API: it runs on Apache Pulsar unchanged. The counts live in
the function's state, so they outlive the process; each change is sent on under the region as key.
"""

import json

from pulsar import Function


class ByRegion(Function):
    def process(self, input, context):
        event = json.loads(input)
        about = event["properties"]
        types = context.get_user_config_value("types")
        if types and about["type"] not in types:
            return None

        # "37km NNE of Amboy, Washington" is in Washington; a place without a comma is a region.
        region = (about["place"] or "unknown").rsplit(", ", 1)[-1]
        region = (context.get_user_config_value("aliases") or {}).get(region, region)

        context.incr_counter(region, 1)
        strongest = context.get_state("strongest " + region)
        if strongest is not None:
            strongest = float(strongest.decode() if isinstance(strongest, bytes) else strongest)
        if about["mag"] is not None and (strongest is None or about["mag"] > strongest):
            strongest = about["mag"]
            context.put_state("strongest " + region, str(strongest).encode())

        row = {"region": region, "quakes": context.get_counter(region), "strongest": strongest}
        context.publish(
            context.get_output_topic(),
            json.dumps(row, ensure_ascii=False),
            message_conf={"partition_key": region},
        )
        return None
