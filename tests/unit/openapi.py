# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The contract of a REST API: its official document, and a hypervisor that holds every request to it.

The documents allow fields that they do not name; here such a field is an error, or a misspelled one would pass.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import http.server
import json
import socketserver
import threading
import typing as t
from pathlib import Path

import jsonschema
import yaml

FOLDER = Path(__file__).parents[1] / "contract"

CLOUD_HYPERVISOR = "cloud-hypervisor-v53.0-openapi"
FIRECRACKER = "firecracker-v1.16.1-swagger"

Fields = t.Mapping[str, t.Mapping[str, t.Any]]


class Contract:
    """One document.

    :param extra: by the name of a schema, fields that the program takes and its document lacks, each with its schema.
    """

    def __init__(self, name: str, extra: Fields | None = None) -> None:
        self.document: dict[str, t.Any] = copy.deepcopy(_read(name))
        # OpenAPI 3 has its schemas there, Swagger 2 has them at the top.
        self._schemas: dict[str, t.Any] = (
            self.document.get("components", {}).get("schemas") or self.document["definitions"]
        )
        for schema, fields in (extra or {}).items():
            self._schemas[schema]["properties"].update(copy.deepcopy(dict(fields)))
        _close(self.document)

    def problems(self, method: str, target: str, body: t.Any) -> list[str]:
        """What a request does that the document does not allow; nothing for a good one."""
        operation = self._operation(method, target)
        if operation is None:
            return [f"there is no {method} {target}"]
        schema, required = self._body(operation)
        if body is None:
            return [f"{method} {target} has no body"] if required else []
        if schema is None:
            return [f"{method} {target} takes no body"]
        return self._errors(schema, body, f"{method} {target}")

    def problems_of(self, schema: str, value: t.Any) -> list[str]:
        """What is wrong with a value of the schema of that name, such as a file of the hypervisor's."""
        where = "components/schemas" if "components" in self.document else "definitions"
        return self._errors({"$ref": f"#/{where}/{schema}"}, value, schema)

    def fields(self, schema: str) -> set[str]:
        """Names of the fields of a schema."""
        return set(self._schemas[schema]["properties"])

    def _errors(self, schema: t.Any, value: t.Any, what: str) -> list[str]:
        roots = {key: self.document[key] for key in ("components", "definitions") if key in self.document}
        # All beside a reference is ignored by Draft 7, but is there to be referred to.
        validator = jsonschema.Draft7Validator({**roots, "allOf": [schema]})
        errors = sorted(validator.iter_errors(value), key=lambda error: list(map(str, error.absolute_path)))
        return [f"{what} {'.'.join(map(str, error.absolute_path)) or '(all)'}: {error.message}" for error in errors]

    def _operation(self, method: str, target: str) -> t.Any:
        parts = target.split("/")
        for path, operations in self.document["paths"].items():
            pattern = path.split("/")
            if len(pattern) == len(parts) and all(
                have == want or (want.startswith("{") and have) for have, want in zip(parts, pattern)
            ):
                return operations.get(method.lower())
        return None

    @staticmethod
    def _body(operation: t.Any) -> tuple[t.Any, bool]:
        if "requestBody" in operation:
            body = operation["requestBody"]
            return body["content"]["application/json"]["schema"], body.get("required", False)
        for parameter in operation.get("parameters", []):
            if parameter.get("in") == "body":
                return parameter["schema"], parameter.get("required", False)
        return None, False


@functools.cache
def _read(name: str) -> t.Any:
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _close(node: t.Any) -> None:
    """Allow no field that a schema does not name."""
    if isinstance(node, list):
        for item in node:
            _close(item)
    elif isinstance(node, dict):
        if isinstance(node.get("properties"), dict) and node.get("type", "object") == "object":
            node.setdefault("additionalProperties", False)
        for value in node.values():
            _close(value)


class Request(t.NamedTuple):
    """One that came in."""

    method: str
    target: str
    body: t.Any


# Status and body of an answer: text is sent as it is, everything else as JSON, None as nothing.
Reply = tuple[int, t.Any]
Answers = t.Mapping[tuple[str, str], t.Union[Reply, t.Callable[[t.Any], Reply]]]


class Api:
    """A hypervisor's API at a unix socket, for a test: it notes every request and what is wrong with it.

    :param answers: of some calls (method and target); all others are answered by 204.
    """

    def __init__(self, path: Path, contract: Contract, base: str = "", answers: Answers | None = None) -> None:
        self.contract = contract
        self.base = base
        self.answers = dict(answers or {})
        self.requests: list[Request] = []
        self.problems: list[str] = []
        self._server = _Server(str(path), self)

    def targets(self) -> list[str]:
        """The calls so far, such as ``PUT /vm.pause``."""
        return [f"{request.method} {request.target}" for request in self.requests]

    def answer(self, method: str, target: str, content: bytes) -> Reply:
        """Note one request and answer it."""
        target = target[len(self.base) :] if target.startswith(self.base) else target
        body = json.loads(content) if content else None
        self.requests.append(Request(method, target, body))
        self.problems += self.contract.problems(method, target, body)
        reply = self.answers.get((method, target), (204, None))
        return reply(body) if callable(reply) else reply

    def __enter__(self) -> Api:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, kind: object, *_rest: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        if kind is None:
            assert not self.problems, "\n".join(self.problems)


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, path: str, api: Api) -> None:
        self.api = api
        super().__init__(path, _Handler)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def _serve(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, body = self.server.api.answer(self.command, self.path, content)
        reply = b"" if body is None else body.encode() if isinstance(body, str) else json.dumps(body).encode()
        with contextlib.suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

    do_GET = do_PUT = do_PATCH = do_DELETE = _serve

    def address_string(self) -> str:
        return "local"

    def log_message(self, format: str, *args: t.Any) -> None:  # pylint: disable=redefined-builtin
        """Say nothing."""
