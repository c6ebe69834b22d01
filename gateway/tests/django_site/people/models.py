"""A user model of a site's own: a UUID for a key, an address for a name, never inactive."""

import uuid

from django.contrib.auth.models import AbstractBaseUser, BaseUserManager
from django.db import models


class PersonManager(BaseUserManager):
    def create_user(self, email, password, **others):
        person = self.model(email=email, **others)
        person.set_password(password)
        person.save()
        return person


class Person(AbstractBaseUser):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    email = models.CharField(max_length=150, unique=True)
    USERNAME_FIELD = "email"
    objects = PersonManager()

    class Meta:
        db_table = "people"
