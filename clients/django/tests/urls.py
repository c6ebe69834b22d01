"""The site's URLs."""

from django.contrib import admin
from django.http import HttpResponse
from django.template import engines
from django.urls import include, path


def page(request):
    text = "<!doctype html>{% load gateway %}{% gateway_client %}"
    html = engines["django"].from_string(text).render({"csp_nonce": "n0nce"}, request)
    # As strict as a policy can be: nothing runs but what has the nonce.
    policy = "default-src 'none'; script-src 'nonce-n0nce' 'strict-dynamic'; connect-src 'self' ws:; img-src 'self'"
    return HttpResponse(html, headers={"Content-Security-Policy": policy})


urlpatterns = [
    path("", page),
    path("admin/", admin.site.urls),
    path("gateway/", include("channel_gateway.urls")),
]
