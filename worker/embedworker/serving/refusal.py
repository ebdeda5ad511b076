"""What a client is told instead of vectors: a status, and the error object of OpenAI's API."""

from starlette.responses import JSONResponse, Response

__all__ = ["Refusal"]


class Refusal(Exception):
    """A request that is not answered; the message is for its client, and quotes no text."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = headers or {}

    def response(self) -> Response:
        """Return the answer, with the error in OpenAI's form."""
        kind = "invalid_request_error"
        if self.status == 429:
            kind = "rate_limit_error"
        elif self.status >= 500:
            kind = "server_error"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return JSONResponse({"error": error}, status_code=self.status, headers=self.headers)
