"""A site without the views."""

urlpatterns = []
