"""``path("gateway/", include("channel_gateway.urls"))``."""

from __future__ import annotations

from django.urls import path

from . import views

app_name = "channel_gateway"

urlpatterns = [
    path("token/", views.token, name="token"),
    path("auth/", views.auth, name="auth"),
]
