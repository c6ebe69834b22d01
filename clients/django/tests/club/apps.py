"""The app of the tests."""

from django.apps import AppConfig


class ClubConfig(AppConfig):
    name = "tests.club"
    label = "club"
