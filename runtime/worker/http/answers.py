"""I/O: what goes wrong with a request, as an HTTP answer that every OpenAI client reads."""

import json
import logging
from typing import Any

from sanic import HTTPResponse, Request
from sanic.exceptions import SanicException

from runtime.worker.errors import GenerationError, RequestError, UnavailableError, error_body, kind_of

logger = logging.getLogger(__name__)


async def answer_error(request: Request, error: Exception) -> HTTPResponse:
    """Turn every exception into OpenAI's error object; what nobody expected is logged and told without details."""
    match error:
        case RequestError():
            return refusal(error.status, error.message, param=error.param, code=error.code)
        case UnavailableError():
            body = error_body(error.message, kind=kind_of(503), code=error.code)
            loading = {} if error.loading is None else {"loading": error.loading.model_dump()}
            response = _json({**body, **loading}, 503)
            response.headers["retry-after"] = str(error.retry_after_s)
            return response
        case GenerationError():
            return refusal(500, str(error), code="generation_failed")
        case SanicException():
            response = refusal(error.status_code, str(error))
            response.headers.update(error.headers)
            return response
        case _:
            logger.error("%s %s failed", request.method, request.path, exc_info=error)
            return refusal(500, "The worker failed to handle the request.")


def refusal(status: int, message: str, *, param: str | None = None, code: str | None = None) -> HTTPResponse:
    """Return the answer to a request that is not served."""
    return _json(error_body(message, kind=kind_of(status), param=param, code=code), status)


def _json(body: dict[str, Any], status: int = 200) -> HTTPResponse:
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return HTTPResponse(text.encode(), status=status, content_type="application/json")
