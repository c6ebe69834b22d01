"""Compares recorded answers with the OpenAPI document: check.py DOCUMENT RECORDS; says what differs, exits with 1.

A record: {"method", "path" (the template), "sent" (a JSON body that was accepted, or null), "status",
"content_type", "headers" (names), "body"}.
"""

import json
import sys

from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

# What no test can bring about in reasonable time: a body that takes 30 s, a database that is broken but there.
NOT_SEEN = {"408", "500"}


def strict(schema):
    """The schema with every object closed: what is answered and not described is a mistake of the document."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    if schema.get("type") == "object" and isinstance(schema.get("properties"), dict):
        closed.setdefault("additionalProperties", False)
    return closed


def main():
    document = json.load(open(sys.argv[1]))
    records = json.load(open(sys.argv[2]))
    wrong = []
    seen = set()

    def resolve(part):
        while "$ref" in part:
            target = document
            for name in part["$ref"].removeprefix("#/").split("/"):
                target = target[name]
            part = target
        return part

    def check(what, schema, value, close):
        whole = {**document, "components": {**document["components"]}}
        if close:
            whole["components"]["schemas"] = strict(document["components"]["schemas"])
            schema = strict(schema)
        registry = Registry().with_resource("doc:", Resource.from_contents(whole, DRAFT202012))
        schema = json.loads(json.dumps(schema).replace('"#/', '"doc:#/'))
        validator = Draft202012Validator(schema, registry=registry, format_checker=Draft202012Validator.FORMAT_CHECKER)
        wrong.extend(f"{what}: {error.json_path}: {error.message[:300]}" for error in validator.iter_errors(value))

    for record in records:
        method, path, status = record["method"].lower(), record["path"], str(record["status"])
        what = f"{record['method']} {path} {status}"
        operation = document["paths"][path][method]
        if status not in operation["responses"]:
            wrong.append(f"{what} is not described: {record['body']}")
            continue
        seen.add((path, method, status))
        response = resolve(operation["responses"][status])
        kinds = response["content"]
        if record["content_type"] not in kinds:
            wrong.append(f"{what}: {record['content_type']} is none of {list(kinds)}")
            continue
        wrong.extend(
            f"{what}: no header {name}" for name in response.get("headers", {}) if name.lower() not in record["headers"]
        )
        check(what, kinds[record["content_type"]]["schema"], record["body"], close=True)
        if status == "200" and record["sent"] is not None and "requestBody" in operation:
            check(f"{what}, sent", operation["requestBody"]["content"]["application/json"]["schema"], record["sent"], close=False)

    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            for status, response in operation["responses"].items() if method != "parameters" else ():
                if (path, method, status) not in seen and status not in NOT_SEEN:
                    wrong.append(f"{method.upper()} {path} {status} was never answered")
                for kind in resolve(response).get("content", {}).values():
                    if "example" in kind:
                        check(f"{method.upper()} {path} {status}, example", kind["schema"], kind["example"], close=True)
    print("\n".join(wrong))
    sys.exit(1 if wrong else 0)


main()
