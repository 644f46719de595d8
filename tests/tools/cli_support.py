"""What the tests of the command line share. They are called with: STOKER SOURCE_ROOT [unittest arguments]"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

STOKER, ROOT = map(os.path.abspath, sys.argv[1:3])
MODEL = os.path.join(ROOT, "tests/models/ember-37m-q4_k_m.gguf")
PROMPT = "The borrow checker"
TIME_LIMIT = 300  # of one call: sanitizer builds are slow


def stoker(*arguments, stdin=b"", **options):
    return subprocess.run([STOKER, *map(str, arguments)], input=stdin, capture_output=True, timeout=TIME_LIMIT, **options)


def expect(test, code, *arguments, **options):
    result = stoker(*arguments, **options)
    test.assertEqual(result.returncode, code, "%s\n%s" % (" ".join(map(str, arguments)), result.stderr.decode("utf-8", "replace")))
    return result


def answer(test, *arguments, model=None, **options):
    """The JSON object of one run."""
    result = expect(test, 0, "run", "-m", model or MODEL, "--temp", "0", "--json", *arguments, **options)
    return json.loads(result.stdout)


def budgets(test, model=None):
    facts = json.loads(expect(test, 0, "inspect", "--json", model or MODEL).stdout)
    return facts["smallest_expert_budget_bytes"], facts["full_expert_budget_bytes"]


class Folder(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="stoker-cli-")
        os.chmod(self.folder, 0o755)
        self.addCleanup(shutil.rmtree, self.folder)

    def path(self, name):
        return os.path.join(self.folder, name)

    def file(self, name, data):
        with open(self.path(name), "wb") as out:
            out.write(data)
        return self.path(name)

    def error(self, *arguments, **options):
        """The one error line of a call that must fail."""
        result = expect(self, 1, *arguments, **options)
        text = result.stderr.decode("utf-8", "replace")
        self.assertEqual(result.stdout, b"", text)
        errors = [line for line in text.split("\n") if line.startswith("stoker: error: ")]
        self.assertEqual(len(errors), 1, text)
        return errors[0]


def main():
    unittest.main(argv=[sys.argv[0]] + sys.argv[3:], verbosity=2)
