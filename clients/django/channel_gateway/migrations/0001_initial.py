"""The outbox."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    """The outbox, and permissions for the admin."""

    initial = True
    dependencies = []
    operations = [
        migrations.CreateModel(
            name="Outbox",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("fields", models.TextField(help_text="The fields of its stream entry, as JSON.")),
                (
                    "key",
                    models.CharField(
                        blank=True,
                        default="",
                        help_text="Entries with the same key are sent in their order.",
                        max_length=255,
                    ),
                ),
                ("created_at", models.DateTimeField()),
            ],
            options={
                "verbose_name": "waiting event",
                "verbose_name_plural": "waiting events",
                "indexes": [
                    models.Index(fields=["created_at"], name="channel_gw_outbox_created"),
                    models.Index(fields=["key", "id"], name="channel_gw_outbox_key"),
                ],
            },
        ),
        migrations.CreateModel(
            name="Gateway",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
            ],
            options={
                "verbose_name": "gateway",
                "verbose_name_plural": "gateway",
                "managed": False,
                "default_permissions": (),
                "permissions": [
                    ("view_gateway", "Can see nodes, sockets, inboxes and dead letters"),
                    ("operate_gateway", "Can disconnect, notify, and retry or drop dead letters"),
                ],
            },
        ),
    ]
