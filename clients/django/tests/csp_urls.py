"""A page without a policy of its own."""

from django.http import HttpResponse
from django.template import engines
from django.urls import include, path


def page(request):
    return HttpResponse(engines["django"].from_string("{% load gateway %}{% gateway_client %}").render({}, request))


urlpatterns = [path("", page), path("gateway/", include("channel_gateway.urls"))]
