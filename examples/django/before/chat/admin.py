from django.contrib import admin

from .models import Message, Notification, Room

admin.site.register([Message, Notification, Room])
