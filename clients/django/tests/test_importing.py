"""Tables of an existing chat become lines for ``gateway import``."""

import json
import sys
import tempfile
from datetime import datetime, timedelta, timezone
from io import StringIO
from pathlib import Path
from unittest import mock

from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.test import TestCase

from channel_gateway import importing
from channel_gateway.testing import GatewayTestMixin

from .base import gateway
from .club.models import Alert, Club, Guest, Membership, Post, Project

NOON = datetime(2026, 1, 2, 12, 0, 0, 5, tzinfo=timezone.utc)


class ImportTests(GatewayTestMixin, TestCase):
    def setUp(self):
        super().setUp()
        self.ann, self.bob = User.objects.create_user("ann"), User.objects.create_user("bob")
        self.chess, self.go = Club.objects.create(slug="chess"), Club.objects.create(slug="go")
        Membership.objects.create(person=self.ann, club=self.chess)
        later = NOON + timedelta(hours=1)
        self.second = Post.objects.create(club=self.chess, author=self.bob, text="zwei \U0001f389", said_at=later)
        self.first = Post.objects.create(club=self.chess, author=self.ann, text="eins", said_at=NOON, extra={"a": 1})
        self.alert = Alert.objects.create(user=self.ann, sender="shop", text="paid", created=NOON, read_at=later)

    def lines(self, **tables):
        out = StringIO()
        call_command("gateway_import", "--output", "-", stdout=out, **tables)
        return [json.loads(line) for line in out.getvalue().splitlines()]

    def test_every_kind_of_line(self):
        found = self.lines(
            rooms=["club.Club:slug", "club.Project:name=pk,display_name=title"],
            members=["club.Membership:club,person"],
            messages=["club.Post:club,author,text,said_at,extra"],
            notifications=["club.Alert:user__username,sender,text,created,read_at"],
        )
        chat = {"room": "chess", "from_user": "ann", "message": "eins", "date": "2026-01-02T12:00:00.000005Z"}
        self.assertEqual(
            found,
            [
                {"room": "chess"},
                {"room": "go"},
                {"room": "chess", "members": ["ann"]},
                # By date, not by key.
                {"chat": {**chat, "data": {"a": 1}}, "source": "club.post", "id": str(self.first.pk)},
                {
                    "chat": {
                        "room": "chess",
                        "from_user": "bob",
                        "message": "zwei \U0001f389",
                        "date": "2026-01-02T13:00:00.000005Z",
                    },
                    "source": "club.post",
                    "id": str(self.second.pk),
                },
                {
                    "notification": {
                        "user": "ann",
                        "from_user": "shop",
                        "message": "paid",
                        "date": "2026-01-02T12:00:00.000005Z",
                        "seen": True,
                    },
                    "source": "club.alert",
                    "id": str(self.alert.pk),
                },
            ],
        )

    def test_by_id_and_with_a_display_name(self):
        with gateway(USER_NAME="id", BACKEND="locmem"):
            project = Project.objects.create(title="Apollo")
            found = self.lines(members=["club.Membership:club,person"], rooms=["club.Project:pk,title"])
        self.assertEqual(
            found,
            [{"room": str(project.pk), "display_name": "Apollo"}, {"room": "chess", "members": [str(self.ann.pk)]}],
        )

    def test_page_by_page_as_from_mysql(self):
        for hour in (0, 0, 0, 2, 3):
            Post.objects.create(club=self.go, author=self.ann, text="x", said_at=NOON + timedelta(hours=hour))
        for number in range(5):
            Guest.objects.create(username=f"guest{number}", last_login=NOON if number % 2 else None)
        for kind, text in (
            ("messages", "club.Post:club,author,text,said_at"),
            ("rooms", "club.Club:slug"),
            ("messages", "club.Guest:room=username,from_user=username,message=username,date=last_login"),
        ):
            table = importing.Table(kind, text)
            whole = list(table.rows(None))
            for page in (1, 2, 3, 100):
                with (
                    self.subTest(text, page=page),
                    mock.patch.object(importing, "_LONG_PAGE", page),
                    mock.patch.object(importing, "connections", {"default": mock.Mock(vendor="mysql")}),
                ):
                    self.assertEqual(list(table.rows(None)), whole)

    def test_a_file_is_its_owners_only(self):
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "lines.jsonl")
            call_command("gateway_import", "--output", str(path), rooms=["club.Club:slug"])
            self.assertEqual(path.read_text(), '{"room":"chess"}\n{"room":"go"}\n')
            self.assertEqual(path.stat().st_mode & 0o777, 0o600)

    def test_mistakes(self):
        for kind, text in (
            ("rooms", "club.Nothing:slug"),
            ("rooms", "club.Club:"),
            ("rooms", "club.Club:nothing"),
            ("rooms", "club.Club:slug,id,people"),
            ("rooms", "club.Club:title=slug"),
            ("members", "club.Membership:club"),
            ("members", "club.Membership:person,club"),
            ("members", "club.Membership:club__slug__x,person"),
        ):
            with self.subTest(text), self.assertRaises(importing.WrongTable):
                importing.Table(kind, text)
        for wrong in ({}, {"rooms": ["club.Nothing:slug"]}):
            with self.assertRaises(CommandError):
                call_command("gateway_import", **wrong)

    def test_the_gateway_gets_the_lines_and_says_how_it_went(self):
        with tempfile.TemporaryDirectory() as directory:
            program, said = Path(directory, "gateway"), Path(directory, "said")
            program.write_text(
                f"#!{sys.executable}\nimport os, sys\n"
                f"open({str(said)!r}, 'w').write(' '.join(sys.argv[1:]) + chr(10) + sys.stdin.read())\n"
                "assert open(os.environ['GATEWAY_JWT_SECRET_FILE']).read()\n"
                "sys.exit(4 if '--append' in sys.argv else 0)\n"
            )
            program.chmod(0o755)
            with gateway(BINARY=str(program)), mock.patch.dict("os.environ", {"TMPDIR": directory}):
                call_command("gateway_import", rooms=["club.Club:slug"])
                lines = said.read_text().splitlines()
                self.assertRegex(lines[0], r"^import --config \S+/gateway\.toml -$")
                self.assertEqual(lines[1:], ['{"room":"chess"}', '{"room":"go"}'])
                with self.assertRaises(SystemExit) as raised:
                    call_command("gateway_import", "--rooms", "club.Club:slug", "--", "--append")
                self.assertEqual(raised.exception.code, 4)
            self.assertEqual([path for path in Path(directory).iterdir() if path.is_dir()], [])
