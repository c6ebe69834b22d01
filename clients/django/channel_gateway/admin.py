"""The admin: nodes, a user's sockets and inbox, dead letters, all through the gateway's internal API."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.decorators import method_decorator
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from . import api, publishing
from .exceptions import ApiError, GatewayError
from .models import Gateway, Outbox
from .names import is_valid_name

if TYPE_CHECKING:
    _GatewayAdmin = admin.ModelAdmin[Gateway]
    _OutboxAdmin = admin.ModelAdmin[Outbox]
else:
    _GatewayAdmin = _OutboxAdmin = admin.ModelAdmin

VIEW = "channel_gateway.view_gateway"
OPERATE = "channel_gateway.operate_gateway"

#: Dead letters on a page; notifications of an inbox on a page.
PAGE = 50


class _MessageForm(forms.Form):
    message = forms.CharField(max_length=1000, strip=True)


@admin.register(Gateway)
class GatewayAdmin(_GatewayAdmin):
    """Pages of its own: there is no table."""

    def has_module_permission(self, request: HttpRequest) -> bool:
        """Who may look."""
        return self.has_view_permission(request)

    def has_view_permission(self, request: HttpRequest, obj: Gateway | None = None) -> bool:
        """Who may act may look."""
        user: Any = request.user
        return bool(user.is_active and user.is_staff and (user.has_perm(VIEW) or user.has_perm(OPERATE)))

    def has_operate_permission(self, request: HttpRequest) -> bool:
        """Disconnect, notify, retry, drop."""
        user: Any = request.user
        return bool(user.is_active and user.is_staff and user.has_perm(OPERATE))

    def has_add_permission(self, request: HttpRequest) -> bool:
        """There is nothing to add."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Gateway | None = None) -> bool:
        """There is no form."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Gateway | None = None) -> bool:
        """There is nothing to delete."""
        return False

    def get_urls(self) -> list[URLPattern]:
        """Instead of a list and forms."""

        def route(pattern: str, view: Callable[..., HttpResponse], name: str) -> URLPattern:
            return path(pattern, self.admin_site.admin_view(view), name=f"channel_gateway_{name}")

        return [
            route("", self.nodes_page, "gateway_changelist"),
            route("user/", self.user_page, "user"),
            route("user/disconnect/", partial(self._act, action=self._disconnect), "user_disconnect"),
            route("user/notify/", partial(self._act, action=self._notify), "user_notify"),
            route("dead/", self.dead_page, "dead"),
            route("dead/retry/", partial(self._act, action=self._retry), "dead_retry"),
            route("dead/drop/", partial(self._act, action=self._drop), "dead_drop"),
        ]

    def _page(self, request: HttpRequest, name: str, title: str, ask: Callable[[], dict[str, Any]]) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        found: dict[str, Any] = {}
        try:
            found = ask()
        except GatewayError as error:
            found["problem"] = str(error)
        context = {
            **self.admin_site.each_context(request),
            "title": title,
            "opts": self.model._meta,
            "can_operate": self.has_operate_permission(request),
            **found,
        }
        return TemplateResponse(request, f"admin/channel_gateway/{name}.html", context)

    @method_decorator(require_safe)
    def nodes_page(self, request: HttpRequest) -> HttpResponse:
        """The nodes."""

        def ask() -> dict[str, Any]:
            nodes = [
                each if isinstance(each, dict) else {"id": each} for each in api.call("GET", api.path("nodes"))["nodes"]
            ]
            waiting = Outbox._default_manager.count()
            return {"columns": _columns(nodes), "nodes": [_row(each, nodes) for each in nodes], "waiting": waiting}

        return self._page(request, "nodes", _("Nodes"), ask)

    @method_decorator(require_safe)
    def user_page(self, request: HttpRequest) -> HttpResponse:
        """The sockets and the inbox of one user."""
        name = request.GET.get("name", "")

        def ask() -> dict[str, Any]:
            if not is_valid_name(name):
                return {"name": name, "problem": _("There can be no user of that name.")}
            before = request.GET.get("before", "")
            query = {"limit": PAGE, "before": int(before) if before.isdecimal() else None}
            found = api.call("GET", api.path("users", name))
            inbox = api.call("GET", api.path("users", name, "notifications", **query))
            newest = list(reversed(inbox["notifications"]))
            return {"name": name, "sockets": found["sockets"], "inbox": inbox, "newest": newest, "form": _MessageForm()}

        return self._page(request, "user", name or _("User"), ask)

    @method_decorator(require_safe)
    def dead_page(self, request: HttpRequest) -> HttpResponse:
        """Dead letters, the newest first."""

        def ask() -> dict[str, Any]:
            try:
                page = api.call("GET", api.path("dead", limit=PAGE, before=request.GET.get("before") or None))
            except ApiError as error:
                if error.status != 404:
                    raise
                return {"dead": [], "problem": _("This node has no stream: its layer is in memory.")}
            return {"dead": page["dead"], "has_more": page["has_more"]}

        return self._page(request, "dead", _("Dead letters"), ask)

    # ---- actions: POST, with the admin's CSRF token ----

    @method_decorator(require_POST)
    def _act(self, request: HttpRequest, *, action: Callable[[HttpRequest], tuple[str, str]]) -> HttpResponse:
        if not self.has_operate_permission(request):
            raise PermissionDenied
        try:
            said, back = action(request)
            self._log(request, said)
            messages.success(request, said)
        except (GatewayError, forms.ValidationError) as error:
            messages.error(
                request, " ".join(error.messages) if isinstance(error, forms.ValidationError) else str(error)
            )
            back = self._back(request)
        return HttpResponseRedirect(back)

    def _log(self, request: HttpRequest, said: str) -> None:
        from .seldom import logger

        # An admin's log needs an object; here there is none.
        logger.info("admin: %s (by %s)", said, request.user.pk)

    def _back(self, request: HttpRequest) -> str:
        if request.POST.get("name"):
            return _user_url(request.POST["name"])
        return reverse("admin:channel_gateway_dead")

    def _disconnect(self, request: HttpRequest) -> tuple[str, str]:
        name = _name(request)
        body = {"type": "gateway.disconnect", "to": f"user:{name}", "data": {"code": 4403}, "source": "admin"}
        api.call("POST", api.path("events"), body)
        return _("All sockets of %(name)s are being closed.") % {"name": name}, _user_url(name)

    def _notify(self, request: HttpRequest) -> tuple[str, str]:
        name, form = _name(request), _MessageForm(request.POST)
        if not form.is_valid():
            raise forms.ValidationError(_("Write a message of up to 1,000 characters."))
        publishing.notify(name, form.cleaned_data["message"], from_user=request.user, when="now")
        return _("%(name)s is notified.") % {"name": name}, _user_url(name)

    def _retry(self, request: HttpRequest) -> tuple[str, str]:
        dead = request.POST.get("id", "")
        api.call("POST", api.path("dead", dead, "retry"))
        return _("%(dead)s is tried again.") % {"dead": dead}, reverse("admin:channel_gateway_dead")

    def _drop(self, request: HttpRequest) -> tuple[str, str]:
        dead = request.POST.get("id", "")
        api.call("DELETE", api.path("dead", dead))
        return _("%(dead)s is dropped.") % {"dead": dead}, reverse("admin:channel_gateway_dead")


def _name(request: HttpRequest) -> str:
    name = request.POST.get("name", "")
    if not is_valid_name(name):
        raise forms.ValidationError(_("There can be no user of that name."))
    return name


def _user_url(name: str) -> str:
    from urllib.parse import urlencode

    return f"{reverse('admin:channel_gateway_user')}?{urlencode({'name': name})}"


def _columns(nodes: list[dict[str, Any]]) -> list[str]:
    return [key.replace("_", " ") for key in (nodes[0] if nodes else {})]


def _row(node: dict[str, Any], nodes: list[dict[str, Any]]) -> list[Any]:
    return [node.get(key, "") for key in nodes[0]]


@admin.register(Outbox)
class OutboxAdmin(_OutboxAdmin):
    """What waits to be sent: to look at."""

    list_display = ("id", "created_at", "key")
    readonly_fields = ("fields", "key", "created_at")
    ordering = ("id",)

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Only the site adds to it."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Outbox | None = None) -> bool:
        """To look at."""
        return False
