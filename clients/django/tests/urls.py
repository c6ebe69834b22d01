"""The site's URLs."""

from django.contrib import admin
from django.http import HttpResponse
from django.template import engines
from django.urls import include, path


def page(request):
    text = "{% load gateway %}{% gateway_client %}"
    return HttpResponse(engines["django"].from_string(text).render({}, request))


urlpatterns = [
    path("", page),
    path("admin/", admin.site.urls),
    path("gateway/", include("channel_gateway.urls")),
]
