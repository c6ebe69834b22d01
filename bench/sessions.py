#!/usr/bin/env python3
"""Makes the tables of a Django site with many people who are logged in, for measuring.

bench/sessions.py COUNT DIRECTORY    writes site.sqlite3, site.sql (the same for PostgreSQL), cookies, and signed-cookies

Nothing but Python is needed: sessions are signed as Django signs them. Then:

  GATEWAY_DJANGO_SECRET_KEY=bench GATEWAY_DJANGO__DATABASE_URL=sqlite://DIRECTORY/site.sqlite3 \\
    bench/run.sh --only connect,idle,storm --cookies DIRECTORY/cookies
  GATEWAY_DJANGO_SECRET_KEY=bench GATEWAY_DJANGO__SESSION_ENGINE=signed_cookies … --cookies DIRECTORY/signed-cookies
"""

import base64
import hashlib
import hmac
import json
import sqlite3
import sys
import time
import zlib
from pathlib import Path

KEY = "bench"
BACKEND = "django.contrib.auth.backends.ModelBackend"
DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def text64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def sign(payload, salt, now):
    stamp = ""
    while now:
        now, digit = divmod(now, 62)
        stamp = DIGITS[digit] + stamp
    key = hashlib.sha256(f"{salt}signer{KEY}".encode()).digest()
    text = f"{payload}:{stamp}"
    return f"{text}:{text64(hmac.digest(key, text.encode(), 'sha256'))}"


def session(number, password):
    """What Django writes at a log-in, compressed as it does."""
    salt = "django.contrib.auth.models.AbstractBaseUser.get_session_auth_hash"
    key = hashlib.sha256(f"{salt}{KEY}".encode()).digest()
    found = hmac.new(key, password.encode(), "sha256").hexdigest()
    fields = {"_auth_user_id": str(number), "_auth_user_backend": BACKEND, "_auth_user_hash": found}
    plain = json.dumps(fields, separators=(",", ":")).encode()
    packed = zlib.compress(plain)
    return "." + text64(packed) if len(packed) < len(plain) - 1 else text64(plain)


def main():
    count, directory, now = int(sys.argv[1]), Path(sys.argv[2]), int(time.time())
    directory.mkdir(exist_ok=True)
    ends = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(now + 14 * 86400))
    people, sessions, cookies, signed = [], [], [], []
    for number in range(1, count + 1):
        password = f"pbkdf2_sha256$600000${number:022}$" + text64(hashlib.sha256(str(number).encode()).digest()) + "="
        payload, key = session(number, password), hashlib.sha256(f"session-{number}".encode()).hexdigest()[:32]
        people.append((number, password, f"person-{number}", 1))
        sessions.append((key, sign(payload, "django.contrib.sessions.SessionStore", now), ends))
        cookies.append(f"sessionid={key}\n")
        signed.append("sessionid=" + sign(payload, "django.contrib.sessions.backends.signed_cookies", now) + "\n")
    (directory / "cookies").write_text("".join(cookies))
    (directory / "signed-cookies").write_text("".join(signed))
    tables = (
        "CREATE TABLE auth_user (id integer PRIMARY KEY, password varchar(128), username varchar(150), is_active {0})",
        "CREATE TABLE django_session (session_key varchar(40) PRIMARY KEY, session_data text, expire_date {1})",
    )
    (directory / "site.sqlite3").unlink(missing_ok=True)
    with sqlite3.connect(directory / "site.sqlite3") as database:
        for table in tables:
            database.execute(table.format("bool", "datetime"))
        database.executemany("INSERT INTO auth_user VALUES (?, ?, ?, ?)", people)
        database.executemany("INSERT INTO django_session VALUES (?, ?, ?)", sessions)
    with open(directory / "site.sql", "w") as out:
        for table in tables:
            print(table.format("boolean", "timestamptz") + ";", file=out)
        for number, password, name, _ in people:
            print(f"INSERT INTO auth_user VALUES ({number}, '{password}', '{name}', true);", file=out)
        for key, data, _ in sessions:
            print(f"INSERT INTO django_session VALUES ('{key}', '{data}', '{ends}+00');", file=out)


if __name__ == "__main__":
    main()
