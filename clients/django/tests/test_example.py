"""examples/django: one project in two states, and the documents show how they differ."""

import difflib
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import TestCase

from django.test import tag

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = ROOT / "examples/django"
CHANGED = ["requirements.txt", "mysite/settings.py", "chat/models.py"]


def files(state):
    found = (EXAMPLE / state).rglob("*")
    return sorted(str(path.relative_to(EXAMPLE / state)) for path in found if path.suffix != ".pyc" and path.is_file())


def changes():
    """Each changed file's name, and its changed lines."""
    for name in CHANGED:
        yield f"# {name}"
        before, after = ((EXAMPLE / state / name).read_text().splitlines() for state in ("before", "after"))
        lines = list(difflib.unified_diff(before, after, n=0, lineterm=""))[2:]
        yield from (line for line in lines if not line.startswith("@@"))


def commands(text):
    """What a page says to type, without what is a remark, each command on one line."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(line.partition(" #")[0].split()) for line in lines]


@tag("once")
class ExampleTests(TestCase):
    def test_what_is_the_same_is_there_once(self):
        self.assertEqual(files("before"), files("after"))
        for name in files("after"):
            before, after = EXAMPLE / "before" / name, EXAMPLE / "after" / name
            with self.subTest(name):
                if name in CHANGED:
                    self.assertNotEqual(before.read_text(), after.read_text())
                elif name == "manage.py":
                    # Python looks for modules where a program really is, so this one is no link.
                    self.assertEqual(before.read_text(), after.read_text())
                else:
                    self.assertEqual(os.path.relpath(before, after.parent), os.readlink(after))

    def test_the_difference_is_short_and_the_documents_show_it(self):
        shown = "\n".join(changes())
        self.assertLess(len(shown.splitlines()), 20)
        for page in ("README.md", "docs/from-channels.md"):
            self.assertIn(f"```diff\n{shown}\n```", (ROOT / page).read_text(), page)

    def test_migrations_are_complete_and_ruff_has_nothing_to_say(self):
        for command in (
            [sys.executable, "-m", "ruff", "check", EXAMPLE],
            [sys.executable, "-m", "ruff", "format", "--check", EXAMPLE],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
