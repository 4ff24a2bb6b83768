"""Pure: the operations of the gateway itself: whether it works, how requests were routed, and what is done by hand."""

from __future__ import annotations

from typing import Literal

from runtime.gateway.openapi.operations import CSV, PLAIN, Answer, Operation, Parameter
from runtime.gateway.openapi.shapes import Described
from schemas.admin import ConfigReport, EndpointBreak, EndpointChoice, EndpointsReport
from schemas.history import PastErrors, PastRequests
from schemas.receipt import Receipt, Receipts

ADMIN = "Administration"


class Alive(Described):
    """The process lives."""

    status: Literal["ok"]


class RoleReadiness(Described):
    """How many of a role's endpoints can answer."""

    available: int
    endpoints: int


class Readiness(Described):
    """Whether any role can be served now. What follows `ready` is told to who may `read` only."""

    ready: bool
    draining: bool | None = None
    stack: str | None = None
    generation: int | None = None
    config_current: bool | None = None
    problems: int | None = None
    roles: dict[str, RoleReadiness] | None = None


class OpenAPIDocument(Described):
    """This document."""

    openapi: str


def _past(path: str, summary: str, answer: type[PastRequests | PastErrors], usual: int) -> Operation:
    return Operation(
        "GET",
        path,
        summary,
        {"200": Answer("The latest ones first.", answer, texts=(CSV,))},
        tag=ADMIN,
        parameters=(
            Parameter("limit", "query", {"type": "integer", "minimum": 1, "maximum": 1000, "default": usual}),
            Parameter("role", "query", {"type": "string", "maxLength": 200}),
            Parameter("status", "query", {"type": "integer", "minimum": 100, "maximum": 599}),
            Parameter("format", "query", {"enum": ["json", "csv"], "default": "json"}),
        ),
    )


def _by_hand(
    verb: str, summary: str, body: type[EndpointChoice] = EndpointChoice, errors: tuple[str, ...] = ("404",)
) -> Operation:
    example = {"endpoint": "big", "seconds": 10.0} if body is EndpointBreak else {"endpoint": "big"}
    return Operation(
        "POST",
        f"/admin/endpoints/{verb}",
        summary,
        {"200": Answer("The endpoints that were meant, as they are now.", EndpointsReport)},
        tag=ADMIN,
        body=body,
        example=example,
        errors=errors,
    )


OPERATIONS = (
    Operation("GET", "/health", "Tell whether the process lives", {"200": Answer("It does.", Alive)}),
    Operation(
        "GET",
        "/ready",
        "Tell whether any role can be served",
        {"200": Answer("One can.", Readiness), "503": Answer("None can, or the process is about to end.", Readiness)},
        description="Details are shown to keys with the scope `read`.",
    ),
    Operation(
        "GET",
        "/metrics",
        "Show counters for Prometheus",
        {"200": Answer("Prometheus' text format.", texts=(PLAIN,))},
    ),
    Operation("GET", "/openapi.json", "Describe the HTTP surface", {"200": Answer("This document.", OpenAPIDocument)}),
    _past("/requests", "Show the requests of the past", PastRequests, 200),
    _past("/errors", "Show what went wrong in the past", PastErrors, 50),
    Operation(
        "GET",
        "/admin/config",
        "Show the configuration in use and what is wrong with newer files",
        {"200": Answer("The configuration.", ConfigReport)},
        tag=ADMIN,
    ),
    Operation(
        "POST",
        "/admin/config/reload",
        "Read the files now",
        {"200": Answer("The configuration in use then.", ConfigReport)},
        tag=ADMIN,
    ),
    Operation(
        "GET",
        "/admin/endpoints",
        "Show every endpoint: health, breaker, latencies",
        {"200": Answer("The endpoints.", EndpointsReport)},
        tag=ADMIN,
    ),
    _by_hand("isolate", "Keep requests away from an endpoint until `close`"),
    _by_hand("break", "Let every request to an endpoint fail for a while, for a drill", EndpointBreak),
    _by_hand("close", "Close an endpoint's breaker"),
    _by_hand("probe", "Ask an endpoint for a token now", errors=("404", "409")),
    Operation(
        "GET",
        "/admin/receipts",
        "Show how the latest requests were routed",
        {"200": Answer("The latest ones first.", Receipts)},
        tag=ADMIN,
        parameters=(
            Parameter("limit", "query", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 50}),
            Parameter("troubled", "query", {"type": "boolean", "default": False}, "Only those that met trouble."),
        ),
    ),
    Operation(
        "GET",
        "/admin/receipts/<request_id:str>",
        "Show how one request was routed",
        {"200": Answer("Its receipt.", Receipt)},
        tag=ADMIN,
        parameters=(
            Parameter(
                "request_id",
                "path",
                {"type": "string", "minLength": 1},
                "That of the answer's header `x-orchestrate-request-id`.",
            ),
        ),
        errors=("404",),
    ),
)
