"""The outbox, and what the admin needs a model for."""

from __future__ import annotations

from django.db import models


class Outbox(models.Model):
    """An event that waits to be sent; deleted once Redis has it."""

    fields = models.TextField(help_text="The fields of its stream entry, as JSON.")
    key = models.CharField(
        max_length=255, blank=True, default="", help_text="Entries with the same key are sent in their order."
    )
    created_at = models.DateTimeField()

    class Meta:
        """Read by age, and by key."""

        verbose_name = "waiting event"
        verbose_name_plural = "waiting events"
        indexes = [
            models.Index(fields=["created_at"], name="channel_gw_outbox_created"),
            models.Index(fields=["key", "id"], name="channel_gw_outbox_key"),
        ]

    def __str__(self) -> str:
        return f"event {self.pk}"


class Gateway(models.Model):
    """No table: gives the admin's pages about the gateway a place and permissions."""

    class Meta:
        """Two permissions: to look, and to act."""

        managed = False
        default_permissions = ()
        permissions = [
            ("view_gateway", "Can see nodes, sockets, inboxes and dead letters"),
            ("operate_gateway", "Can disconnect, notify, and retry or drop dead letters"),
        ]
        verbose_name = "gateway"
        verbose_name_plural = "gateway"

    def __str__(self) -> str:
        return "gateway"
