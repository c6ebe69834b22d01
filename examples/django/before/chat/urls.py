from django.urls import path

from . import views

urlpatterns = [
    path("", views.chat, name="chat"),
    path("signup/", views.sign_up, name="signup"),
    path("rooms/", views.open_room, name="open_room"),
    path("rooms/<str:name>/join/", views.join, name="join"),
]
