# SPDX-License-Identifier: Apache-2.0
"""Errors as the two APIs write them: {"itemNotFound": {"code": 404, "message": "..."}}."""

from __future__ import annotations

import json

import flask
from werkzeug.exceptions import HTTPException

from cinderlite import errors

NAMES = {
    400: "badRequest", 401: "unauthorized", 403: "forbidden", 404: "itemNotFound", 405: "badMethod",
    409: "conflictingRequest", 413: "overLimit", 415: "badMediaType", 501: "notImplemented",
    503: "serviceUnavailable",
}  # fmt: skip

#: What a caller is told of an error that nobody foresaw; the log has the rest.
INTERNAL = "The server has either erred or is incapable of performing the requested operation."
#: What is said of a body with more bytes than osapi_max_request_body_size.
TOO_LARGE = "Request is too large."


def fault(status: int, message: str, headers: dict[str, str] | None = None) -> flask.Response:
    """The answer for an error."""
    headers = dict(headers or {})
    if status == errors.PreconditionFailed.status:
        return flask.Response(status=status, headers=headers)
    detail: dict[str, object] = {"code": status, "message": message}
    if status == errors.OverQuota.status:
        headers["Retry-After"] = detail["retryAfter"] = "0"
    elif status == errors.Unavailable.status:
        headers["Retry-After"] = "5"
    body = json.dumps({NAMES.get(status, "computeFault"): detail})
    return flask.Response(body, status=status, headers=headers, content_type="application/json")


def of_ours(error: errors.CinderliteError) -> flask.Response:
    """The answer for an error that was raised on purpose."""
    if error.status == errors.CinderliteError.status:
        return fault(error.status, INTERNAL)
    headers = {"WWW-Authenticate": 'Basic realm="cinderlite"'} if error.status == 401 else None
    return fault(error.status, error.message, headers)


def of_http(error: HTTPException) -> flask.Response:
    """The answer for what flask itself refuses: an unknown path, a method that a path does not have."""
    if error.code in (404, 405):
        return fault(404, "The resource could not be found.")
    if error.code == 413:
        return fault(413, TOO_LARGE)
    if error.response is not None or error.code is None:
        return flask.Response(error.get_response().get_data(), status=error.code or 500)
    return fault(error.code, error.description or "")
