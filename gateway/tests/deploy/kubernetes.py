"""Renders the overlays of deploy/kubernetes, holds each object against Kubernetes' schema, and prints all as JSON.

Knows of Kustomize what the files use: resources, components, JSON patches, images, namespace. Where `kubectl` is there it must render the
same.
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
    return {(one["kind"], one["metadata"]["name"]): one for one in objects}


def main():
    root = Path(sys.argv[1])
    rendered = {}
    directories = [root / "base", *sorted((root / "overlays").iterdir())]
    for directory in directories:
        objects = build(directory)
        for one in objects:
            if one["kind"] in FOREIGN:
                continue
            for version in VERSIONS:
                kubernetes_validate.validate(one, version, strict=True)
        if shutil.which("kubectl"):
            out = subprocess.run(["kubectl", "kustomize", directory], capture_output=True, text=True, check=True).stdout
            theirs = by_name(yaml.safe_load_all(out))
            assert theirs == by_name(objects), f"kubectl renders {directory} differently"
        rendered[directory.name] = objects
    # That the schemas are strict.
    try:
        misspelt = patched(rendered["base"][0], [{"op": "add", "path": "/spec/template/spec/terminationSeconds", "value": 1}])
        kubernetes_validate.validate(misspelt, VERSIONS[0], strict=True)
        sys.exit("a misspelt field was taken")
    except kubernetes_validate.ValidationError:
        pass
    # A component that no overlay uses is rendered too.
    with_ring = build(root / "components" / "io-uring", build(root / "base"))
    for version in VERSIONS:
        for one in with_ring:
            kubernetes_validate.validate(one, version, strict=True)
    rendered["io-uring"] = with_ring
    json.dump(rendered, sys.stdout)


main()
