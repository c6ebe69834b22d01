"""Relations of the site's that decide who is in which room.

    @room_members(Project, members="team")  # a many-to-many, with or without `through`
    def project_room(project):
        return f"project-{project.pk}"

    @room_members(Membership, user="person", room="club")  # a model with two foreign keys
    def club_room(club):
        return club.slug

Their signals become ``member.add``, ``member.remove`` and ``room.put``. What sends no signals (``bulk_create``,
``QuerySet.update``, SQL) is found and mended by ``manage.py gateway_sync``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from django.apps import apps
from django.contrib.auth import get_user_model
from django.core.exceptions import FieldDoesNotExist, ImproperlyConfigured
from django.db import models
from django.db.models import Q
from django.db.models.signals import m2m_changed, post_delete, post_save, pre_delete, pre_save

from . import publishing
from .conf import conf
from .envelope import MAX_DISPLAY_NAME_CHARS
from .exceptions import InvalidEvent
from .names import is_valid_user

Namer = Callable[[Any], str]
_F = TypeVar("_F", bound=Callable[..., Any])

#: All relations, in the order they were named.
relations: list[Relation] = []

_PAGE = 500


class Relation:
    """A set of (room, user): each row of ``rows`` is one."""

    def __init__(
        self,
        model: Any,
        name: Namer | str,
        *,
        members: str | None = None,
        user: str = "",
        room: str = "",
        where: Q | Mapping[str, Any] | None = None,
        display_name: Namer | str | None = None,
        when: str | None = None,
    ) -> None:
        """Only notes it; models may not be there yet."""
        self._model = model
        self._members = members
        self._name = name
        self._display_name = display_name
        self._where = where if isinstance(where, Q) else Q(**(where or {}))
        self.when = when
        self.user_path = user
        self.room_path = room
        self.is_many_to_many = members is not None
        self._connected = False

    # ---- what it is made of ----

    def connect(self) -> None:
        """Finds the models and listens to them."""
        if self._connected:
            return
        self._connected = True
        model = apps.get_model(self._model) if isinstance(self._model, str) else self._model
        if self._members is not None:
            self._find_many_to_many(model, self._members)
        else:
            self.rows = model
            self.rooms = self._target(model, self.room_path)
            if self._target(model, self.user_path) is not get_user_model():
                raise ImproperlyConfigured(
                    f"@room_members({model.__name__}): user={self.user_path!r} does not lead to the user model;"
                    " name the foreign key, as user='user'"
                )
        self._listen()

    @staticmethod
    def _target(model: Any, path: str) -> Any:
        for step in path.split("__") if path else ():
            try:
                model = model._meta.get_field(step).related_model
            except FieldDoesNotExist as error:
                raise ImproperlyConfigured(f"@room_members: {error}") from error
            if model is None:
                raise ImproperlyConfigured(f"@room_members: {step!r} is no relation")
        return model

    def _find_many_to_many(self, model: Any, members: str) -> None:
        try:
            field = model._meta.get_field(members)
        except FieldDoesNotExist:
            # The other side of a field, by the name that code uses.
            descriptor = getattr(model, members, None)
            field = getattr(descriptor, "rel", None)
            if field is None:
                raise ImproperlyConfigured(f"@room_members: {model.__name__} has no relation {members!r}") from None
        forward = field if isinstance(field, models.ManyToManyField) else getattr(field, "field", None)
        if not isinstance(forward, models.ManyToManyField):
            raise ImproperlyConfigured(f"@room_members: {model.__name__}.{members} is no many-to-many")
        ours, theirs = forward.m2m_field_name(), forward.m2m_reverse_field_name()
        if forward is not field:
            ours, theirs = theirs, ours
        people = forward.related_model if forward is field else forward.model
        self.rooms = model
        self.rows = forward.remote_field.through
        self.people: Any = people
        if people is model:
            raise ImproperlyConfigured("@room_members: rooms and members must be of two models")
        if self._target(people, self.user_path) is not get_user_model():
            raise ImproperlyConfigured(
                f"@room_members({model.__name__}): {members!r} leads to {people.__name__}, which is not the user model;"
                " say how it goes on, as user='account'"
            )
        self.person_path = theirs
        self.room_path = ours
        self.to_user = self.user_path
        self.user_path = "__".join(filter(None, (theirs, self.user_path)))

    def name(self, room: Any) -> str:
        """The room's name."""
        found = self._name(room) if callable(self._name) else getattr(room, self._name)
        return str(found)

    def display_name(self, room: Any) -> str | None:
        """What people see, if the site has something for it."""
        if self._display_name is None:
            return None
        found = self._display_name(room) if callable(self._display_name) else getattr(room, self._display_name)
        return None if found in (None, "") else str(found)[:MAX_DISPLAY_NAME_CHARS]

    def _user_name_path(self, path: str) -> str:
        column = "pk" if conf().user_name == "id" else get_user_model().USERNAME_FIELD
        return "__".join(filter(None, (path, column)))

    def _all(self, using: str | None) -> Any:
        return self.rows._base_manager.using(using).filter(self._where)

    # ---- who is in it now ----

    def members(self, room: Any, using: str | None = None) -> Iterator[str]:
        """The names of a room's members."""
        rows = self._all(using).filter(**{self.room_path or "pk": room.pk})
        names = rows.values_list(self._user_name_path(self.user_path), flat=True)
        return (str(name) for name in names.iterator(chunk_size=_PAGE) if name is not None)

    def has(self, room: Any, name: str, using: str | None = None) -> bool:
        """Whether a user of that name is in the room."""
        user = {self._user_name_path(self.user_path): name}
        return bool(self._all(using).filter(**{self.room_path or "pk": room.pk}, **user).exists())

    def rooms_of(self, user: Any, using: str | None = None) -> list[Any]:
        """The rooms that a user is in."""
        rows = self._all(using).filter(**{self.user_path or "pk": user.pk})
        if not self.room_path:
            return list(rows)
        keys = set(rows.values_list(f"{self.room_path}__pk", flat=True)) - {None}
        return list(self.rooms._base_manager.using(using).filter(pk__in=keys).order_by("pk"))

    def all_rooms(self, using: str | None = None) -> Iterator[Any]:
        """All rooms, in pages."""
        return self.rooms._base_manager.using(using).order_by("pk").iterator(chunk_size=_PAGE)  # type: ignore[no-any-return]

    def _pairs(self, row: Any, using: str | None) -> dict[tuple[str, str], tuple[Any, Any]]:
        """What one row says now in the database: (room, user) and their keys."""
        rows = self._all(using).filter(pk=row.pk)
        if self.room_path:
            rows = rows.select_related(self.room_path)
        found = {}
        user_key = f"{self.user_path}__pk" if self.user_path else "pk"
        for each in rows:
            room: Any = each
            for step in self.room_path.split("__") if self.room_path else ():
                room = getattr(room, step) if room is not None else None
            values = rows.values_list(self._user_name_path(self.user_path), user_key).first()
            if room is not None and values is not None and values[0] is not None:
                found[self.name(room), str(values[0])] = (room.pk, values[1])
        return found

    def _is_still(self, keys: tuple[Any, Any], using: str | None) -> bool:
        """Whether another row says the same."""
        if not self.room_path or not self.user_path:
            return False
        return bool(self._all(using).filter(**{self.room_path: keys[0], self.user_path: keys[1]}).exists())

    # ---- signals ----

    def _listen(self) -> None:
        def connect(signal: Any, receiver: Any, model: Any, uid: str) -> None:
            for sender in senders(model):
                signal.connect(receiver, sender=sender, weak=False, dispatch_uid=uid)

        uid = f"channel_gateway.{id(self)}"
        if self.is_many_to_many:
            m2m_changed.connect(self._m2m, sender=self.rows, weak=False, dispatch_uid=uid)
        if self.is_many_to_many and self.rows._meta.auto_created:
            # Its rows go without a signal of their own when one of their ends is deleted.
            for model in (self.rooms, self.people):
                connect(pre_delete, self._end_goes, model, uid)
                connect(post_delete, self._end_gone, model, uid)
        else:
            connect(pre_save, self._row_before, self.rows, uid)
            connect(post_save, self._row_saved, self.rows, uid)
            connect(pre_delete, self._row_before, self.rows, uid)
            connect(post_delete, self._row_deleted, self.rows, uid)
        if self.rooms is not self.rows:
            connect(pre_save, self._room_before, self.rooms, f"{uid}.room")
            connect(post_save, self._room_saved, self.rooms, f"{uid}.room")

    def _m2m(self, *, instance: Any, action: str, reverse: bool, pk_set: Any, using: str, **_: Any) -> None:
        if action not in ("post_add", "post_remove", "pre_clear"):
            return
        ends = (self.room_path, self.person_path)
        ours, theirs = ends if isinstance(instance, self.rooms) else (ends[1], ends[0])
        if action == "post_remove":
            # The rows are gone: the other ends are what was named.
            if ours == self.room_path:
                rooms = [instance]
                people = self.people._base_manager.using(using).filter(pk__in=pk_set)
            else:
                rooms = list(self.rooms._base_manager.using(using).filter(pk__in=pk_set))
                people = self.people._base_manager.using(using).filter(pk=instance.pk)
            users = [
                name for name in people.values_list(self._user_name_path(self.to_user), flat=True) if name is not None
            ]
            self._publish("remove", ((self.name(room), [str(user) for user in users]) for room in rooms), using)
            return
        rows = self._all(using).filter(**{ours: instance.pk})
        if action == "post_add":
            rows = rows.filter(**{f"{theirs}__in": pk_set})
        self._publish("add" if action == "post_add" else "remove", self._by_room(rows), using)

    def _by_room(self, rows: Any) -> Iterable[tuple[str, list[str]]]:
        found: dict[Any, list[str]] = {}
        for room, user in rows.values_list(f"{self.room_path}__pk", self._user_name_path(self.user_path)):
            if user is not None:
                found.setdefault(room, []).append(str(user))
        rooms = self.rooms._base_manager.using(rows.db).in_bulk(list(found))
        return [(self.name(rooms[key]), users) for key, users in found.items() if key in rooms]

    def _end_goes(self, *, instance: Any, using: str, **_: Any) -> None:
        end = self.room_path if isinstance(instance, self.rooms) else self.person_path
        _note(instance, self, list(self._by_room(self._all(using).filter(**{end: instance.pk}))))

    def _end_gone(self, *, instance: Any, using: str, **_: Any) -> None:
        self._publish("remove", _noted(instance, self, []), using)

    def _row_before(self, *, instance: Any, using: str, raw: bool = False, **_: Any) -> None:
        is_new = instance.pk is None or instance._state.adding
        _note(instance, self, {} if raw or is_new else self._pairs(instance, using))

    def _row_saved(self, *, instance: Any, using: str, raw: bool, **_: Any) -> None:
        if raw:
            return
        before, after = _noted(instance, self, {}), self._pairs(instance, using)
        gone = [pair for pair, keys in before.items() if pair not in after and not self._is_still(keys, using)]
        new = [pair for pair in after if pair not in before]
        if not self.room_path:
            # The row itself names the room: nobody else makes it.
            for room in dict.fromkeys(room for room, _ in new):
                with publishing.quietly("room.put"):
                    publishing.put_room(room, display_name=self.display_name(instance), when=self.when, using=using)
        self._publish("remove", ((room, [user]) for room, user in gone), using)
        self._publish("add", ((room, [user]) for room, user in new), using)

    def _row_deleted(self, *, instance: Any, using: str, **_: Any) -> None:
        before = _noted(instance, self, {})
        gone = [pair for pair, keys in before.items() if not self._is_still(keys, using)]
        self._publish("remove", ((room, [user]) for room, user in gone), using)

    def _room_before(self, *, instance: Any, using: str, raw: bool, update_fields: Any = None, **_: Any) -> None:
        if raw or instance.pk is None or instance._state.adding:
            return
        known = [self._name, self._display_name]
        are_fields = all(each is None or isinstance(each, str) for each in known)
        if update_fields is not None and are_fields and not any(each in update_fields for each in known):
            return
        old = self.rooms._base_manager.using(using).filter(pk=instance.pk).first()
        if old is not None:
            _note(instance, self, (self.name(old), self.display_name(old)))

    def _room_saved(self, *, instance: Any, using: str, raw: bool, created: bool, **_: Any) -> None:
        before = _noted(instance, self, None)
        if raw or not (created or before):
            return
        name, display_name = self.name(instance), self.display_name(instance)
        if created or (name, display_name) != before:
            with publishing.quietly("room.put"):
                publishing.put_room(name, display_name=display_name, when=self.when, using=using)
        if not created and name != before[0]:
            members = list(self.members(instance, using))
            self._publish("remove", [(before[0], members)], using)
            self._publish("add", [(name, members)], using)

    def _publish(self, what: str, pairs: Iterable[tuple[str, list[str]]], using: str) -> None:
        do = publishing.add_members if what == "add" else publishing.remove_members
        for room, users in pairs:
            # Who cannot sign in, because of such a name, need not be told of.
            known = [user for user in users if is_valid_user(user)]
            with publishing.quietly(f"member.{what}"):
                if known:
                    do(room, known, when=self.when, using=using)


def senders(model: Any) -> list[Any]:
    """A model, its proxies and its children: each sends signals in its own name."""
    return [each for each in apps.get_models(include_auto_created=True) if issubclass(each, model)]


def _note(instance: Any, relation: Relation, value: Any) -> None:
    instance.__dict__.setdefault("_gateway_before", {})[id(relation)] = value


def _noted(instance: Any, relation: Relation, default: Any) -> Any:
    return instance.__dict__.get("_gateway_before", {}).pop(id(relation), default)


def room_members(
    model: Any,
    *,
    members: str | None = None,
    user: str = "",
    room: str = "",
    where: Q | Mapping[str, Any] | None = None,
    display_name: Namer | str | None = None,
    when: str | None = None,
) -> Callable[[_F], _F]:
    """The decorated function names a room; ``model`` (a class or ``"app.Model"``) says who is in it.

    ``members``: a many-to-many of ``model``, by the name of either side; the function gets a ``model``. If it does not
    lead to the user model, ``user`` says how it goes on from there.

    Without ``members`` each row of ``model`` puts a user into a room: ``user`` and ``room`` are its foreign keys, and
    the function gets the room. Without ``user`` the row itself is the user, without ``room`` the row names the room.

    ``where`` (a ``Q`` or a dict of lookups) leaves rows out, ``display_name`` (an attribute or a function of the room)
    is what people see, ``when`` is as in ``publish``; ``"outbox"`` keeps every change, and changes of a room in order.
    """

    def decorate(name: _F) -> _F:
        relation = Relation(
            model, name, members=members, user=user, room=room, where=where, display_name=display_name, when=when
        )
        relations.append(relation)
        if apps.ready:
            relation.connect()
        return name

    return decorate


def connect() -> None:
    """Listens to all relations that were named while models were loaded."""
    for relation in relations:
        relation.connect()


def renamed(user: Any, old: str, using: str) -> None:
    """A user has another name: their rooms are to have it, too."""
    for relation in relations:
        for room in relation.rooms_of(user, using):
            name = relation.name(room)
            relation._publish("remove", [(name, [old])], using)
            relation._publish("add", [(name, [str(user.get_username())])], using)


def name_of_room(room: Any) -> str:
    """The name of a room that is an object of the site's."""
    for relation in relations:
        relation.connect()
        if isinstance(room, relation.rooms) and relation.rooms is not relation.rows:
            return relation.name(room)
    raise InvalidEvent(f"{type(room).__name__} is no room: give its name, or name a relation with @room_members")
