"""A Django project that does what it is told, one JSON line an order: the real login view, sessions and users.

python site_process.py SETTINGS_JSON
"""

import datetime
import json
import os
import random
import sys
import threading
import traceback
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import django
from django.conf import settings
from django.http import Http404, HttpResponse, JsonResponse

given = json.loads(sys.argv[1])
if given["databases"]["default"]["ENGINE"].endswith("mysql"):
    import pymysql

    pymysql.install_as_MySQLdb()

given = {name.upper(): value for name, value in given.items()}
settings.configure(**{
    "DEBUG": False,
    "ALLOWED_HOSTS": ["*"],
    "ROOT_URLCONF": __name__,
    "INSTALLED_APPS": ["django.contrib.contenttypes", "django.contrib.auth", "django.contrib.sessions", "people"],
    "MIDDLEWARE": [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ],
    "TEMPLATES": [{
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "OPTIONS": {
            "loaders": [("django.template.loaders.locmem.Loader", {
                "registration/login.html": "<!doctype html><title>log in</title><form method=post>{% csrf_token %}"
                "{{ form.as_p }}<input type=hidden name=next value='{{ next }}'><button>Log in</button></form>",
                "account.html": "<!doctype html><title>account</title><h1>{{ request.user }}</h1>"
                "<form method=post action='/logout/'>{% csrf_token %}<button>Log out</button></form>",
            })],
            "context_processors": ["django.template.context_processors.request"],
        },
    }],
    "PASSWORD_HASHERS": ["django.contrib.auth.hashers.PBKDF2PasswordHasher"],
    "DEFAULT_AUTO_FIELD": "django.db.models.AutoField",
    "LOGIN_REDIRECT_URL": "/whoami/",
    "LOGOUT_REDIRECT_URL": "/whoami/",
    **given,
})
django.setup()

from django.contrib.auth import get_user_model, login, views
from django.contrib.auth.hashers import PBKDF2PasswordHasher
from django.contrib.sessions.backends import signed_cookies
from django.core.management import call_command
from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler
from django.core.wsgi import get_wsgi_application
from django.shortcuts import render
from django.test import Client, RequestFactory
from django.urls import path
from django.utils import timezone
from importlib import import_module

# What a login costs is not tested here.
PBKDF2PasswordHasher.iterations = 1000

User = get_user_model()
COOKIE = settings.SESSION_COOKIE_NAME
CLIENT = Path(__file__).parents[3] / "clients" / "js" / "client.js"


def store_class():
    return import_module(settings.SESSION_ENGINE).SessionStore


def whoami(request):
    user = request.user
    if not user.is_authenticated:
        return JsonResponse({"user": None})
    return JsonResponse({"user": {"id": str(user.pk), "username": user.get_username()}})


# As a site's own page would be; that it is shown says nothing about who is there.
CHAT = """<!doctype html><title>chat</title><ul></ul>
<script type="module">
import { connect } from "/client.js";
const gateway = connect("/ws/chat/lobby/");
const note = (text) => document.querySelector("ul").append(Object.assign(document.createElement("li"), { textContent: text }));
gateway.on("chat", (frame) => note(`${frame.from_user} says ${frame.message}`));
gateway.on("state", ({ state, code }) => note(code ? `${state} after ${code}` : state));
window.gateway = gateway;
</script>"""


def chat(request):
    return HttpResponse(CHAT)


def client(request):
    return HttpResponse(CLIENT.read_bytes(), content_type="text/javascript")


def account(request):
    return render(request, "account.html")


def gateway_auth(request):
    """As docs/signing-in.md has it, which another test takes from there."""
    if request.headers.get("X-Gateway-Secret") != "between-node-and-site":
        raise Http404
    return whoami(request)


urlpatterns = [
    path("login/", views.LoginView.as_view()),
    path("logout/", views.LogoutView.as_view()),
    path("whoami/", whoami),
    path("chat/", chat),
    path("client.js", client),
    path("account/", account),
    path("gateway/auth/", gateway_auth),
]


def browser(cookie=None):
    client = Client()
    if cookie is not None:
        client.cookies[COOKIE] = cookie
    return client


def by_name(name):
    return User.objects.get(**{User.USERNAME_FIELD: name})


class Quiet(WSGIRequestHandler):
    def log_message(self, *given):
        pass


class Orders:
    def serve(self):
        """Answers HTTP from now on; the port."""
        server = ThreadedWSGIServer(("127.0.0.1", 0), Quiet)
        server.set_app(get_wsgi_application())
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server.server_port

    def date_in(self, cookie):
        """A session with more than data in it, as a pickle keeps it."""
        session = store_class()(cookie)
        session["since"] = datetime.datetime(2026, 1, 1)
        session.save()

    def user(self, name, password):
        return str(User.objects.create_user(name, password=password).pk)

    def users(self, prefix, count):
        """Many users with one password, and a session for each."""
        first = User.objects.create_user(f"{prefix}0", password="secret")
        others = [User(**{User.USERNAME_FIELD: f"{prefix}{n}", "password": first.password}) for n in range(1, count)]
        User.objects.bulk_create(others)
        return [self.session_of(user) for user in User.objects.filter(username__startswith=prefix).order_by("pk")]

    def session_of(self, user, **extra):
        request = RequestFactory().get("/")
        request.session = store_class()()
        login(request, user, backend=extra.pop("backend", settings.AUTHENTICATION_BACKENDS[0]))
        for name, value in extra.items():
            request.session[name] = value
        request.session.save()
        return request.session.session_key

    def login(self, name, password):
        client = browser()
        answer = client.post("/login/", {"username": name, "password": password})
        assert answer.status_code == 302, answer.status_code
        return client.cookies[COOKIE].value

    def logout(self, cookie):
        browser(cookie).post("/logout/")

    def visit(self):
        """A session in which nobody is logged in."""
        session = store_class()()
        session["cart"] = [1, 2, 3]
        session.save()
        return session.session_key

    def whoami(self, cookie):
        return browser(cookie).get("/whoami/").json()["user"]

    def set_password(self, name, password):
        user = by_name(name)
        user.set_password(password)
        user.save()

    def weak_hash(self, name, password):
        """As it was stored by an older Django; the next login makes a better one of it."""
        user = by_name(name)
        user.password = PBKDF2PasswordHasher().encode(password, "saltsaltsaltsaltsaltsa", 10)
        user.save()
        return user.password

    def hash(self, name):
        return by_name(name).password

    def update(self, name, **fields):
        User.objects.filter(**{User.USERNAME_FIELD: name}).update(**fields)

    def delete(self, name):
        by_name(name).delete()

    def expire(self, cookie, seconds):
        """The session's end, as `set_expiry` sets it."""
        session = store_class()(cookie)
        session.set_expiry(seconds)
        session.save()

    def keys(self, key, fallbacks):
        settings.SECRET_KEY = key
        settings.SECRET_KEY_FALLBACKS = fallbacks

    def random(self, seed, count):
        """Sessions of all kinds: each a cookie and who is there, by Django's own view."""
        rng = random.Random(seed)
        first = User.objects.create_user("random-0", password="secret")
        people = [User(username=f"random-{n}-{rng.choice(['a', 'ü', '名', 'x.y@z'])}", password=first.password)
                  for n in range(1, 60)]
        User.objects.bulk_create(people)
        people = list(User.objects.filter(username__startswith="random-"))
        cookies = []
        current, fallbacks = settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS
        for n in range(count):
            user = rng.choice(people)
            settings.SECRET_KEY = rng.choice([current] * 5 + fallbacks + ["a stranger's key"])
            values = {
                "text": rng.choice(["", "é", "\ud83e", "\U0001f600", "\u0000", "x" * rng.randrange(3000)]),
                "number": rng.choice([0, -1, 10 ** rng.randrange(60), 0.5, float("nan"), float("-inf"), 1e300]),
                "list": [[]] * rng.randrange(4) + [{"_auth_user_id": "1"}, None, True, "]}", "\\\""],
                rng.choice(["cart", "\ud800", "\"", "_auth_user_idx"]): {"a": {"b": [1, 2, [3]]}},
            }
            session = store_class()()
            request = RequestFactory().get("/")
            request.session = session
            kind = rng.randrange(12)
            if kind != 0:
                login(request, user, backend="django.contrib.auth.backends.ModelBackend")
            session.update({name: value for name, value in values.items() if rng.random() < 0.6})
            if kind == 1:
                session["_auth_user_backend"] = rng.choice(["shop.Backend", "", settings.AUTHENTICATION_BACKENDS[-1]])
            elif kind == 2:
                session["_auth_user_hash"] = rng.choice(["", "0" * 64, session["_auth_user_hash"].upper()])
            elif kind == 3:
                session.pop(rng.choice(["_auth_user_id", "_auth_user_backend", "_auth_user_hash"]))
            elif kind == 4:
                session["_auth_user_id"] = "999999"
            elif kind == 5:
                session.set_expiry(rng.choice([-1, 1000, datetime.timedelta(days=-1), timezone.now()]))
            session.save()
            cookies.append(session.session_key)
        settings.SECRET_KEY = current
        for n, user in enumerate(people):
            what = rng.randrange(10)
            if what == 0:
                user.delete()
            elif what == 1:
                User.objects.filter(pk=user.pk).update(is_active=False)
            elif what == 2:
                User.objects.filter(pk=user.pk).update(username=f"renamed-{n}")
            elif what == 3:
                user.set_password("another")
                user.save()
        for _ in range(count // 20):
            cookie = rng.choice(cookies)
            cut = rng.randrange(len(cookie))
            cookies.append(rng.choice([cookie[:cut], cookie + "x", cookie.upper(), cookie[:cut] + "-" + cookie[cut + 1:]]))
        rng.shuffle(cookies)
        return cookies

    def whoami_all(self, cookies):
        return [self.whoami(cookie) for cookie in cookies]


call_command("migrate", run_syncdb=True, verbosity=0)
print(json.dumps({"value": "ready"}), flush=True)
orders = Orders()
for line in sys.stdin:
    name, arguments, named = json.loads(line)
    try:
        answer = {"value": getattr(orders, name)(*arguments, **named)}
    except Exception:
        answer = {"error": traceback.format_exc()}
    print(json.dumps(answer), flush=True)
