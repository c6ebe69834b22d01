"""A Django project with the views of docs/signing-in.md as they are printed there, for the tests of signing in.

Beside this file: settings_token.py, views_token.py, views_key.py, views_ask.py, page.js, client.js and chat.pem. The
port is in SITE_PORT.
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
sys.path.insert(0, str(HERE))

import settings_token  # noqa: E402

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
    GATEWAY_JWT_SECRET=settings_token.GATEWAY_JWT_SECRET,
    GATEWAY_AUTH_SECRET=os.environ["GATEWAY_AUTH_SECRET"],
    CHAT_PRIVATE_KEY=(HERE / "chat.pem").read_text(),
)
django.setup()

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


def chat(request):
    """A page with the printed lines. What it says to the room comes back with the name that the node knows."""
    return HttpResponse(
        '<!doctype html><title>chat</title><h1></h1><script type="module">import { connect } from "/client.js";\n'
        + (HERE / "page.js").read_text()
        + """gateway.on("chat", (frame) => (document.querySelector("h1").textContent = `${frame.from_user}: ${frame.message}`));
        gateway.chat("lobby", "from the page");</script>"""
    )


def client(request):
    return HttpResponse((HERE / "client.js").read_bytes(), content_type="text/javascript")


urlpatterns = [
    path("", page),
    path("chat/", chat),
    path("client.js", client),
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
