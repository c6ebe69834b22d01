"""A Django project with the views of docs/signing-in.md as they are printed there, for the tests of signing in.

Beside this file: views_token.py, views_key.py, views_ask.py, and chat.pem. The port is in SITE_PORT.
"""

import os
import sys
from pathlib import Path

import django
from django.conf import settings
from django.core.management import call_command
from django.http import HttpResponse
from django.urls import path

HERE = Path(__file__).parent
PORT = os.environ["SITE_PORT"]

settings.configure(
    SECRET_KEY="a-secret-of-the-test-alone-0123456789-0123456789",
    ALLOWED_HOSTS=["127.0.0.1"],
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": HERE / "site.db"}},
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    ROOT_URLCONF=__name__,
    USE_TZ=True,
    LOGIN_URL="/login/",
    GATEWAY_JWT_SECRET=os.environ["GATEWAY_JWT_SECRET"],
    GATEWAY_AUTH_SECRET=os.environ["GATEWAY_AUTH_SECRET"],
    CHAT_PRIVATE_KEY=(HERE / "chat.pem").read_text(),
)
django.setup()
sys.path.insert(0, str(HERE))

from django.contrib.auth import login, logout  # noqa: E402
from django.contrib.auth.models import User  # noqa: E402

import views_ask  # noqa: E402
import views_key  # noqa: E402
import views_token  # noqa: E402


def log_in(request, name):
    login(request, User.objects.get(username=name), backend="django.contrib.auth.backends.ModelBackend")
    return HttpResponse("in")


def log_out(request):
    logout(request)
    return HttpResponse("out")


def page(request):
    return HttpResponse("a page of the site")


urlpatterns = [
    path("", page),
    path("log-in/<name>/", log_in),
    path("log-out/", log_out),
    path("chat-token/", views_token.chat_token),
    path("chat-token-of-a-key/", views_key.chat_token),
    path("gateway/auth/", views_ask.gateway_auth),
]

if __name__ == "__main__":
    call_command("migrate", verbosity=0)
    for name in ["alice", "bob@example.com"]:
        User.objects.create_user(name, password="secret")
    call_command("runserver", f"127.0.0.1:{PORT}", use_reloader=False)
