"""The app of the tests."""

from django.apps import AppConfig
from django.db.backends.signals import connection_created


class ClubConfig(AppConfig):
    name = "tests.club"
    label = "club"

    def ready(self):
        connection_created.connect(no_sync, dispatch_uid="tests")


def no_sync(*, connection, **_):
    # What is committed has to outlive a killed process, not the machine.
    if connection.vendor == "sqlite":
        connection.cursor().execute("PRAGMA synchronous = OFF")
