"""Makes a Python package ready, once: unpacks it, and installs what its lock names.

Called with the package and an empty directory, which is kept as long as the package is the same. It writes
`paths` there: the folders for `sys.path`, first first. Its words on standard error are for the person who
deploys.
"""

import os
import re
import subprocess
import sys
import zipfile

# What a package may unpack to, its wheels too: a bound against archives that are made to fill the disk.
FILES_MAX = 50_000
BYTES_MAX = 1 << 30

unpacked = {"files": 0, "bytes": 0}


def unpack(path, into):
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        unpacked["files"] += len(entries)
        unpacked["bytes"] += sum(entry.file_size for entry in entries)
        if unpacked["files"] > FILES_MAX or unpacked["bytes"] > BYTES_MAX:
            sys.exit(
                "with `%s` the package unpacks to more than %d files or %d bytes" % (path, FILES_MAX, BYTES_MAX)
            )
        for entry in entries:
            parts = entry.filename.replace("\\", "/").split("/")
            if ".." in parts or entry.filename.startswith("/"):
                sys.exit("`%s` holds `%s`, which leads out of it" % (path, entry.filename))
        archive.extractall(into)


# What a line of a lock may say, as a whole: a package by its version and its hashes, or where packages are. What pip
# knows beyond that leads to code that is built (an archive, a folder, `--no-binary`), to files that are no lock, or
# to this process's environment (`${NAME}`).
LOCKED = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]*(\[[^\]$]*\])?\s*={2,3}\s*[A-Za-z0-9.!+_]+(\s*;((?!\s-)[^$])*)?(\s*--hash=\w+:\w+)*"
    + r"|--no-index|--require-hashes|--prefer-binary"
    + r"|(-i|-f|--index-url|--extra-index-url|--find-links|--trusted-host)(\s+|=)[^\s$]+"
)


FIND = re.compile(r"(-f|--find-links)(\s+|=)(.*)")


def checked(lock):
    """The lines of a lock that may be given to pip, without comments, each whole."""
    name = os.path.basename(lock)
    with open(lock, "rb") as file:
        # Pip would look for the encoding in a comment, too.
        try:
            text = file.read().decode("utf-8-sig")
        except UnicodeDecodeError:
            sys.exit("`%s` is not UTF-8" % name)
    lines, begun = [], ""
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1):
        # Python has more ends of lines than anybody sees.
        odd = next((char for char in line if char != "\t" and not char.isprintable()), None)
        if odd is not None:
            sys.exit("line %d of `%s` holds the character %s" % (number, name, ascii(odd)))
        line = re.sub(r"(^|\s)#.*$", "", begun + line).strip()
        if line.endswith("\\"):
            begun = line.rstrip("\\") + " "
            continue
        begun = ""
        if line and not LOCKED.fullmatch(line):
            sys.exit("line %d of `%s` names no package by its version: `%s`" % (number, name, line))
        lines.append(line)
    if begun.strip():
        sys.exit("`%s` ends in the middle of a line" % name)
    return lines


def install(lock, target):
    """Exactly what the lock names: each with its hash, and nothing that it does not name. Wheels alone: what builds
    another archive is locked by nobody, and runs here. Pip reads a copy of the lines that were checked, since it
    reads files in ways of its own."""
    into, folder = os.path.join(target, "site"), os.path.join(target, "lock")
    lines = checked(lock)
    os.mkdir(folder)
    copy = os.path.join(folder, os.path.basename(lock))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--require-hashes", "--only-binary=:all:", "--target", into, "-r", copy]
    with open(copy, "w", encoding="utf-8") as out:
        for line in lines:
            found = FIND.fullmatch(line)
            if found:
                # A folder is meant from where the lock is, not from where its copy is.
                command.append("--find-links=" + found[3].strip("\"'"))
            else:
                out.write(line + "\n")
    done = subprocess.run(command, cwd=os.path.dirname(lock), stdin=subprocess.DEVNULL)
    if done.returncode:
        sys.exit("`%s` could not be installed by pip: see above" % os.path.basename(lock))
    return into


def main(package, target):
    paths = []
    if os.path.isdir(package):
        code = package
    else:
        code = os.path.join(target, "code")
        unpack(package, code)
    inner = sorted(name for name in os.listdir(code) if os.path.isdir(os.path.join(code, name)))
    roots = [code] + [os.path.join(code, name) for name in inner]
    paths.append(code)
    has_wheels = False
    for root in roots:
        source, wheels = os.path.join(root, "src"), os.path.join(root, "deps")
        if os.path.isdir(source):
            paths.insert(0, source)
        if os.path.isdir(wheels):
            for wheel in sorted(name for name in os.listdir(wheels) if name.endswith(".whl")):
                has_wheels = True
                into = os.path.join(target, "wheels", wheel)
                unpack(os.path.join(wheels, wheel), into)
                paths.append(into)
    files = [os.path.join(root, name) for name in ("requirements.lock", "requirements.txt") for root in roots]
    found = next((path for path in files if os.path.isfile(path)), None)
    if found and found.endswith(".lock"):
        paths.append(install(found, target))
    elif found and not has_wheels and open(found).read().strip():
        sys.exit(
            "`requirements.txt` has no lock beside it, so nobody could tell what would run: "
            "`geminga lock DIR` writes requirements.lock"
        )
    with open(os.path.join(target, "paths"), "w") as out:
        # Relative, since the directory is renamed when it is whole.
        for path in paths:
            inside = os.path.relpath(path, target)
            out.write((path if inside.startswith("..") else inside) + "\n")


main(os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2]))
