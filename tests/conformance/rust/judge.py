"""Starts a server (or takes the one at SERVICE_URL and ADMIN_URL), runs the judge against it, and stops it.

    python3 judge.py BINARY [PART OF A NAME]      with REPORTS=DIR its lines go to DIR/rust.txt too
"""

import os
import pathlib
import subprocess
import sys
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "python"))
from server import OutsideServer, Server, is_outside  # noqa: E402


def main():
    server = OutsideServer() if is_outside() else Server().start()
    try:
        topic = f"persistent/public/default/rust-partitioned-{os.getpid()}"
        urllib.request.urlopen(urllib.request.Request(
            f"{server.admin_url}/admin/v2/{topic}/partitions", data=b"3", method="PUT", headers={"Content-Type": "application/json"}))
        environment = {**os.environ, "SERVICE_URL": server.service_url, "PARTITIONED_TOPIC": topic.replace("/", "://", 1)}
        lines = []
        with subprocess.Popen(sys.argv[1:], env=environment, stdout=subprocess.PIPE, text=True) as judge:
            for line in judge.stdout:
                print(line, end="", flush=True)
                lines.append(line)
        if "REPORTS" in os.environ:
            pathlib.Path(os.environ["REPORTS"], "rust.txt").write_text("".join(line for line in lines if "\t" in line))
        if judge.returncode and not is_outside():
            print(server.log_tail(), file=sys.stderr)
        return judge.returncode
    finally:
        server.close()


sys.exit(main())
