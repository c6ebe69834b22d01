"""Relations of the site's become member.add, member.remove and room.put."""

from django.contrib.auth.models import Group, User
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import transaction
from django.db.models.signals import m2m_changed, post_delete, post_save, pre_delete, pre_save
from django.test import SimpleTestCase, TransactionTestCase
from django.utils import timezone

from channel_gateway import InvalidEvent, chat, memberships
from channel_gateway.memberships import Relation
from channel_gateway.testing import GatewayTestMixin, outbox

from .base import LogMixin
from .club.models import Alert, Club, Desk, Employee, Guest, Membership, Project


class MembershipTests(LogMixin, GatewayTestMixin, TransactionTestCase):
    def setUp(self):
        super().setUp()
        self.ann, self.bob, self.eve = (User.objects.create_user(name) for name in ("ann", "bob", "eve"))
        outbox.clear()

    def said(self):
        """What was published since the last look."""
        found = []
        for event in outbox:
            room = event.to[0].removeprefix("room:")
            found.append((event.type, room, sorted(event.data.get("users", [])) or event.data.get("display_name")))
        outbox.clear()
        return found

    def test_a_many_to_many(self):
        project = Project.objects.create(title="Apollo")
        room = f"project-{project.pk}"
        self.assertEqual(self.said(), [("room.put", room, "Apollo")])
        project.team.add(self.ann, self.bob)
        self.assertEqual(self.said(), [("member.add", room, ["ann", "bob"])])
        project.team.add(self.ann)
        self.assertEqual(self.said(), [])
        project.team.remove(self.bob)
        self.assertEqual(self.said(), [("member.remove", room, ["bob"])])
        project.team.set([self.eve])
        self.assertEqual(self.said(), [("member.remove", room, ["ann"]), ("member.add", room, ["eve"])])
        project.team.clear()
        self.assertEqual(self.said(), [("member.remove", room, ["eve"])])

    def test_a_many_to_many_from_the_other_side(self):
        one, two = Project.objects.create(title="One"), Project.objects.create(title="Two")
        self.said()
        self.ann.projects.add(one, two)
        rooms = [f"project-{one.pk}", f"project-{two.pk}"]
        self.assertEqual(sorted(self.said()), [("member.add", room, ["ann"]) for room in rooms])
        self.ann.projects.remove(one)
        self.assertEqual(self.said(), [("member.remove", rooms[0], ["ann"])])
        self.ann.projects.clear()
        self.assertEqual(self.said(), [("member.remove", rooms[1], ["ann"])])

    def test_an_end_of_a_many_to_many_is_deleted(self):
        project = Project.objects.create(title="Apollo")
        room = f"project-{project.pk}"
        project.team.add(self.ann, self.bob)
        self.said()
        Guest.objects.get(pk=self.ann.pk).delete()
        self.assertIn(("member.remove", room, ["ann"]), self.said())
        project.delete()
        self.assertEqual(self.said(), [("member.remove", room, ["bob"])])

    def test_a_many_to_many_rolled_back(self):
        project = Project.objects.create(title="Apollo")
        self.said()
        with self.assertRaises(KeyError), transaction.atomic():
            project.team.add(self.ann)
            raise KeyError
        self.assertEqual(self.said(), [])

    def test_through_a_model(self):
        club = Club.objects.create(slug="chess")
        self.assertEqual(self.said(), [("room.put", "chess", None)])
        club.people.add(self.ann)
        self.assertEqual(self.said(), [("member.add", "chess", ["ann"])])
        row = Membership.objects.create(person=self.bob, club=club)
        self.assertEqual(self.said(), [("member.add", "chess", ["bob"])])
        # Guests are left out by `where`.
        row.is_guest = True
        row.save()
        self.assertEqual(self.said(), [("member.remove", "chess", ["bob"])])
        guest = Membership.objects.create(person=self.eve, club=club, is_guest=True)
        guest.delete()
        self.assertEqual(self.said(), [])
        # One of two rows that say the same.
        again = Membership.objects.create(person=self.ann, club=club)
        self.said()
        again.delete()
        self.assertEqual(self.said(), [])
        Membership.objects.get(person=self.ann).delete()
        self.assertEqual(self.said(), [("member.remove", "chess", ["ann"])])

    def test_through_a_model_to_another_room_and_with_the_room_deleted(self):
        chess, go = Club.objects.create(slug="chess"), Club.objects.create(slug="go")
        row = Membership.objects.create(person=self.ann, club=chess)
        self.said()
        row.club = go
        row.save()
        self.assertEqual(self.said(), [("member.remove", "chess", ["ann"]), ("member.add", "go", ["ann"])])
        go.delete()
        self.assertEqual(self.said(), [("member.remove", "go", ["ann"])])

    def test_a_foreign_key(self):
        front, back = Desk.objects.create(name="front"), Desk.objects.create(name="back")
        self.assertEqual(self.said(), [("room.put", "desk-front", None), ("room.put", "desk-back", None)])
        worker = Employee.objects.create(account=self.ann, desk=front)
        self.assertEqual(self.said(), [("member.add", "desk-front", ["ann"])])
        worker.desk = back
        worker.save()
        self.assertEqual(self.said(), [("member.remove", "desk-front", ["ann"]), ("member.add", "desk-back", ["ann"])])
        worker.save()
        self.assertEqual(self.said(), [])
        worker.desk = None
        worker.save()
        self.assertEqual(self.said(), [("member.remove", "desk-back", ["ann"])])

    def test_a_room_gets_another_name(self):
        desk = Desk.objects.create(name="front")
        Employee.objects.create(account=self.ann, desk=desk)
        self.said()
        desk.name = "porch"
        desk.save()
        self.assertEqual(
            self.said(),
            [
                ("room.put", "desk-porch", None),
                ("member.remove", "desk-front", ["ann"]),
                ("member.add", "desk-porch", ["ann"]),
            ],
        )
        project = Project.objects.create(title="Apollo")
        self.said()
        project.title = "Gemini"
        project.save()
        self.assertEqual(self.said(), [("room.put", f"project-{project.pk}", "Gemini")])

    def test_a_user_gets_another_name(self):
        club, desk = Club.objects.create(slug="chess"), Desk.objects.create(name="front")
        club.people.add(self.ann)
        Employee.objects.create(account=self.ann, desk=desk)
        self.said()
        self.ann.username = "anna"
        self.ann.save()
        self.assertEqual(
            self.said(),
            [
                ("member.remove", "chess", ["ann"]),
                ("member.add", "chess", ["anna"]),
                ("member.remove", "desk-front", ["ann"]),
                ("member.add", "desk-front", ["anna"]),
                ("gateway.disconnect", "user:ann", None),
            ],
        )

    def test_rooms_can_be_given_as_objects(self):
        club = Club.objects.create(slug="chess")
        outbox.clear()
        chat(club, "hello")
        self.assertEqual(outbox[0].to, ["room:chess"])
        with self.assertRaises(InvalidEvent):
            chat(Group(name="x"), "hello")

    def test_a_name_that_cannot_be_keeps_nobody_from_saving(self):
        odd = User.objects.create(username="a/b")
        project = Project.objects.create(title="Apollo")
        self.said()
        project.team.add(odd, self.ann)
        self.assertEqual(self.said(), [("member.add", f"project-{project.pk}", ["ann"])])
        with self.assertLogs("channel_gateway", "ERROR"):
            Desk.objects.create(name="a/b")

    def test_fixtures_are_left_to_gateway_sync(self):
        from django.core.serializers import deserialize, serialize

        club = Club.objects.create(slug="chess")
        Membership.objects.create(person=self.ann, club=club)
        text = serialize("json", [club, *Membership.objects.all()])
        self.said()
        for each in deserialize("json", text):
            each.save()
        self.assertEqual(self.said(), [])

    def test_more_members_than_an_entry_holds(self):
        project = Project.objects.create(title="Apollo")
        people = [User(username=f"user{number:03}") for number in range(250)]
        User.objects.bulk_create(people)
        outbox.clear()
        project.team.set(User.objects.filter(username__startswith="user"))
        self.assertEqual([len(event.data["users"]) for event in outbox], [100, 100, 50])
        self.assertEqual(len({event.id for event in outbox}), 3)

    def test_rows_that_name_the_room_make_it(self):
        relation = Relation(
            Alert, lambda alert: f"alerts-{alert.sender}", user="user", display_name=lambda _: "x" * 300
        )
        relation.connect()
        self.addCleanup(forget, relation)
        Alert.objects.create(user=self.ann, sender="shop", text="", created=timezone.now())
        room = "alerts-shop"
        self.assertEqual(self.said(), [("room.put", room, "x" * 255), ("member.add", room, ["ann"])])
        self.ann.username = "anon.ann"
        self.ann.save()
        outbox.clear()
        Alert.objects.create(user=self.ann, sender="bank", text="", created=timezone.now())
        self.assertEqual(self.said(), [("room.put", "alerts-bank", "x" * 255)], "visitors' names are nobody's")


def forget(relation):
    """Listens no more."""
    uid = f"channel_gateway.{id(relation)}"
    for signal in (m2m_changed, pre_save, post_save, pre_delete, post_delete):
        for model in (relation.rows, *memberships.senders(relation.rooms), *memberships.senders(User)):
            for each in (uid, f"{uid}.room"):
                signal.disconnect(sender=model, dispatch_uid=each)


class DeclarationTests(SimpleTestCase):
    def test_mistakes_are_named_at_the_start(self):
        for wrong in (
            Relation(Project, str, members="nobody"),
            Relation(Project, str, members="title"),
            Relation(Employee, str, user="desk", room="desk"),
            Relation(Employee, str, user="nobody", room="desk"),
            Relation(Employee, str, user="account", room="pk"),
            Relation(Group, str, members="permissions"),
        ):
            with self.assertRaises(ImproperlyConfigured):
                wrong.connect()

    def test_the_other_side_of_a_many_to_many(self):
        relation = Relation(Group, "name", members="user_set")
        relation.connect()
        self.addCleanup(forget, relation)
        self.assertEqual([relation.rooms, relation.room_path, relation.user_path], [Group, "group", "user"])

    def test_sync_wants_a_relation(self):
        from unittest import mock

        from django.core.management.base import CommandError

        with mock.patch.object(memberships, "relations", []), self.assertRaises(CommandError):
            call_command("gateway_sync")
