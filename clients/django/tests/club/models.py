"""Rooms of every kind that a site may have."""

from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import models

from channel_gateway import room_members

USER = settings.AUTH_USER_MODEL


class Project(models.Model):
    """Members by a plain many-to-many."""

    title = models.CharField(max_length=100)
    team = models.ManyToManyField(USER, related_name="projects")


@room_members(Project, members="team", display_name="title")
def project_room(project):
    return f"project-{project.pk}"


class Club(models.Model):
    """Members by a model of its own, also through a many-to-many."""

    slug = models.SlugField(unique=True)
    people = models.ManyToManyField(USER, through="Membership")


class Membership(models.Model):
    """Who is in which club."""

    person = models.ForeignKey(USER, on_delete=models.CASCADE)
    club = models.ForeignKey(Club, on_delete=models.CASCADE)
    is_guest = models.BooleanField(default=False)


@room_members("club.Club", members="people", where={"is_guest": False})
def club_room(club):
    return club.slug


class Desk(models.Model):
    """Staff by a foreign key."""

    name = models.CharField(max_length=50)


class Employee(models.Model):
    """Works at one desk."""

    account = models.OneToOneField(USER, on_delete=models.CASCADE)
    desk = models.ForeignKey(Desk, null=True, on_delete=models.SET_NULL)


class Post(models.Model):
    """What was said before there was a gateway."""

    club = models.ForeignKey(Club, on_delete=models.CASCADE)
    author = models.ForeignKey(USER, null=True, on_delete=models.SET_NULL)
    text = models.TextField()
    said_at = models.DateTimeField()
    extra = models.JSONField(null=True)


class Alert(models.Model):
    """And who was told what."""

    user = models.ForeignKey(USER, on_delete=models.CASCADE)
    sender = models.CharField(max_length=50)
    text = models.TextField()
    created = models.DateTimeField()
    read_at = models.DateTimeField(null=True)


class Guest(get_user_model()):
    """A user by another name, as sites have them in the admin."""

    class Meta:
        proxy = True


@room_members(Employee, user="account", room="desk")
def desk_room(desk):
    return f"desk-{desk.name}"
