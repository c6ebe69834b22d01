"""The way back: brings what was said on the gateway into the site's tables. Run again, it brings what is new.

python manage.py shell <../take_back.py
"""

from channel_gateway import api
from chat.models import Message, Notification, Room
from django.contrib.auth.models import User
from django.utils.dateparse import parse_datetime


def pages(name, *where):
    """All that is behind this address of the gateway's API, the oldest first."""
    after = 0
    while page := api.call("GET", api.path(*where, after=after, limit=100))[name]:
        yield from page
        after = page[-1]["seq"]


def take(kind, each, **row):
    """One more row, if it is not there. Its date is that of the gateway, and not, by `auto_now_add`, today."""
    # What the page has sent has the page's key, in whichever of the two places it was stored.
    key = (each.get("data") or {}).get("key") or each["id"]
    row |= {"text": each["message"], "data": each.get("data")}
    made, is_new = kind.objects.get_or_create(client_id=key, defaults=row)
    if is_new:
        kind.objects.filter(pk=made.pk).update(date=each["date"])
    return is_new


taken = 0
for room in Room.objects.all():
    for each in pages("messages", "rooms", room.name, "history"):
        taken += take(Message, each, room=room, author=User.objects.get(username=each["from_user"]))
for user in User.objects.all():
    # What the site itself said before the switch has no key: it was imported from here.
    had = set(user.notifications.filter(client_id=None).values_list("date", "text"))
    for each in pages("notifications", "users", user.username, "notifications"):
        if (parse_datetime(each["date"]), each["message"]) not in had:
            taken += take(Notification, each, user=user, sender=each["from_user"], seen=each["seen"])
print(f"{taken} taken back")
