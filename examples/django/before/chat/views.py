import secrets

from django.contrib.auth import login
from django.contrib.auth.decorators import login_required
from django.contrib.auth.forms import UserCreationForm
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.text import slugify
from django.views.decorators.http import require_POST

from .models import Room, tell


@login_required
def chat(request):
    mine = request.user.rooms.order_by("pk")
    rooms = [{"name": room.name, "title": room.title} for room in mine]
    others = Room.objects.exclude(members=request.user).order_by("title")
    return render(request, "chat/chat.html", {"rooms": rooms, "others": others})


def sign_up(request):
    form = UserCreationForm(request.POST or None)
    if not form.is_valid():
        return render(request, "registration/signup.html", {"form": form})
    user = form.save()
    Room.objects.get(name="lobby").members.add(user)
    login(request, user)
    return redirect("chat")


@login_required
@require_POST
def open_room(request):
    title = request.POST.get("title", "").strip()[:100]
    if not title:
        return redirect("chat")
    name = f"{slugify(title)[:40] or 'room'}-{secrets.token_hex(2)}"
    room = Room.objects.create(name=name, title=title, owner=request.user)
    room.members.add(request.user)
    return redirect(f"{reverse('chat')}#{name}")


@login_required
@require_POST
def join(request, name):
    room = get_object_or_404(Room, name=name)
    room.members.add(request.user)
    if room.owner and room.owner != request.user:
        tell(room.owner, f"{request.user} has come to {room}")
    return redirect(f"{reverse('chat')}#{name}")
