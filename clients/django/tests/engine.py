"""A session engine of a site's own."""

from django.contrib.sessions.backends.db import SessionStore as Base


class TenantSessionStore(Base):
    pass


SessionStore = TenantSessionStore
