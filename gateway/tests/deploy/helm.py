"""Renders the chart of deploy/helm with several values, holds each object against Kubernetes' schema, compares with what the overlays of
deploy/kubernetes make where both say the same, and prints all as JSON.
"""

import json
import subprocess
import sys
from pathlib import Path

import yaml
from kubernetes import by_name, program, render, validate

# What Helm's objects have beside those of Kustomize: whose they are.
OWN_LABELS = {"app.kubernetes.io/instance", "app.kubernetes.io/version", "app.kubernetes.io/managed-by", "helm.sh/chart"}
# The chart says always what the overlays leave to the node.
ALWAYS_SAID = {"GATEWAY_DRAIN__DELAY_SECONDS", "GATEWAY_DRAIN__WINDOW_SECONDS"}

EVERYTHING = {
    "name": "sockets",
    "image": {"repository": "registry.example.com/gateway", "digest": "sha256:" + 64 * "0", "pullPolicy": "Always"},
    "imagePullSecrets": [{"name": "registry"}],
    "secret": {"name": "ours", "files": {"GATEWAY_REDIS_URL_FILE": None, "GATEWAY_DJANGO_SECRET_KEY_FILE": "key.txt"}},
    "settings": {"GATEWAY_OTLP_SAMPLE_RATIO": 0.05, "GATEWAY_LIMITS__OUTBOX_BYTES": 10485760, "GATEWAY_STRICT_ENV": True},
    "config": '[[bridge]]\npath = "/ws/{name}/"\nworkers = "unix:/run/site/worker-*.sock"\n',
    "drain": {"delaySeconds": 10, "windowSeconds": 60},
    "preStopSeconds": 8,
    "migrate": {"enabled": False},
    "autoscaling": {"enabled": False},
    "replicas": 4,
    "disruption": {"maxUnavailable": 0},
    "service": {"type": "LoadBalancer", "annotations": {"example.com/idle": "3600"}},
    "networkPolicy": {"enabled": False},
    "serviceMonitor": {"enabled": True, "interval": "30s", "labels": {"release": "prometheus"}},
    "podAnnotations": {"example.com/team": "chat"},
    "podLabels": {"team": "chat"},
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "chat", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "priorityClassName": "important",
    "extraVolumes": [{"name": "site", "hostPath": {"path": "/run/site"}}],
    "extraVolumeMounts": [{"name": "site", "mountPath": "/run/site"}],
}

# Values, and what is said to them.
REFUSED = [
    ({"setings": {}}, "setings"),
    ({"settings": {"GATEWAY_JWT_SECRET": "secret"}}, "GATEWAY_JWT_SECRET"),
    ({"settings": {"GATEWAY_LISTEN": "0.0.0.0:80"}}, "GATEWAY_LISTEN"),
    ({"settings": {"jwt_issuer": "site"}}, "jwt_issuer"),
    ({"drain": {"windowSeconds": "20s"}}, "windowSeconds"),
    ({"autoscaling": {"minReplicas": 11}}, "minReplicas is more than maxReplicas"),
]


def helm(arguments, values=None):
    command = [program("helm"), *arguments]
    if values is not None:
        command += ["--values", "-"]
    return subprocess.run(command, input=json.dumps(values), capture_output=True, text=True, check=False)


def template(chart, arguments, values=None, release="gateway"):
    out = helm(["template", release, chart, "--namespace", "gateway", *arguments], values)
    assert out.returncode == 0, out.stderr
    return [one for one in yaml.safe_load_all(out.stdout) if one]


def alike(objects, version=None):
    """Without what only one of the two says."""

    def cleaned(value):
        if isinstance(value, list):
            return [cleaned(item) for item in value]
        if not isinstance(value, dict):
            return value
        value = {key: cleaned(item) for key, item in value.items() if key not in OWN_LABELS | {"namespace"}}
        if "env" in value:
            value["env"] = sorted((one for one in value["env"] if one["name"] not in ALWAYS_SAID), key=lambda one: one["name"])
        if version and value.get("image") == "channel-gateway":
            value["image"] += f":{version}"
        return value

    return by_name(cleaned(objects))


def main():
    chart, root = Path(sys.argv[1]), Path(sys.argv[2])
    if not program("helm"):
        sys.exit("helm is missing: run ./test.sh")
    examples = sorted((chart / "examples").iterdir())
    cases = {path.stem: ["--values", str(path)] for path in examples}
    for arguments in [[], *cases.values()]:
        out = helm(["lint", "--strict", "--quiet", chart, *arguments])
        assert out.returncode == 0, out.stdout + out.stderr
    rendered = {"base": template(chart, [])}
    rendered |= {name: template(chart, arguments) for name, arguments in cases.items()}
    profile = {"type": "Localhost", "localhostProfile": "profiles/channel-gateway.json"}
    rendered["io-uring"] = template(chart, [], {"seccompProfile": profile})
    rendered["everything"] = template(chart, [], EVERYTHING, release="chat")
    for objects in rendered.values():
        validate(objects)

    version = yaml.safe_load((chart / "Chart.yaml").read_text())["appVersion"]
    for name, objects in render(root).items():
        theirs, ours = alike(objects, version), alike(rendered[name])
        differ = [key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key)]
        shown = "\n".join(f"{key}:\n{json.dumps(theirs.get(key))}\n{json.dumps(ours.get(key))}" for key in differ)
        assert not differ, f"{name}: what Kustomize makes, and what Helm makes: {shown}"
    for values, says in REFUSED:
        out = helm(["template", "gateway", chart], values)
        assert out.returncode != 0 and says in out.stderr, f"{values}: {out.stderr}"
    json.dump(rendered, sys.stdout)


main()
