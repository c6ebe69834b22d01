"""The app."""

from __future__ import annotations

from django.apps import AppConfig


class ChannelGatewayConfig(AppConfig):
    """``"channel_gateway"`` in ``INSTALLED_APPS``."""

    name = "channel_gateway"
    verbose_name = "Channel Gateway"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Registers the checks, and listens to log-outs, users and memberships."""
        from . import checks, receivers

        checks.register()
        receivers.connect()
