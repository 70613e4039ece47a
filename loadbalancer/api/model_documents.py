"""The OpenAPI document with each model's own paths, and the schemas of inputs and outputs that its engine reports."""

from __future__ import annotations

import copy
from collections.abc import Container, Iterable
from typing import Any, NamedTuple

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from loadbalancer.schema.engine_schemas import component_name, engine_schema
from loadbalancer.schema.errors import ApiError
from loadbalancer.services import Services

_PREDICT = "/v1/models/{model}:predict"
_JSON = "application/json"


class ModelInterface(NamedTuple):
    """What is known of a model that takes calls. The schemas are JSON texts, empty if unknown."""

    name: str
    api_path: str | None = None
    input_schema: str = ""
    output_schema: str = ""


def serve_document(app: FastAPI, services: Services) -> None:
    """Replace FastAPI's route: the document is encoded again only when an engine reports other schemas.

    While keys are in force, requests without one get the document without the models.
    """
    known: list[ModelInterface] | None = None
    body = public_body = b""

    async def openapi(request: Request) -> Response:
        nonlocal known, body, public_body
        if not _may_list_models(services, request):
            public_body = public_body or _encode(_without_models(app.openapi(), services.settings.api_paths))
            return Response(public_body, media_type=_JSON)
        current = _interfaces(services)
        if current != known:
            known, body = current, _encode(with_models(app.openapi(), current))
        return Response(body, media_type=_JSON)

    path = str(app.openapi_url)
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", "") != path]
    app.add_route(path, openapi, include_in_schema=False)


def _encode(document: dict[str, Any]) -> bytes:
    return bytes(JSONResponse(document).body)


def _without_models(document: dict[str, Any], own_paths: Container[str]) -> dict[str, Any]:
    return document | {"paths": {path: item for path, item in document["paths"].items() if path not in own_paths}}


def _may_list_models(services: Services, request: Request) -> bool:
    """Return whether the request may know the models: the document itself needs no key."""
    try:
        services.authenticator.enter("/v1/models", request.headers.get("authorization", ""), services.keys.ring)
    except ApiError:
        return False
    return True


def _interfaces(services: Services) -> list[ModelInterface]:
    found = []
    for name, model in services.settings.models.items():
        if model.task == "call":
            engine = services.scheduler.pools[name].engine_info
            schemas = ("", "") if engine is None else (engine.input_schema, engine.output_schema)
            found.append(ModelInterface(name, model.api_path, *schemas))
    return found


def with_models(document: dict[str, Any], models: Iterable[ModelInterface]) -> dict[str, Any]:
    """Return the document with the models' own paths before the general ones."""
    paths, schemas = dict(document["paths"]), dict(document["components"]["schemas"])
    own_paths: dict[str, Any] = {}
    for model in models:
        prefix = component_name(model.name)
        while f"{prefix}.Input" in schemas:  # of a model whose name differs in other characters only
            prefix += "_"
        values = {}
        for kind, text in (("Input", model.input_schema), ("Output", model.output_schema)):
            found = engine_schema(text, f"{prefix}.{kind}")
            name = f"{prefix}.{kind}"
            schemas[name] = {"description": "Any JSON."} if found is None else found.schema
            schemas |= {} if found is None else found.components
            values[kind] = {"$ref": f"#/components/schemas/{name}"}
        own_paths[_PREDICT.format(model=model.name)] = _predict_path(paths[_PREDICT], model.name, values)
        if model.api_path is not None:
            own_paths[model.api_path] = _own_path(paths.pop(model.api_path), values)
    return document | {"paths": own_paths | paths, "components": document["components"] | {"schemas": schemas}}


def _predict_path(general: dict[str, Any], model: str, values: dict[str, Any]) -> dict[str, Any]:
    operation = copy.deepcopy(general["post"])
    operation["summary"] = f"Call {model}"
    operation["operationId"] = f"predict_{component_name(model)}"
    operation["parameters"] = [each for each in operation["parameters"] if each["in"] != "path"]
    instances = {"type": "array", "minItems": 1, "items": values["Input"]}
    predictions = {"type": "array", "items": values["Output"]}
    _set_schemas(
        operation,
        {"allOf": [{"$ref": "#/components/schemas/PredictionsRequest"}, {"properties": {"instances": instances}}]},
        {"type": "object", "properties": {"predictions": predictions}, "required": ["predictions"]},
    )
    return {"post": operation}


def _own_path(item: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    operation = copy.deepcopy(item["post"])
    _set_schemas(operation, values["Input"], values["Output"])
    return {"post": operation}


def _set_schemas(operation: dict[str, Any], request: dict[str, Any], response: dict[str, Any]) -> None:
    operation["requestBody"]["content"][_JSON]["schema"] = request
    operation["responses"]["200"]["content"][_JSON]["schema"] = response
