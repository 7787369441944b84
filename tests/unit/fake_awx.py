# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A stand-in for the API of AWX on loopback, for the modules of awx.awx, written after AWX's source, without an AWX.

It keeps what is posted and patched, hides secrets as AWX does, and refuses what AWX refuses: an unknown name, a
playbook that the project has not, a survey of the wrong form, an answer that no survey asks for, two credentials of
one type.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

USER, PASSWORD, TOKEN = "admin", "not-a-secret-of-anybody", "t0ken-of-the-fake"
ENCRYPTED = "$encrypted$"

#: {kind of object: what AWX has for a field that was not given}. A field that is not here is unknown to AWX.
FIELDS: dict[str, dict[str, Any]] = {
    "organizations": {"description": ""},
    "execution_environments": {
        "description": "", "organization": None, "image": "", "credential": None, "pull": ""
    },
    "projects": {
        "description": "", "organization": None, "scm_type": "", "scm_url": "", "scm_branch": "", "credential": None,
        "default_environment": None, "scm_update_on_launch": False, "scm_revision": "",
    },
    "inventories": {"description": "", "organization": None, "kind": "", "host_filter": None, "variables": ""},
    "inventory_sources": {
        "description": "", "inventory": None, "organization": None, "source": "", "source_project": None,
        "source_path": "", "overwrite": False, "overwrite_vars": False, "update_on_launch": False, "credential": None,
    },
    "credential_types": {"description": "", "kind": "", "inputs": {}, "injectors": {}, "managed": False},
    "credentials": {"description": "", "organization": None, "credential_type": None, "inputs": {}},
    "instance_groups": {},
    "job_templates": {
        "description": "", "organization": None, "job_type": "run", "inventory": None, "project": None, "playbook": "",
        "execution_environment": None, "forks": 0, "limit": "", "extra_vars": "---", "job_slice_count": 1,
        "ask_limit_on_launch": False, "ask_job_type_on_launch": False, "ask_diff_mode_on_launch": False,
        "ask_variables_on_launch": False, "survey_enabled": False,
    },
    "workflow_job_templates": {
        "description": "", "organization": None, "inventory": None, "limit": None, "extra_vars": "---",
        "survey_enabled": False,
    },
    "workflow_job_template_nodes": {
        "workflow_job_template": None, "unified_job_template": None, "identifier": "", "limit": None, "extra_data": {},
    },
    "workflow_approval_templates": {"description": "", "timeout": 0},
}  # fmt: skip
ASSOCIATIONS = {
    "job_templates": ("credentials", "instance_groups"),
    "workflow_job_template_nodes": ("success_nodes", "always_nodes", "failure_nodes", "credentials"),
}
#: Where two of the same name cannot be, besides in one organization.
UNIQUE = {
    "workflow_job_template_nodes": ("workflow_job_template", "identifier"),
    "inventory_sources": ("inventory", "name"),
    "credentials": ("organization", "name", "credential_type"),
}
REFERENCES = {
    "organization": "organizations", "credential_type": "credential_types", "inventory": "inventories",
    "project": "projects", "source_project": "projects", "execution_environment": "execution_environments",
    "default_environment": "execution_environments", "credential": "credentials",
    "workflow_job_template": "workflow_job_templates",
}  # fmt: skip
SURVEY_TYPES = {
    "text": str, "textarea": str, "password": str, "multiplechoice": str, "multiselect": str, "integer": int,
    "float": float,
}  # fmt: skip


class Refusal(Exception):
    """What AWX answers with 400."""


class FakeAwx:
    """The state, and the server. `objects[kind][id]` is what was given; `writes` is each change by method and path."""

    def __init__(self, playbooks: list[str]) -> None:
        self.playbooks = playbooks
        self.objects: dict[str, dict[int, dict[str, Any]]] = {kind: {} for kind in FIELDS}
        self.surveys: dict[int, dict[str, Any]] = {}
        self.associated: dict[tuple[str, int, str], list[int]] = {}
        self.writes: list[tuple[str, str]] = []
        self.requests = 0
        self._last = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.create("organizations", {"name": "Default"})

    def __enter__(self) -> FakeAwx:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    # --- for tests ----------------------------------------------------------------------------------------------------

    def named(self, kind: str) -> dict[str, dict[str, Any]]:
        """{name: object} of one kind, the secrets among them."""
        return {item.get("name") or item["identifier"]: item for item in self.objects[kind].values()}

    def names(self, kind: str, number: int, association: str) -> list[str]:
        """The names of what is associated with an object."""
        other = association if association in FIELDS else "workflow_job_template_nodes"
        found = [self.objects[other][one] for one in self.associated.get((kind, number, association), [])]
        return [item.get("name") or item["identifier"] for item in found]

    # --- what a request does ------------------------------------------------------------------------------------------

    def create(self, kind: str, given: dict[str, Any]) -> dict[str, Any]:
        item = {"name": "", **json.loads(json.dumps(FIELDS[kind]))}
        self._last += 1
        item["id"] = self._last
        self._fill(kind, item, given)
        keys = UNIQUE.get(kind, ("organization", "name"))
        for other in self.objects[kind].values():
            if all(other.get(key) == item.get(key) for key in keys):
                raise Refusal(f"{kind} with this {' and '.join(keys)} already exists")
        self.objects[kind][self._last] = item
        return item

    def _fill(self, kind: str, item: dict[str, Any], given: dict[str, Any]) -> None:
        for name, value in given.items():
            if name in ("id", "type", "url"):  # read-only, and ignored
                continue
            if name != "name" and name not in FIELDS[kind]:
                raise Refusal(f"{kind} has no field {name}")
            if name in REFERENCES and value is not None and value not in self.objects[REFERENCES[name]]:
                raise Refusal(f"{name}: there is no {REFERENCES[name]} {value}")
            item[name] = value
        check = getattr(self, f"_check_{kind}", None)
        if check:
            check(item)

    def _check_job_templates(self, item: dict[str, Any]) -> None:
        if item["playbook"] not in self.playbooks:
            raise Refusal(f"playbook: {item['playbook']!r} is not found for the project")
        if not isinstance(json.loads(item["extra_vars"]), dict):
            raise Refusal("extra_vars: no mapping")

    def _check_credential_types(self, item: dict[str, Any]) -> None:
        fields = {field["id"]: field for field in item["inputs"].get("fields", [])}
        if any(set(field) - {"id", "label", "type", "secret", "multiline", "help_text"} for field in fields.values()):
            raise Refusal("inputs: unknown property")
        if not set(item["inputs"].get("required", [])) <= set(fields):
            raise Refusal("inputs: requires a field that there is none of")
        known = {*fields, "tower"} if item["injectors"].get("file") else set(fields)
        for place, template in _templates(item["injectors"]):
            used = set(re.findall(r"{{ *(\w+)", template))
            if not used or not used <= known:
                raise Refusal(f"injectors: {place} uses {sorted(used)}, and there are {sorted(known)}")

    def _check_credentials(self, item: dict[str, Any]) -> None:
        kind = self.objects["credential_types"][item["credential_type"]]
        unknown = set(item["inputs"]) - {field["id"] for field in kind["inputs"]["fields"]}
        if unknown:
            raise Refusal(f"inputs: {sorted(unknown)} are no fields of {kind['name']}")

    def _check_workflow_job_template_nodes(self, item: dict[str, Any]) -> None:
        template = self.objects["job_templates"].get(item["unified_job_template"])
        if template is None:
            return
        if item["limit"] and not template["ask_limit_on_launch"]:
            raise Refusal("limit: the job template does not ask for it on launch")
        asked = {question["variable"] for question in self.surveys.get(template["id"], {}).get("spec", [])}
        if not set(item["extra_data"]) <= asked:
            raise Refusal(f"extra_data: {sorted(set(item['extra_data']) - asked)} are not allowed on launch")

    def shown(self, kind: str, item: dict[str, Any]) -> dict[str, Any]:
        """An object as AWX shows it: with links, and without secrets."""
        url = f"/api/v2/{kind}/{item['id']}/"
        shown = {**item, "url": url, "type": kind.removesuffix("ies") + "y" if kind == "inventories" else kind[:-1]}
        shown["related"] = {name: f"{url}{name}/" for name in ASSOCIATIONS.get(kind, ())}
        shown["summary_fields"] = {}
        if kind == "job_templates":
            shown["related"]["survey_spec"] = f"{url}survey_spec/"
        if kind == "projects":
            shown["summary_fields"] = {"current_update": {"id": item["id"]}}
        if kind == "workflow_job_template_nodes" and item["unified_job_template"]:
            other = "job_templates"
            if item["unified_job_template"] in self.objects["workflow_approval_templates"]:
                other = "workflow_approval_templates"
            shown["related"]["unified_job_template"] = f"/api/v2/{other}/{item['unified_job_template']}/"
        if kind == "credentials":
            fields = self.objects["credential_types"][item["credential_type"]]["inputs"]["fields"]
            secrets = {field["id"] for field in fields if field.get("secret")}
            shown["inputs"] = {key: ENCRYPTED if key in secrets else value for key, value in item["inputs"].items()}
        return shown

    def find(self, kind: str, query: dict[str, str]) -> dict[str, Any]:
        """A list view with its filters."""
        kinds = [kind]
        if kind == "unified_job_templates":
            kinds = ["job_templates", "projects", "workflow_job_templates", "workflow_approval_templates"]
        every = [self.shown(one, item) for one in kinds for item in self.objects[one].values()]
        for name in query:
            if not any(name in item for item in every) and every:
                raise Refusal(f"{kind} has no field {name} to filter by")
        found = [item for item in every if all(str(item.get(name)) == value for name, value in query.items())]
        return {"count": len(found), "next": None, "previous": None, "results": found}

    def set_survey(self, number: int, given: dict[str, Any]) -> None:
        """Keep a survey, if its form is what AWX wants (JobTemplateSurveySpec)."""
        if {name: type(value) for name, value in given.items()} != {"name": str, "description": str, "spec": list}:
            raise Refusal("the survey needs name, description and spec")
        if not given["spec"]:
            raise Refusal("'spec' doesn't contain any items.")
        seen = set()
        for question in given["spec"]:
            for name, wanted in {"type": str, "question_name": str, "variable": str, "required": bool}.items():
                if not isinstance(question.get(name), wanted):
                    raise Refusal(f"{name} in survey question {question} expected to be {wanted.__name__}")
            if question["variable"] in seen or question["type"] not in SURVEY_TYPES:
                raise Refusal(f"{question['variable']} is there twice, or of no type of AWX")
            seen.add(question["variable"])
            if "default" in question and not isinstance(question["default"], SURVEY_TYPES[question["type"]]):
                raise Refusal(f"default of {question['variable']} is not of type {question['type']}")
            for name in ("min", "max"):
                if not isinstance(question.get(name), int | None):
                    raise Refusal(f"the {name} limit of {question['variable']} expected to be integer")
            if question["type"] in ("multiplechoice", "multiselect"):
                lines = question["choices"].splitlines()
                chosen = question.get("default", "").splitlines()
                if not set(chosen) <= set(lines) or (question["type"] == "multiplechoice" and len(chosen) > 1):
                    raise Refusal(f"the default of {question['variable']} is not one of the choices")
        self.surveys[number] = given

    def associate(self, kind: str, number: int, association: str, given: dict[str, Any]) -> None:
        """Tie two objects together, or loose."""
        tied = self.associated.setdefault((kind, number, association), [])
        other = association if association in FIELDS else "workflow_job_template_nodes"
        if given["id"] not in self.objects[other]:
            raise Refusal(f"there is no {other} {given['id']}")
        if given.get("disassociate"):
            tied.remove(given["id"])
            return
        if association == "credentials":
            types = [self.objects["credentials"][one]["credential_type"] for one in [*tied, given["id"]]]
            if len(types) != len(set(types)):
                raise Refusal("Cannot assign multiple credentials of one type.")
        tied.append(given["id"])

    def approve(self, number: int, given: dict[str, Any]) -> dict[str, Any]:
        """Make a node one that waits for an approval."""
        template = self.create("workflow_approval_templates", given)
        self.objects["workflow_job_template_nodes"][number]["unified_job_template"] = template["id"]
        return template

    # --- routes -------------------------------------------------------------------------------------------------------

    def answer(self, method: str, path: str, query: dict[str, str], given: dict[str, Any]) -> tuple[int, Any]:
        """Status and JSON for a request."""
        with self._lock:
            self.requests += 1
            if method != "GET" and "/tokens/" not in path:
                self.writes.append((method, path))
            parts = path.removeprefix("/api/v2/").strip("/").split("/")
            kind, number = parts[0], int(parts[1]) if len(parts) > 1 else 0
            if kind == "tokens":
                return (201, {"id": 1, "token": TOKEN}) if method == "POST" else (204, None)
            if kind == "project_updates":
                return 200, {"status": "successful", "failed": False}
            if len(parts) == 1:
                if method == "GET":
                    return 200, self.find(kind, query)
                return 201, self.shown(kind, self.create(kind, given))
            item = self.objects[kind][number]
            if len(parts) == 2:
                if method == "PATCH":
                    changed = json.loads(json.dumps(item))
                    self._fill(kind, changed, given)
                    self.objects[kind][number] = item = changed
                return 200, self.shown(kind, item)
            if parts[2] == "survey_spec":
                if method == "POST":
                    self.set_survey(number, given)
                return 200, self.surveys.get(number, {})
            if parts[2] == "create_approval_template":
                return 201, self.shown("workflow_approval_templates", self.approve(number, given))
            if parts[2] not in ASSOCIATIONS[kind]:
                raise KeyError(path)
            if method == "POST":
                self.associate(kind, number, parts[2], given)
                return 204, None
            tied = self.associated.get((kind, number, parts[2]), [])
            return 200, {"count": len(tied), "next": None, "results": [{"id": one} for one in tied]}


def _templates(injectors: dict[str, Any]) -> list[tuple[str, str]]:
    """(where, template) of all injectors."""
    return [(f"{group}.{name}", template) for group, every in injectors.items() for name, template in every.items()]


def _handler(awx: FakeAwx) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """Speaks HTTP for the fake."""

        protocol_version = "HTTP/1.1"

        def log_message(self, *_arguments: object) -> None:
            pass

        def _serve(self) -> None:
            url = urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            basic = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            if self.headers.get("Authorization") not in (f"Bearer {TOKEN}", basic):
                self._send(401, {"detail": "Authentication credentials were not provided."})
                return
            try:
                status, answer = awx.answer(
                    self.command, url.path, dict(parse_qsl(url.query)), json.loads(body) if body else {}
                )
            except Refusal as refusal:
                status, answer = 400, {"__all__": [str(refusal)], "error": str(refusal), "detail": str(refusal)}
            except KeyError as error:
                status, answer = 404, {"detail": f"Not found: {error}"}
            self._send(status, answer)

        do_GET = do_POST = do_PATCH = do_DELETE = _serve

        def _send(self, status: int, answer: Any) -> None:
            body = b"" if status == 204 else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-API-Product-Name", "AWX")
            self.send_header("X-API-Product-Version", "24.6.1")
            self.end_headers()
            self.wfile.write(body)

    return Handler
