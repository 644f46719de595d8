#!/usr/bin/env python3
"""Runs openai_test.mjs with the packages of package-lock.json, which npm fetches into the build folder once. Skipped (77) without
node, npm or their registry.  usage: openai_test.py STOKER SOURCE_ROOT FOLDER
"""

import os
import shutil
import subprocess
import sys

SKIPPED = 77
KEY = "a key of clients"


def skip(why):
    print("skipped: " + why)
    sys.exit(SKIPPED)


def install(source, folder):
    """The packages as the lock file has them, unless they are there."""
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            skip("%s is not installed (Debian packages nodejs and npm)" % tool)
    with open(os.path.join(source, "package-lock.json")) as file:
        lock = file.read()
    stamp = os.path.join(folder, "installed-lock.json")
    if os.path.exists(stamp):
        with open(stamp) as file:
            if file.read() == lock:
                return
    os.makedirs(folder, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(os.path.join(source, name), folder)
    command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries", "1", "--fetch-timeout", "30000"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=150)
    except subprocess.TimeoutExpired:
        skip("npm ci took too long")
    if done.returncode != 0:
        skip("npm ci failed: " + (done.stderr.strip() or done.stdout.strip())[-600:])
    with open(stamp, "w") as file:
        file.write(lock)


def main():
    stoker, root, folder = (os.path.abspath(argument) for argument in sys.argv[1:4])
    source = os.path.join(root, "tests", "clients")
    install(source, folder)
    shutil.copy(os.path.join(source, "openai_test.mjs"), folder)
    sys.path.insert(0, os.path.join(root, "tests", "tools"))
    import serve_test
    serve_test.STOKER = stoker
    serve_test.MODEL = os.path.join(root, "tests", "models", "ember-37m-q4_k_m.gguf")
    server = serve_test.Server("--parallel", 4, "--queue", 4, "-c", 2048, "--api-key", KEY)
    try:
        url = "http://127.0.0.1:%d" % server.port
        code = subprocess.run(["node", "openai_test.mjs", url, KEY], cwd=folder, timeout=240).returncode
    finally:
        closed = server.close()
    sys.exit(code or closed)


if __name__ == "__main__":
    main()
