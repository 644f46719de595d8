#!/usr/bin/env python3
"""The page of `stoker serve` in a headless Chromium: an answer is read and stopped, the map of the experts changes, keys alone
suffice, a phone shows all of it.  usage: page_test.py STOKER SOURCE_ROOT [unittest arguments]
"""

import os
import sys
import time
import unittest

import serve_test
import webdriver

SKIPPED = 77


class Page(unittest.TestCase):
    arguments = ("--ram", "6M", "-c", "2048")

    @classmethod
    def setUpClass(cls):
        cls.server = serve_test.Server(*cls.arguments, "--machine", "none")

    @classmethod
    def tearDownClass(cls):
        assert cls.server.close() == 0

    def browse(self, **options):
        browser = webdriver.Browser(**options)
        self.addCleanup(browser.close)
        browser.open("http://127.0.0.1:%d/" % self.server.port)
        return browser

    def settings(self, browser, **values):
        """Kept as the page keeps them, before it is loaded again."""
        browser.run("localStorage.setItem('stoker.settings', JSON.stringify(arguments[0]))", values)
        browser.open("http://127.0.0.1:%d/" % self.server.port)

    ANSWER = "document.querySelector('.message.assistant .text').textContent"


class Chat(Page):
    def test_an_answer_is_streamed_stopped_and_kept(self):
        b = self.browse()
        # Hot enough that the small model does not end its answer by itself.
        self.settings(b, temperature=2.5, top_k=0, top_p=1, min_p=0)
        b.click("#prompt")
        b.type("The borrow checker")
        b.press("enter")
        first = b.wait(self.ANSWER + ".length")
        b.wait("%s.length > %d" % (self.ANSWER, first))  # more of it while it is written
        b.wait("document.querySelector('.message.running')")
        b.press("escape")
        b.wait("!document.querySelector('.message.running')")
        text = b.run("return " + self.ANSWER)
        self.assertIn("stopped", b.run("return document.querySelector('.foot').textContent"))
        self.assertEqual(b.run("return document.getElementById('said').textContent"), "Stopped.")
        limit = time.time() + 30
        while any(slot["is_processing"] for slot in self.server.ask("GET", "/slots")[1]):
            self.assertLess(time.time(), limit)
            time.sleep(0.05)
        b.open("http://127.0.0.1:%d/" % self.server.port)
        b.wait("document.querySelectorAll('.message').length == 2")
        self.assertEqual(b.run("return " + self.ANSWER), text)
        self.assertEqual(b.errors(), [])

    def test_a_whole_answer_is_the_api_s(self):
        wish = {"messages": serve_test.user("The sky"), "max_tokens": 40, "temperature": 0}
        want = self.server.post("/v1/chat/completions", **wish)["choices"][0]["message"]["content"]
        b = self.browse()
        self.settings(b, temperature=0, max_tokens=40)
        b.run("send('The sky')")
        b.wait("document.querySelector('.message.assistant .foot')")
        self.assertEqual(b.run("return conversation[1].content"), want)
        self.assertIn("40 tokens", b.run("return document.querySelector('.foot').textContent"))

    def test_a_model_s_text_is_never_markup(self):
        b = self.browse()
        evil = "<img src=x onerror=\"document.title='evil'\"> **bold** <script>document.title='evil'</script> [x](javascript:alert(1))"
        code = "\n\n```html\n</code></pre><img src=x onerror=\"document.title='evil'\">\n```\n- `<b>`\n"
        b.run("conversation.push({role: 'assistant', content: arguments[0], reasoning: arguments[0], failed: arguments[0], "
              "note: arguments[0]}); showAll()", evil + code)
        self.assertEqual(b.run("return document.querySelectorAll('#messages img, #messages script, #messages b, #messages a').length"), 0)
        self.assertEqual(b.run("return document.querySelector('#messages strong').textContent"), "bold")
        self.assertIn("<img", b.run("return document.querySelector('#messages pre').textContent"))
        self.assertEqual(b.run("return document.title"), "stoker")

    def test_nothing_comes_from_elsewhere(self):
        b = self.browse()
        b.wait("performance.getEntriesByType('resource').some(r => r.name.endsWith('/live'))")
        names = b.run("return performance.getEntriesByType('resource').map(r => r.name)")
        self.assertEqual([n for n in names if not n.startswith("http://127.0.0.1:%d/" % self.server.port)], [])
        self.assertEqual(b.errors(), [])


class Machine(Page):
    def test_the_map_changes_as_tokens_are_computed(self):
        b = self.browse()
        b.wait("document.getElementById('count-disk').textContent != '0'")
        before = b.run("return document.getElementById('map').toDataURL()")
        b.run("send('Once upon a time')")
        b.wait("document.getElementById('map').toDataURL() != arguments[0]".replace("arguments[0]", "'%s'" % before))
        b.wait("Number(document.getElementById('rate').textContent) > 0")
        b.wait("document.querySelectorAll('#strip i').length == 4")
        self.assertFalse(b.run("return document.getElementById('limits').hidden"))  # nobody has measured this machine
        b.wait("document.getElementById('hits-note').textContent != ''")
        total = sum(int(b.run("return document.getElementById('count-%s').textContent" % t)) for t in ("vram", "ram", "arriving", "disk"))
        self.assertEqual(total, 4 * 32)
        b.run("stopAnswer()")

    def test_keys_alone_suffice(self):
        b = self.browse()
        b.wait("map")
        seen = []
        for _ in range(20):
            b.press("tab")
            seen.append(b.run("return document.activeElement.id || document.activeElement.textContent"))
            if seen[-1] == "map":
                break
        for control in ("new-chat", "open-settings", "messages", "prompt", "map"):
            self.assertIn(control, seen)
        b.press("right")
        b.press("right")
        b.press("down")
        self.assertTrue(b.run("return document.getElementById('readout').textContent").startswith("Layer 2, expert 1: "))
        b.click("#open-settings")
        b.wait("document.getElementById('settings').open")
        b.press("escape")
        b.wait("!document.getElementById('settings').open")

    def test_a_phone_in_the_dark(self):
        b = self.browse(width=390, height=844, dark=True)
        light = self.browse()
        fits = "document.scrollingElement.scrollWidth <= 390 && [...document.querySelectorAll('main *')].every(e => " \
               "e.getBoundingClientRect().right <= 391 || e.closest('.hidden, pre'))"
        b.wait("map")
        self.assertTrue(b.run("return " + fits))
        shown = "return getComputedStyle(document.querySelector('.machine')).display"
        self.assertEqual(b.run(shown), "none")
        b.click("[data-to=machine]")
        self.assertNotEqual(b.run(shown), "none")
        self.assertTrue(b.run("return " + fits))
        b.wait("document.getElementById('map').width > 300")
        paper = "return getComputedStyle(document.body).backgroundColor"
        self.assertNotEqual(b.run(paper), light.run(paper))


class Devices(Page):
    arguments = ("--device", "host:1,vram=16MiB,link=1GB/s", "-c", "512")

    def test_their_link_memory_and_time_are_shown(self):
        b = self.browse()
        b.run("send('Once upon a time')")
        b.wait("document.querySelectorAll('#strip i').length == 5")
        b.wait("document.getElementById('meters').textContent.includes('Expert slots in VRAM')")
        self.assertRegex(b.run("return document.getElementById('meters').textContent"), "PCIe, both ways[0-9.]+ MB/s of 2.0 GB/s")
        b.wait("Number(document.getElementById('count-vram').textContent) > 0")
        b.wait("document.getElementById('prefetch').textContent.startsWith('All experts fit')")
        b.run("stopAnswer()")


class Key(Page):
    arguments = ("--api-key", "secret")

    def test_the_page_asks_for_the_key(self):
        b = self.browse()
        b.wait("!document.getElementById('notice-key').hidden")
        b.click("#notice-key")
        b.wait("document.activeElement.name == 'key'")
        b.type("secret")
        b.press("enter")
        b.wait("document.getElementById('notice').hidden && document.getElementById('model').textContent")
        b.run("send('The sky')")
        b.wait("conversation.length == 2 && conversation[1].content")


if __name__ == "__main__":
    serve_test.STOKER = os.path.abspath(sys.argv[1])
    serve_test.MODEL = os.path.join(sys.argv[2], "tests", "models", "ember-37m-q4_k_m.gguf")
    if webdriver.missing():
        print("skipped: not installed: " + webdriver.missing())
        sys.exit(SKIPPED)
    unittest.main(argv=[sys.argv[0]] + sys.argv[3:], verbosity=2)
