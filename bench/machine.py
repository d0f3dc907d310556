"""The machine under the benchmark: who uses its processors, how much memory a process has, what a disk sync costs."""

import os
import platform
import time

CORES = os.cpu_count()
_TICK = os.sysconf("SC_CLK_TCK")


def _stat(pid):
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rsplit(")", 1)[1].split()


def tree(pid):
    """`pid` and everything below it."""
    children = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                children.setdefault(int(_stat(name)[1]), []).append(int(name))
            except OSError:
                pass
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return found


def _seconds(pids, ended_children=False):
    total = 0
    for pid in pids:
        try:
            fields = _stat(pid)
        except OSError:
            continue
        total += int(fields[11]) + int(fields[12])
        if ended_children:
            total += int(fields[13]) + int(fields[14])
    return total / _TICK


class Processors:
    """Processor seconds between construction and `stop`: of the server with its children, of this program with the
    load generators it started, and of everybody else, which tells whether a figure can be trusted."""

    def __init__(self, server_pid=None):
        self.server_pid = server_pid
        self.began = self._now()

    def _now(self):
        with open("/proc/stat") as stat:
            busy = [int(value) for value in stat.readline().split()[1:9]]
        server = set(tree(self.server_pid)) if self.server_pid else set()
        ours = set(tree(os.getpid())) - server
        me = _seconds([os.getpid()], ended_children=True) + _seconds(ours - {os.getpid()})
        return time.monotonic(), (sum(busy) - busy[3] - busy[4]) / _TICK, _seconds(server), me

    def stop(self):
        wall, machine, server, ours = (after - before for after, before in zip(self._now(), self.began))
        return {"seconds": round(wall, 3), "server_cpu_s": round(server, 3), "server_cores": round(server / wall, 3),
                "load_cores": round(ours / wall, 2), "cpu_other": round(max(0.0, (machine - server - ours) / wall), 2)}


def memory_mib(pid):
    """Resident and proportional memory of a process and its children. Proportional is the fair one for a JVM whose
    collector maps its heap several times."""
    rss = pss = 0
    for each in tree(pid):
        try:
            with open(f"/proc/{each}/smaps_rollup") as rollup:
                for line in rollup:
                    if line.startswith("Rss:"):
                        rss += int(line.split()[1])
                    elif line.startswith("Pss:"):
                        pss += int(line.split()[1])
        except OSError:
            pass
    return round(rss / 1024, 1), round(pss / 1024, 1)


def busy_cores(seconds=2.0):
    watch = Processors()
    time.sleep(seconds)
    return watch.stop()["cpu_other"]


def load_average():
    return os.getloadavg()[0]


def quantile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


class SyncProbe:
    """What one durable write costs on this disk at this moment: 1 KiB appended and `fdatasync`, one at a time.
    Measured between the sends of a workload, so that both see the same disk."""

    def __init__(self, folder):
        self.path = os.path.join(folder, "sync-probe")
        self.file = os.open(self.path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        os.posix_fallocate(self.file, 0, 64 << 20)
        os.fsync(self.file)
        self.at = 0
        self.ms = []

    def once(self):
        began = time.perf_counter()
        os.pwrite(self.file, b"x" * 1024, self.at)
        os.fdatasync(self.file)
        self.ms.append((time.perf_counter() - began) * 1000)
        self.at += 4096

    def close(self):
        os.close(self.file)
        os.unlink(self.path)


def forget_pages(folder, sync=True):
    """Drops the page cache of every file below `folder`, so that the next read comes from the disk. What is not synced
    stays; `sync` is of the whole machine, and stops whoever writes meanwhile."""
    if sync:
        os.sync()
    for base, _, names in os.walk(folder):
        for name in names:
            try:
                file = os.open(os.path.join(base, name), os.O_RDONLY)
            except OSError:
                continue
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)


def describe(folder):
    model = "unknown processor"
    with open("/proc/cpuinfo") as cpuinfo:
        for line in cpuinfo:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    with open("/proc/meminfo") as meminfo:
        total = int(next(meminfo).split()[1]) >> 20
    best, kind = "", "?"
    with open("/proc/mounts") as mounts:
        for line in mounts:
            _, place, name = line.split()[:3]
            if os.path.abspath(folder).startswith(place) and len(place) >= len(best):
                best, kind = place, name
    return {"processor": f"{CORES} x {model}", "memory": f"{total} GiB", "kernel": platform.release(), "file_system": kind}
