"""The command line of the binary under test."""

import json
import re
import subprocess

from server import binary


def geminga(server, *arguments, code=0, seconds=30):
    """Runs a command against `server`; its stdout, or its stderr where a failure is expected."""
    done = subprocess.run([binary(), *map(str, arguments), "--admin-url", server.admin_url, "--service-url", server.service_url],
                          capture_output=True, text=True, timeout=seconds)
    assert done.returncode == code, f"{' '.join(map(str, arguments))} ended with {done.returncode}: {done.stdout}{done.stderr}"
    return done.stderr if code else done.stdout


def create_function(server, name, language, path, *arguments, code=0):
    return geminga(server, "functions", "create", "--name", name, language, path, *arguments, code=code)


def status(server, name):
    return json.loads(geminga(server, "functions", "status", "--name", name, "-o", "json"))


FORM = re.compile(r"^error\[G\d{4}\]: .+", re.M)


def refused(*arguments, code=None):
    """Runs a start of a server that must fail; its stderr, which has one error of the house's form."""
    done = subprocess.run([binary(), "standalone", *map(str, arguments)], capture_output=True, text=True, timeout=20)
    assert done.returncode != 0
    if code is not None:
        assert done.returncode == code, done.stderr
    assert len(FORM.findall(done.stderr)) == 1, done.stderr
    assert "help:" in done.stderr, done.stderr
    assert "panicked" not in done.stderr
    assert done.stdout == ""
    return done.stderr
