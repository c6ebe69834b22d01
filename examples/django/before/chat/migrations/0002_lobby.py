from django.db import migrations


def open_lobby(apps, schema_editor):
    room = apps.get_model("chat", "Room")
    for name, title in (("lobby", "Lobby"), ("garden", "Garden")):
        room.objects.create(name=name, title=title)


class Migration(migrations.Migration):
    dependencies = [("chat", "0001_initial")]
    operations = [migrations.RunPython(open_lobby, migrations.RunPython.noop)]
