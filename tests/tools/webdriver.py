"""A headless Chromium over chromedriver's HTTP protocol, no more of it than the page's test needs."""

import base64
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
KEYS = {"enter": "\ue007", "escape": "\ue00c", "tab": "\ue004", "left": "\ue012", "right": "\ue014", "down": "\ue015"}


def missing():
    """What this machine lacks, or ""."""
    return ", ".join(name for name in ("chromium", "chromedriver") if shutil.which(name) is None)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Browser:
    def __init__(self, width=1280, height=800, dark=False):
        self.folder = tempfile.mkdtemp(prefix="stoker-chromium-")
        port = free_port()
        self.driver = subprocess.Popen(["chromedriver", "--port=%d" % port], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                       env={**os.environ, "HOME": self.folder})
        self.base = "http://127.0.0.1:%d" % port
        self.session = ""
        try:
            self.wait_for_driver()
            arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
                         "--user-data-dir=" + self.folder]
            options = {"goog:chromeOptions": {"args": arguments}, "goog:loggingPrefs": {"browser": "ALL"}}
            answer = self.call("POST", "/session", {"capabilities": {"alwaysMatch": {"browserName": "chrome", **options}}})
            self.session = "/session/" + answer["sessionId"]
            # The window has a smallest width that phones are below.
            self.devtools("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if width < 600 else 1,
                          mobile=width < 600)
            self.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        except BaseException:
            self.close()
            raise

    def wait_for_driver(self):
        limit = time.time() + 60
        while True:
            try:
                return self.call("GET", "/status")
            except OSError:
                assert time.time() < limit and self.driver.poll() is None, "chromedriver did not start"
                time.sleep(0.05)

    def call(self, method, path, body=None):
        data = None if method == "GET" else json.dumps(body or {}).encode()
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as e:
            raise AssertionError(json.load(e)["value"]["message"]) from None

    def devtools(self, name, **parameters):
        return self.call("POST", self.session + "/goog/cdp/execute", {"cmd": name, "params": parameters})

    def open(self, url):
        self.call("POST", self.session + "/url", {"url": url})

    def run(self, script, *arguments):
        return self.call("POST", self.session + "/execute/sync", {"script": script, "args": list(arguments)})

    def type(self, text):
        """Keys for whatever has the focus."""
        actions = [{"type": kind, "value": key} for key in text for kind in ("keyDown", "keyUp")]
        self.call("POST", self.session + "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def press(self, key):
        self.type(KEYS[key])

    def click(self, selector):
        element = self.call("POST", self.session + "/element", {"using": "css selector", "value": selector})
        self.call("POST", self.session + "/element/%s/click" % element[ELEMENT])

    def wait(self, condition, seconds=60):
        """Until the script's expression is true; returns its value."""
        limit = time.time() + seconds
        while True:
            value = self.run("return " + condition)
            if value:
                return value
            assert time.time() < limit, "never true: " + condition
            time.sleep(0.05)

    def errors(self):
        """Lines of the console that tell of errors."""
        return [e["message"] for e in self.call("POST", self.session + "/se/log", {"type": "browser"}) if e["level"] == "SEVERE"]

    def screenshot(self, path):
        with open(path, "wb") as out:
            out.write(base64.b64decode(self.call("GET", self.session + "/screenshot")))

    def close(self):
        if self.session:
            self.call("DELETE", self.session)
        self.driver.terminate()
        self.driver.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)
