"""Renders the overlays of deploy/kubernetes, holds each object against Kubernetes' schema, and prints all as JSON.

Knows of Kustomize what the files use: resources, components, JSON patches, images, namespace. Where `kubectl` is there it must render the
same. A copy beside this Python goes before one on the path.
"""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import yaml

VERSIONS = ["1.28", "1.31", "1.34"]
# Of the Prometheus operator: no schema of Kubernetes'.
FOREIGN = {"ServiceMonitor"}
NAMESPACED = {
    "Deployment",
    "Service",
    "PodDisruptionBudget",
    "HorizontalPodAutoscaler",
    "NetworkPolicy",
    "ServiceMonitor",
}


def read(path):
    # By way of JSON, as an alias of YAML's would be one object in two places.
    return json.loads(json.dumps(list(yaml.safe_load_all(path.read_text()))))


def patched(document, operations):
    document = copy.deepcopy(document)
    for operation in operations:
        *path, last = operation["path"].strip("/").split("/")
        place = document
        for part in path:
            place = place[int(part)] if isinstance(place, list) else place[part]
        if isinstance(place, list):
            assert (operation["op"], last) == ("add", "-"), operation
            place.append(operation["value"])
        else:
            assert operation["op"] == "add" or last in place, operation
            place[last] = operation["value"]
    return document


def build(directory, objects=None):
    settings = yaml.safe_load((directory / "kustomization.yaml").read_text())
    known = {"apiVersion", "kind", "resources", "components", "patches", "images", "namespace"}
    assert settings.keys() <= known, settings.keys() - known
    objects = list(objects or [])
    for resource in settings.get("resources", []):
        path = directory / resource
        objects += build(path) if path.is_dir() else read(path)
    for component in settings.get("components", []):
        objects = build(directory / component, objects)
    for patch in settings.get("patches", []):
        target = (patch["target"]["kind"], patch["target"]["name"])
        found = [number for number, one in enumerate(objects) if (one["kind"], one["metadata"]["name"]) == target]
        assert len(found) == 1, target
        objects[found[0]] = patched(objects[found[0]], yaml.safe_load(patch["patch"]))
    for one in objects:
        if "namespace" in settings and one["kind"] in NAMESPACED:
            one["metadata"]["namespace"] = settings["namespace"]
        pod = one.get("spec", {}).get("template", {}).get("spec", {})
        for container in pod.get("initContainers", []) + pod.get("containers", []):
            for image in settings.get("images", []):
                if container["image"] == image["name"]:
                    container["image"] = f"{image['newName']}:{image['newTag']}"
    return objects


def by_name(objects):
    found = {(one["kind"], one["metadata"]["name"]): one for one in objects}
    assert len(found) == len(objects), "two have one name"
    return found


def validate(objects):
    for one in objects:
        if one["kind"] not in FOREIGN:
            for version in VERSIONS:
                kubernetes_validate.validate(one, version, strict=True)


def program(name):
    """Where it is; none, if it is not here."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name)


def render(root):
    rendered = {directory.name: build(directory) for directory in [root / "base", *sorted((root / "overlays").iterdir())]}
    # A component that no overlay uses is rendered too.
    rendered["io-uring"] = build(root / "components" / "io-uring", build(root / "base"))
    return rendered


def main():
    root = Path(sys.argv[1])
    rendered = render(root)
    kubectl = program("kubectl")
    for name, objects in rendered.items():
        validate(objects)
        directory = root / "base" if name == "base" else root / "overlays" / name
        if kubectl and directory.exists():
            out = subprocess.run([kubectl, "kustomize", directory], capture_output=True, text=True, check=True).stdout
            theirs = by_name(list(yaml.safe_load_all(out)))
            assert theirs == by_name(objects), f"kubectl renders {directory} differently"
    # That the schemas are strict.
    try:
        misspelt = patched(rendered["base"][0], [{"op": "add", "path": "/spec/template/spec/terminationSeconds", "value": 1}])
        kubernetes_validate.validate(misspelt, VERSIONS[0], strict=True)
        sys.exit("a misspelt field was taken")
    except kubernetes_validate.ValidationError:
        pass
    json.dump(rendered, sys.stdout)


if __name__ == "__main__":
    main()
