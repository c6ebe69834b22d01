"""A small site: users, rooms, chat."""

import json
import os

SECRET_KEY = "a key of the tests that is long enough"
DEBUG = False
ALLOWED_HOSTS = ["testserver", "localhost", "127.0.0.1", ".example.com"]
USE_TZ = True
ROOT_URLCONF = "tests.urls"
ASGI_APPLICATION = "tests.asgi.application"
STATIC_URL = "/static/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "channel_gateway",
    "tests.club",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
# tests/run.py says where the servers are.
REDIS_URL = os.environ.get("TEST_REDIS_URL", "redis://127.0.0.1:1")
if "TEST_POSTGRES" in os.environ:
    DATABASES = {"default": {"ENGINE": "django.db.backends.postgresql", **json.loads(os.environ["TEST_POSTGRES"])}}
else:
    DATABASES = {
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": os.environ.get("TEST_SQLITE", "test.sqlite3"),
            "OPTIONS": {"timeout": 20},
            # A file, so that other processes and threads see the same.
            "TEST": {"NAME": os.environ.get("TEST_SQLITE", "test.sqlite3")},
        }
    }
CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
        "CONFIG": {"hosts": [REDIS_URL], "prefix": os.environ.get("TEST_LAYER_PREFIX", "site")},
    }
}
GATEWAY = {
    "JWT_SECRET": "a secret of the tests with 32 bytes",
    "AUTH_SECRET": "what the gateway shows to Django",
    "API_KEY": "the key of the internal API",
    "NAMESPACE": os.environ.get("TEST_NAMESPACE", "site"),
    "BINARY": os.environ.get("TEST_GATEWAY"),
}
if "TEST_SIGN_IN" in os.environ:
    GATEWAY["SIGN_IN"] = os.environ["TEST_SIGN_IN"].split(",")
