"""Names and groups, by the vectors that the gateway's own rules give."""

import json
import uuid
from pathlib import Path
from types import SimpleNamespace

from django.contrib.auth.models import AnonymousUser, User
from django.test import SimpleTestCase

from channel_gateway import InvalidEvent, group_of, room_group
from channel_gateway.names import is_valid_name, name_of

from .base import gateway

VECTORS = json.loads(Path(__file__).with_name("names.json").read_text())


class NamesTests(SimpleTestCase):
    def test_groups_of_users_and_rooms(self):
        for name, group in VECTORS["users"]:
            self.assertEqual(group_of(name), group)
        for name, group in VECTORS["rooms"]:
            self.assertEqual(room_group(name), group)

    def test_a_template_and_raw_names(self):
        with gateway(USER_GROUP=VECTORS["template"]["user_group"]):
            for name, group in VECTORS["template"]["users"]:
                self.assertEqual(group_of(name), group)
        with gateway(RAW_GROUP_NAMES=True):
            self.assertEqual(group_of("a@b.c"), "a@b.c")

    def test_what_can_be_a_name(self):
        for name in VECTORS["valid"]:
            self.assertTrue(is_valid_name(name), name)
        for name in VECTORS["invalid"]:
            self.assertFalse(is_valid_name(name), name)
            with self.assertRaises(InvalidEvent):
                group_of(name)
        self.assertFalse(is_valid_name("\ud83d"))

    def test_users_by_name_and_by_id(self):
        user = User(pk=7, username="alice")
        self.assertEqual(name_of(user), "alice")
        odd = SimpleNamespace(pk=uuid.UUID(int=1), get_username=lambda: "x")
        with gateway(USER_NAME="id"):
            self.assertEqual(name_of(user), "7")
            self.assertEqual(name_of(7), "7")
            self.assertEqual(name_of(odd), "00000000-0000-0000-0000-000000000001")
        with self.assertRaises(TypeError):
            name_of(7)
        for nobody in (AnonymousUser(), User(username="new")):
            with self.assertRaises(InvalidEvent):
                name_of(nobody)

    def test_the_groups_are_names_that_channels_takes(self):
        from channels.layers import BaseChannelLayer

        layer = BaseChannelLayer()
        for name, _ in VECTORS["users"]:
            self.assertTrue(layer.require_valid_group_name(group_of(name)))
