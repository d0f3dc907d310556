"""Figures to Markdown: one row a target of the project, both systems side by side, the command below."""

# A row: its title, the workload, the figure's key, its unit, the better direction, the target as text, and the check.
# The check gets the figure, Pulsar's figure, and all figures of Geminga's workload.


def at_most(limit):
    return f"≤ {limit:g}", lambda own, other, all: own <= limit


def at_least(limit):
    return f"≥ {limit:,}", lambda own, other, all: own >= limit


def times_pulsar(factor):
    return f"≥ {factor:g} × Pulsar", lambda own, other, all: other is not None and own >= factor * other


def part_of_pulsar(part):
    return f"≤ 1/{part} of Pulsar", lambda own, other, all: other is not None and own <= other / part


def within_syncs(factor):
    return f"≤ {factor} × the disk's sync", lambda own, other, all: own <= factor * all["sync_p50_ms"]


def above_sync(ms):
    return f"≤ sync + {ms} ms", lambda own, other, all: own <= all["sync_p50_ms"] + ms


NONE = ("", None)

ROWS = [
    ("Start to first admin answer", "start", "admin_ms", "ms", at_most(50)),
    ("Start to first message through", "start", "message_ms", "ms", at_most(100)),
    ("Idle memory (PSS)", "idle", "pss_mib", "MiB", at_most(25)),
    ("Idle processor", "idle", "cpu_percent", "% of a core", at_most(0.5)),
    ("pulsar-perf produce, 1 KB batched", "produce_batched", "rate", "msg/s", times_pulsar(1.7)),
    ("… server CPU per million", "produce_batched", "server_cpu_s_per_million", "s", part_of_pulsar(6)),
    ("pulsar-perf produce, 1 KB batched, the client's queue unbounded", "produce_unbounded", "rate", "msg/s", NONE),
    ("… server CPU per million", "produce_unbounded", "server_cpu_s_per_million", "s", NONE),
    ("pulsar-perf produce, 1 KB unbatched", "produce_unbatched", "rate", "msg/s", times_pulsar(2.5)),
    ("… server CPU per million", "produce_unbatched", "server_cpu_s_per_million", "s", part_of_pulsar(6)),
    ("geminga perf produce, 100 B, one message a frame, window 1,000", "own_produce_single", "rate", "msg/s", at_least(400_000)),
    ("geminga perf produce, 100 B, batched", "own_produce_batched", "rate", "msg/s", at_least(1_500_000)),
    ("Blocking durable send of 1 KB, p50", "durable_send", "p50_ms", "ms", within_syncs(2)),
    ("… the disk's own sync beside it, p50", "durable_send", "sync_p50_ms", "ms", NONE),
    *[row for rate, name in (("1,000", "latency_1k"), ("10,000", "latency_10k"), ("50,000", "latency_50k")) for row in (
        (f"End to end at {rate} msg/s by geminga perf, p50", name, "p50_ms", "ms", above_sync(1)),
        ("… p99", name, "p99_ms", "ms", part_of_pulsar(5)),
        (f"End to end at {rate} msg/s by pulsar-perf, p50", name, "java_p50_ms", "ms", NONE),
        ("… p99", name, "java_p99_ms", "ms", part_of_pulsar(5)))],
    ("Catch-up read by pulsar-perf, warm", "catch_up", "warm_rate", "msg/s", times_pulsar(2)),
    ("Catch-up read by pulsar-perf, cold", "catch_up", "cold_rate", "msg/s", times_pulsar(2)),
    ("Catch-up read by geminga perf, warm", "catch_up", "own_warm_mb_s", "MB/s", at_least(1000)),
    ("Catch-up read by geminga perf, cold", "catch_up", "own_cold_mb_s", "MB/s", NONE),
    ("Topics created", "topics", "topics_per_s", "topics/s", at_least(5000)),
    ("A topic, idle", "topics", "kib_per_topic", "KiB", at_most(1)),
    ("Restart with a backlog after kill -9, to first message", "restart", "first_message_ms", "ms", at_most(300)),
    ("Bash function, warm, 100 B, one instance", "function_bash_warm", "rate", "msg/s", at_least(15_000)),
    ("Bash function, a process a message", "function_bash_spawn", "rate", "msg/s", at_least(700)),
    ("Python function, warm", "function_python", "rate", "msg/s", at_least(150_000)),
    ("Java function (Pulsar's own example)", "function_java", "rate", "msg/s", NONE),
    ("Cold start of a Bash function, create to first output", "cold_start_bash", "ms", "ms", at_most(30)),
    ("Cold start of a Python function", "cold_start_python", "ms", "ms", at_most(100)),
    ("Cold start of a Java function", "cold_start_java", "ms", "ms", NONE),
]


def shown(value):
    if value is None:
        return "—"
    if isinstance(value, float) and value < 1000:
        return f"{value:g}"
    return f"{value:,.0f}"


def markdown(run):
    """`run` is what run.py writes: about, systems, results[system][workload] = figures."""
    about, results = run["about"], run["results"]
    columns = [name for name in ("pulsar", "pulsar-fsync", "geminga", "geminga-os") if name in results]
    lines = ["# Benchmarks", "",
             "Written by `bench/run.py`: both systems on the same machine, one after the other,",
             "with the same load generators. `pulsar-perf` is Pulsar's own; `geminga perf` is ours.", "",
             f"- {about['date']}, Geminga {about['commit']}" + (" (quick run: short and not for quoting)" if about["quick"] else ""),
             f"- {about['machine']['processor']}, {about['machine']['memory']}, Linux {about['machine']['kernel']}, {about['machine']['file_system']}"]
    if len(about.get("runs", [])) > 1:
        lines.append("- runs one after the other, with the load generators of one build: " + ", ".join(about["runs"]))
    for name in columns:
        system = run["systems"][name]
        lines.append(f"- {system['label']}: {system['version']}, durability: {system['durability']}; `{system['command']}`")
    heads = [run["systems"][name]["label"] for name in columns]
    lines += ["", "| | " + " | ".join(heads) + " | target | met |", "|---|" + "---:|" * len(heads) + "---|---|"]
    for title, workload, key, unit, (target, check) in ROWS:
        values = {name: results[name].get(workload, {}).get(key) for name in columns}
        if all(value is None for value in values.values()):
            continue
        own, met = values.get("geminga"), ""
        if check and own is not None:
            try:
                met = "yes" if check(own, values.get("pulsar"), results["geminga"][workload]) else "**no**"
            except KeyError:
                met = "?"
        cells = [shown(values[name]) + (f" {unit}" if values[name] is not None else "") for name in columns]
        lines.append(f"| {title} | " + " | ".join(cells) + f" | {target} | {met} |")
    disturbed = [f"{workload} on {name} ({figures['cpu_other']} cores)" for name in columns
                 for workload, figures in results[name].items() if (figures.get("cpu_other") or 0) > 0.3]
    if disturbed:
        lines += ["", "Disturbed by other work on the machine: " + ", ".join(disturbed) + "."]
    lines += ["", "## Commands", ""]
    told = set()
    for _, workload, *_ in ROWS:
        for name in columns:
            command = results[name].get(workload, {}).get("command")
            if command and workload not in told:
                told.add(workload)
                lines.append(f"- {workload.replace('_', ' ')}: `{command}`")
    lines += ["", f"All of it: `{about['command']}`", ""]
    return "\n".join(lines)
