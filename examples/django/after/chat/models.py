from channel_gateway import notify, room_members
from django.conf import settings
from django.db import models


class Room(models.Model):
    name = models.SlugField(unique=True)
    title = models.CharField(max_length=100)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+")
    members = models.ManyToManyField(settings.AUTH_USER_MODEL, related_name="rooms")

    def __str__(self):
        return self.title


@room_members(Room, members="members", display_name="title")
def room_name(room):
    return room.name


class Message(models.Model):
    room = models.ForeignKey(Room, models.CASCADE, related_name="messages")
    author = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE)
    text = models.TextField()
    # What the page gives beside the text.
    data = models.JSONField(null=True)
    # The page's own name of the message: sent again after a lost connection, it is stored once.
    client_id = models.CharField(max_length=64, unique=True)
    date = models.DateTimeField(auto_now_add=True)

    def __str__(self):
        return self.text


class Notification(models.Model):
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="notifications")
    sender = models.CharField(max_length=150)
    text = models.TextField()
    data = models.JSONField(null=True)
    client_id = models.CharField(max_length=64, unique=True, null=True)
    seen = models.BooleanField(default=False)
    date = models.DateTimeField(auto_now_add=True)

    def __str__(self):
        return self.text

    def event(self):
        """What goes through the channel layer to the user's consumers."""
        return {
            "type": "notification.message",
            "id": self.pk,
            "message": self.text,
            "data": self.data,
            "from_user": self.sender,
            "date": self.date.isoformat(),
        }


def tell(user, text):
    """What the site itself says to a user: stored, and shown on every page that the user has open."""
    notify(user, text, from_user="site")
