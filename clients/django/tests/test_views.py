"""token/, auth/, the template tag, and who loses their sockets when."""

import json
import time
from datetime import datetime, timezone
from pathlib import Path
from unittest import skipIf

import jwt
from django import VERSION
from django.conf import settings
from django.contrib.auth.models import AnonymousUser, User
from django.contrib.staticfiles import finders
from django.core.exceptions import ImproperlyConfigured
from django.template import Context, Template, TemplateSyntaxError
from django.test import Client, RequestFactory, TestCase, override_settings
from django.utils.functional import SimpleLazyObject

from channel_gateway.policy import Policy
from channel_gateway.testing import GatewayTestMixin, outbox
from channel_gateway.tokens import make_token, read_token

from .base import LogMixin, gateway
from .club.models import Guest

SECRET = settings.GATEWAY["JWT_SECRET"]
ASK = {"X-Gateway-Secret": settings.GATEWAY["AUTH_SECRET"]}


class RoomsPolicy(Policy):
    def rooms(self, user):
        return [f"of-{user.username}", "all"]

    def can_enter(self, user, room):
        return room.startswith("open-")


class TwoMethods:
    """All that a policy has to have."""

    def rooms(self, user):
        return ["all"]

    def can_enter(self, user, room):
        return room == "open"


class Lazy(SimpleLazyObject):
    def __bool__(self):
        return False


def claims(token):
    return jwt.decode(token, SECRET, algorithms=["HS256"])


class TokenTests(LogMixin, TestCase):
    @classmethod
    def setUpTestData(cls):
        cls.ann = User.objects.create_user("ann", password="first")

    def test_five_minutes_for_who_is_signed_in(self):
        self.assertEqual(self.client.get("/gateway/token/").status_code, 401)
        self.client.force_login(self.ann)
        answer = self.client.get("/gateway/token/")
        self.assertEqual(answer.status_code, 200)
        found = claims(answer.json()["token"])
        self.assertEqual(found["sub"], "ann")
        self.assertEqual(found["exp"] - found["iat"], 300)
        self.assertAlmostEqual(found["iat"], time.time(), delta=5)
        self.assertNotIn("rooms", found)
        self.assertEqual(answer.json()["expires_in"], 300)
        self.assertIn("no-store", answer["Cache-Control"])
        self.assertIn("private", answer["Cache-Control"])
        self.assertIn("Cookie", answer["Vary"])

    def test_only_with_the_csrf_token_by_post(self):
        client = Client(enforce_csrf_checks=True)
        client.force_login(self.ann)
        self.assertEqual(client.get("/gateway/token/").status_code, 200)
        self.assertEqual(client.post("/gateway/token/").status_code, 403)
        self.assertEqual(client.put("/gateway/token/").status_code, 403)

    def test_deactivated_meanwhile(self):
        self.client.force_login(self.ann)
        User.objects.filter(pk=self.ann.pk).update(is_active=False)
        self.assertEqual(self.client.get("/gateway/token/").status_code, 401)

    @gateway(POLICY="tests.test_views.RoomsPolicy", JWT_AUDIENCE="chat", JWT_ISSUER="site", JWT_USER_ID_CLAIM="user_id")
    def test_rooms_audience_issuer_and_id(self):
        self.client.force_login(self.ann)
        token = self.client.get("/gateway/token/?room=open-1").json()["token"]
        found = jwt.decode(token, SECRET, algorithms=["HS256"], audience="chat", issuer="site")
        self.assertEqual(found["rooms"], ["of-ann", "all", "open-1"])
        self.assertEqual(found["user_id"], str(self.ann.pk))
        for room in ("secret", "a/b"):
            self.assertEqual(self.client.get("/gateway/token/", {"room": room}).status_code, 404)

    @gateway(POLICY="tests.test_views.TwoMethods")
    def test_a_policy_of_two_methods(self):
        self.assertEqual(self.client.get("/gateway/token/").status_code, 401)
        self.client.force_login(self.ann)
        token = self.client.get("/gateway/token/?room=open").json()["token"]
        self.assertEqual(claims(token)["rooms"], ["all", "open"])
        answer = self.client.get("/gateway/auth/", headers=ASK)
        self.assertEqual(answer.json(), {"user": {"id": str(self.ann.pk), "username": "ann"}, "rooms": ["all"]})

    @gateway(USER_NAME="id")
    def test_named_by_id(self):
        self.client.force_login(self.ann)
        self.assertEqual(claims(self.client.get("/gateway/token/").json()["token"])["sub"], str(self.ann.pk))

    def test_a_user_whose_name_cannot_be(self):
        odd = User.objects.create(username="a/b")
        self.client.force_login(odd)
        with self.assertLogs("channel_gateway", "ERROR"):
            self.assertEqual(self.client.get("/gateway/token/").status_code, 403)

    @gateway(JWT_SECRET=None)
    def test_without_a_secret(self):
        self.client.force_login(self.ann)
        with self.assertLogs("channel_gateway", "ERROR"):
            self.assertEqual(self.client.get("/gateway/token/").status_code, 503)
        with self.assertRaises(ImproperlyConfigured):
            make_token(self.ann)

    def test_what_is_read_of_tokens(self):
        self.assertEqual(read_token(make_token(self.ann))[0], self.ann)
        self.assertIsNone(read_token(make_token(self.ann, seconds=-1)))
        self.assertIsNone(read_token("x.y.z"))
        for wrong in (
            jwt.encode({"sub": "ann", "exp": time.time() + 60}, "another secret, as long as it ought to be", "HS256"),
            jwt.encode({"sub": "ann"}, SECRET, "HS256"),
            jwt.encode({"sub": "nobody", "exp": time.time() + 60}, SECRET, "HS256"),
            jwt.encode({"sub": "ann", "exp": time.time() + 60}, None, "none"),
        ):
            self.assertIsNone(read_token(wrong))
        old = make_token(self.ann)
        with gateway(JWT_SECRET=["a newer secret, 32 bytes of it at least", SECRET]):
            self.assertEqual(read_token(old)[0], self.ann)


class AuthTests(LogMixin, TestCase):
    @classmethod
    def setUpTestData(cls):
        cls.ann = User.objects.create_user("ann", password="first")

    def ask(self, client=None, status=200, headers=None, **more):
        given = {f"HTTP_{key.upper().replace('-', '_')}": value for key, value in {**ASK, **(headers or {})}.items()}
        answer = (client or self.client).get("/gateway/auth/", **given, **more)
        self.assertEqual(answer.status_code, status, answer.content)
        self.assertIn("no-store", answer["Cache-Control"])
        return answer.json()

    def test_who_is_signed_in_by_session(self):
        self.client.force_login(self.ann)
        user = {"id": str(self.ann.pk), "username": "ann"}
        self.assertEqual(self.ask(), {"user": user})

    def test_only_with_the_secret(self):
        self.client.force_login(self.ann)
        for wrong in ("", "x", ASK["X-Gateway-Secret"] + "x", "ü"):
            with self.subTest(wrong):
                self.ask(headers={"X-Gateway-Secret": wrong}, status=404)
        with gateway(AUTH_SECRET=None):
            self.ask(status=404)
        with gateway(AUTH_SECRET=["the next secret of both", ASK["X-Gateway-Secret"]]):
            self.ask()
        self.assertEqual(self.client.post("/gateway/auth/").status_code, 405)

    def test_nobody(self):
        self.assertEqual(self.ask(), {"user": None})
        # A cart is no sign-in, and no wrong one either.
        session = self.client.session
        session["cart"] = [1]
        session.save()
        self.assertEqual(self.ask(), {"user": None})

    def test_sign_ins_that_do_not_count(self):
        for engine in ("db", "cache", "cached_db", "signed_cookies"):
            with self.subTest(engine), override_settings(SESSION_ENGINE=f"django.contrib.sessions.backends.{engine}"):
                client = Client()
                client.cookies[settings.SESSION_COOKIE_NAME] = "forged0forged0forged0forged0forg"
                self.ask(client, status=401)
                client = Client()
                session = client.session
                session["cart"] = [1]
                session.save()
                client.cookies[settings.SESSION_COOKIE_NAME] = session.session_key
                self.assertEqual(self.ask(client), {"user": None})
        self.client.force_login(self.ann)
        self.client.session.flush()
        self.ask(status=401)
        for change in ({"password": "!"}, {"is_active": False}):
            with self.subTest(change):
                client = Client()
                user = User.objects.create_user(f"user{len(change)}{next(iter(change))}", password="x")
                client.force_login(user)
                self.ask(client)
                User.objects.filter(pk=user.pk).update(**change)
                self.ask(client, status=401)

    def test_bearer_tokens(self):
        token = make_token(self.ann, seconds=60)
        found = self.ask(headers={"Authorization": f"Bearer {token}"})
        self.assertEqual(found["user"]["username"], "ann")
        end = datetime.fromisoformat(found["expires_at"].replace("Z", "+00:00"))
        self.assertAlmostEqual(end.timestamp(), datetime.now(timezone.utc).timestamp() + 60, delta=5)
        self.ask(headers={"Authorization": "Bearer x.y.z"}, status=401)

    @gateway(POLICY="tests.test_views.RoomsPolicy")
    def test_the_policy_names_rooms(self):
        self.client.force_login(self.ann)
        self.assertEqual(self.ask()["rooms"], ["of-ann", "all"])
        for uri, extra in (
            ("/ws/chat/open-1/?x=1", ["open-1"]),
            ("/ws/chat/open-%C3%BC", ["open-ü"]),
            ("/ws/chat/secret/", []),
            ("/ws/chat/", []),
            ("/ws/notifications/", []),
            ("/ws/chat/open-a%2Fb/", []),
        ):
            self.assertEqual(self.ask(headers={"X-Original-URI": uri})["rooms"], ["of-ann", "all", *extra], uri)

    def test_a_user_whose_name_cannot_be(self):
        self.client.force_login(User.objects.create(username="a/b"))
        with self.assertLogs("channel_gateway", "ERROR"):
            self.ask(status=401)


class MiddlewareTests(TestCase):
    """A site that wants everybody signed in everywhere (Django 5.1) has answers of the views, not a page to sign in."""

    @skipIf(VERSION < (5, 1), "no such middleware")
    @override_settings(MIDDLEWARE=[*settings.MIDDLEWARE, "django.contrib.auth.middleware.LoginRequiredMiddleware"])
    def test_views_answer_for_themselves(self):
        self.assertEqual(self.client.get("/").status_code, 302)
        self.assertEqual(self.client.get("/gateway/token/").status_code, 401)
        secret = ASK["X-Gateway-Secret"]
        self.assertEqual(self.client.get("/gateway/auth/", HTTP_X_GATEWAY_SECRET=secret).json(), {"user": None})


class TagTests(TestCase):
    def render(self, text="{% gateway_client %}", **context):
        request = context.pop("request", None) or RequestFactory().get("/")
        return Template("{% load gateway %}" + text).render(Context({"request": request, **context}))

    def test_no_inline_script(self):
        html = self.render(csp_nonce="n0nce")
        self.assertInHTML(
            '<script type="module" src="/static/channel_gateway/page.js" crossorigin="anonymous" nonce="n0nce"'
            f' integrity="{self.digest("page.js")}" data-gateway-client="/static/channel_gateway/client.js"'
            ' data-gateway-url="/ws/chat/" data-gateway-token="/gateway/token/"></script>',
            html,
        )
        self.assertIn("modulepreload", html)
        self.assertIn(self.digest("client.js"), html)
        self.assertEqual(html.count('nonce="n0nce"'), 2)
        self.assertIn("></script>", html)
        self.assertNotIn("nonce", self.render())

    def digest(self, name):
        import base64
        import hashlib

        content = Path(finders.find(f"channel_gateway/{name}")).read_bytes()
        return "sha384-" + base64.b64encode(hashlib.sha384(content).digest()).decode()

    @skipIf(VERSION < (6, 0), "no policy of Django's own")
    def test_under_djangos_own_policy(self):
        from django.utils.csp import CSP

        policy = {"script-src": [CSP.NONCE]}
        middleware = ["django.middleware.csp.ContentSecurityPolicyMiddleware", *settings.MIDDLEWARE]
        with override_settings(MIDDLEWARE=middleware, SECURE_CSP=policy, ROOT_URLCONF="tests.csp_urls"):
            answer = self.client.get("/")
        nonce = answer["Content-Security-Policy"].partition("'nonce-")[2].partition("'")[0]
        self.assertTrue(nonce)
        self.assertContains(answer, f'nonce="{nonce}"', count=2)

    def test_what_it_is_told(self):
        html = self.render("{% gateway_client '/ws/chat/lobby/' token_url='' integrity=False nonce=n %}", n='a"b')
        self.assertIn('data-gateway-url="/ws/chat/lobby/"', html)
        self.assertNotIn("data-gateway-token", html)
        self.assertNotIn("integrity", html)
        self.assertIn("a&quot;b", html)
        self.assertIn("?room=a%20b", self.render("{% gateway_client room='a b' %}"))
        with gateway(SIGN_IN=["session"]):
            self.assertNotIn("data-gateway-token", self.render())
        request = RequestFactory().get("/")
        # Made when it is first read, and false until then.
        request.csp_nonce = Lazy(lambda: "of django-csp")
        self.assertIn('nonce="of django-csp"', self.render(request=request))

    @override_settings(ROOT_URLCONF="channel_gateway.testing")
    def test_without_the_views(self):
        import channel_gateway.testing as empty

        empty.urlpatterns = []
        self.addCleanup(delattr, empty, "urlpatterns")
        with self.assertRaises(TemplateSyntaxError):
            self.render()

    def test_with_hashed_names(self):
        import tempfile

        from django.core.management import call_command

        with tempfile.TemporaryDirectory() as root:
            storages = {
                **settings.STORAGES,
                "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"},
            }
            with override_settings(STATIC_ROOT=root, STORAGES=storages):
                call_command("collectstatic", "--noinput", verbosity=0)
                html = self.render()
                self.assertRegex(html, r'src="/static/channel_gateway/page\.[0-9a-f]{12}\.js"')
                self.assertRegex(html, r'data-gateway-client="/static/channel_gateway/client\.[0-9a-f]{12}\.js"')
                self.assertIn(self.digest("client.js"), html)

    def test_the_client_is_the_one_of_the_gateway(self):
        ours = Path(finders.find("channel_gateway/client.js")).read_bytes()
        self.assertEqual(ours, (Path(__file__).resolve().parents[2] / "js/client.js").read_bytes())


class SignalTests(LogMixin, GatewayTestMixin, TestCase):
    def setUp(self):
        super().setUp()
        self.ann = User.objects.create_user("ann", password="first")
        outbox.clear()

    def closed(self, do):
        with self.captureOnCommitCallbacks(execute=True):
            do()
        found = [(event.to, event.data["code"]) for event in outbox if event.type == "gateway.disconnect"]
        outbox.clear()
        return found

    def test_log_out(self):
        self.client.force_login(self.ann)
        self.assertEqual(self.closed(self.client.logout), [(["user:ann"], 4401)])
        self.assertEqual(self.closed(self.client.logout), [])
        self.assertFalse(AnonymousUser().is_authenticated)

    def test_password(self):
        def change(**options):
            self.ann.set_password("second")
            self.ann.save(**options)

        self.assertEqual(self.closed(change), [(["user:ann"], 4401)])
        self.assertEqual(self.closed(lambda: change(update_fields=["password"])), [(["user:ann"], 4401)])
        self.assertEqual(self.closed(self.ann.save), [])

    def test_a_log_in_costs_no_query_more(self):
        with self.assertNumQueries(1):
            self.ann.save(update_fields=["last_login"])

    def test_deactivated_and_deleted(self):
        self.ann.is_active = False
        self.assertEqual(self.closed(self.ann.save), [(["user:ann"], 4403)])
        self.assertEqual(self.closed(self.ann.save), [])
        self.assertEqual(self.closed(self.ann.delete), [(["user:ann"], 4403)])

    def test_renamed(self):
        def rename(name, **changed):
            for key, value in {"username": name, **changed}.items():
                setattr(self.ann, key, value)
            self.ann.save()

        self.assertEqual(self.closed(lambda: rename("anne")), [(["user:ann"], 4401)])
        # The sockets are those of the name before.
        self.assertEqual(self.closed(lambda: rename("anna", is_active=False)), [(["user:anne"], 4403)])
        self.assertEqual(self.closed(lambda: rename("ann", is_active=True)), [(["user:anna"], 4401)])
        with gateway(SIGNALS=["deactivated"], BACKEND="locmem"):
            self.assertEqual(self.closed(lambda: rename("anne")), [])
            self.assertEqual(self.closed(lambda: rename("anna", is_active=False)), [(["user:anne"], 4403)])

    def test_by_a_proxy(self):
        guest = Guest.objects.get(pk=self.ann.pk)
        guest.is_active = False
        self.assertEqual(self.closed(guest.save), [(["user:ann"], 4403)])
        self.assertEqual(self.closed(guest.delete), [(["user:ann"], 4403)])

    def test_switched_off(self):
        with gateway(SIGNALS=[], BACKEND="locmem"):
            self.ann.set_password("second")
            self.ann.is_active = False
            self.assertEqual(self.closed(self.ann.save), [])

    def test_a_gateway_that_is_away_keeps_nobody_from_saving(self):
        with gateway(BACKEND="redis", REDIS_URL="redis://127.0.0.1:1", WHEN="now"):
            self.ann.is_active = False
            with self.assertLogs("channel_gateway", "ERROR"):
                self.ann.save()
        self.ann.refresh_from_db()
        self.assertFalse(self.ann.is_active)


class OutboxOfTestsTests(GatewayTestMixin, TestCase):
    def test_events_are_shown_as_they_were_meant(self):
        from channel_gateway import notify, send

        with self.captureOnCommitCallbacks(execute=True):
            notify("ann", "paid", data={"order": 7})
            send("everyone", {"type": "news"})
        self.assertEqual([event.message for event in outbox], ["paid", None])
        self.assertEqual(outbox.to("user:ann")[0].data["data"], {"order": 7})
        self.assertEqual(outbox[-1].frame, {"type": "news"})
        self.assertIn("paid", repr(outbox))
        self.assertEqual(json.loads(outbox[0].fields["data"])["message"], "paid")
