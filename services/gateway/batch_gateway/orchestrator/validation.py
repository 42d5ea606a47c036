"""Validating a batch file, line by line, at the speed of the JSON decoder. Pure.

A line is first decoded into a small typed struct, which costs less than a microsecond and is all a
valid line needs. Only a line that fails is looked at again, slowly, to say what is wrong with it.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Callable
from typing import Any

import msgspec

from batch_gateway.orchestrator.model_names import Names
from batch_gateway.orchestrator.request_index import RequestIndex
from vllm_batch.batch_file import BOM
from vllm_batch.events import LineError
from vllm_batch.settings import Settings

EMBEDDINGS = "/v1/embeddings"
_PROMPT_FIELDS = {
    "/v1/chat/completions": "messages",
    "/v1/completions": "prompt",
    "/v1/responses": "input",
}
"""What engines keep in their prefix cache; embeddings leave nothing there."""
_NO_FIELD = ""
_ID_CHARACTERS_MAX = 32
_UTF8_STEP_BYTES = 64 * 1024
_SHOWN_CHARACTERS_MAX = 100
_NAMED_MAX = 20


class _WithInput(msgspec.Struct):
    input: msgspec.Raw = msgspec.Raw()


class _EmbeddingsLine(msgspec.Struct):
    body: _WithInput


_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_text = msgspec.json.Decoder(str).decode
_decode_embeddings = msgspec.json.Decoder(_EmbeddingsLine).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


def _line_decoder(endpoint: str) -> Callable[[bytes], Any]:
    """Return what decodes a line to custom_id, method, url, body.model and body.prompt, the raw
    value of the field that the endpoint has its prompt in."""
    fields: list[Any] = [("model", str), ("prompt", msgspec.Raw, msgspec.Raw())]
    rename = {"prompt": _PROMPT_FIELDS.get(endpoint, _NO_FIELD)}
    body = msgspec.defstruct("_Body", fields, rename=rename, gc=False)
    texts: list[Any] = [(name, str) for name in ("custom_id", "method", "url")]
    line = msgspec.defstruct("_Line", [*texts, ("body", body)], gc=False)
    return msgspec.json.Decoder(line).decode


class Validator:
    """Takes the file as blocks of whole lines, in order, and knows at the end what to make of it.

    Memory: one entry of at most 100 bytes per custom_id, the index, and the errors to be shown.
    """

    def __init__(self, settings: Settings, *, endpoint: str, names: Names, mixed: bool) -> None:
        self.count = 0
        self.index = RequestIndex()
        self.models: dict[str, int] = {}
        """The models that are asked for, by their name or alias, in the order they came."""
        self.errors: list[LineError] = []
        self.error_count = 0
        self.full = False
        """Whether there are too many requests: the rest of the file need not be read."""
        self._requests_max = settings.batch_requests_max
        self._request_bytes_max = settings.request_bytes_max
        self._inputs_max = settings.embedding_inputs_max
        self._errors_max = settings.validation_errors_max
        self._endpoint = endpoint
        self._decode = _line_decoder(endpoint)
        self._names = names
        self._models_max = settings.batch_models_max if mixed else 1
        self._seen: set[str | bytes] = set()
        self._line = 0
        self._offset = 0
        self._inputs = 0

    @property
    def valid(self) -> bool:
        """Whether nothing is wrong so far."""
        return self.error_count == 0

    def feed(self, block: bytes) -> None:
        """Take whole lines: every line of ``block`` ends with a newline, the file's last one
        perhaps not."""
        if self._offset == 0 and block.startswith(BOM):
            block = block[len(BOM) :]
            self._offset = len(BOM)
        lines = block.split(b"\n")
        if not lines[-1]:
            lines.pop()  # what follows a newline at the end of the block is no line
        self._take(lines, text=_is_utf8(block))

    def _take(self, lines: list[bytes], *, text: bool) -> None:
        number, offset = self._line, self._offset
        endpoint, models, seen, add = self._endpoint, self.models, self._seen, self.index.add
        decode, embeddings = self._decode, endpoint == EMBEDDINGS
        for line in lines:
            number += 1
            end = offset + len(line) + 1
            if len(line) > self._request_bytes_max:
                self._too_long(number)
                offset = end
                continue
            try:
                request = decode(line)
                fine = (
                    (text or _is_utf8(line))
                    and request.body.model in models
                    and request.method == "POST"
                    and request.url == endpoint
                )
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                request, fine = None, False
            if not fine:
                # A model's first line comes here too: it brings the model in.
                if not line.strip():
                    offset = end
                    continue
                fine = self._look(line, number)
            if request is not None and not self._is_new(request.custom_id, seen):
                message = f"The custom_id {_shown(request.custom_id)} occurs more than once."
                self._error("duplicate_custom_id", message, "custom_id", number)
                fine = False
            self.count += 1
            if self.count > self._requests_max:
                self._too_many()
                return
            if fine:
                if embeddings:
                    self._inputs += _inputs(line)
                body = request.body
                add(offset, end, number, models[body.model], memoryview(body.prompt))
            offset = end
        self._line, self._offset = number, offset

    def skip_long_line(self, length: int) -> None:
        """Take note of a line of ``length`` bytes that was too long to be read at all."""
        self._line += 1
        self._offset += length
        self._too_long(self._line)

    def finish(self) -> None:
        """Check what concerns the whole file."""
        if self.full:
            return
        if self.count == 0:
            self._error("empty_file", "The file has no requests.", None, None)
        if self._inputs > (limit := self._inputs_max):
            message = f"The file has {self._inputs} embedding inputs; at most {limit} are allowed."
            self._error("too_many_tasks", message, None, None)

    def _is_new(self, custom_id: str, seen: set[str | bytes]) -> bool:
        key: str | bytes = custom_id
        if len(custom_id) > _ID_CHARACTERS_MAX:
            # Lone surrogates cannot come out of the decoder, so this always encodes.
            key = hashlib.blake2b(custom_id.encode(), digest_size=16).digest()
        if key in seen:
            return False
        seen.add(key)
        return True

    def _look(self, line: bytes, number: int) -> bool:
        """Note everything that is wrong with a line; return whether nothing is."""
        before = self.error_count
        try:
            if not _is_utf8(line):
                self._error("invalid_json_line", "The line is not UTF-8.", None, number)
                return False
            fields = _decode_fields(line)
        except msgspec.ValidationError:
            self._error("invalid_json_line", "The line is not a JSON object.", None, number)
            return False
        except msgspec.DecodeError as error:
            self._error("invalid_json_line", f"The line is not JSON: {error}", None, number)
            return False
        except RecursionError:
            self._error("invalid_json_line", "The line is nested too deeply.", None, number)
            return False
        self._text(fields, "custom_id", "custom_id", number)
        method = self._text(fields, "method", "method", number)
        if method is not None and method != "POST":
            message = f"The method is {_shown(method)}; only POST is possible."
            self._error("invalid_method", message, "method", number)
        url = self._text(fields, "url", "url", number)
        if url is not None and url != self._endpoint:
            message = f"The url is {_shown(url)}; the batch is for {self._endpoint}."
            self._error("invalid_url", message, "url", number)
        self._look_at_body(fields, number)
        return self.error_count == before

    def _look_at_body(self, fields: dict[str, msgspec.Raw], number: int) -> None:
        if "body" not in fields:
            self._error("missing_required_parameter", "body is missing.", "body", number)
            return
        try:
            body = _decode_fields(fields["body"])
        except msgspec.ValidationError:
            self._error("invalid_value", "body has to be a JSON object.", "body", number)
            return
        model = self._text(body, "model", "body.model", number)
        if model is not None and model not in self.models:
            self._look_at_model(model, number)

    def _look_at_model(self, model: str, number: int) -> None:
        if len(self.models) < self._models_max:
            self.models[model] = len(self.models)
            if self._names.resolve(model) is None:
                message = f"The model {_shown(model)} does not exist. {_those(self._names.known())}"
                self._error("model_not_found", message, "body.model", number)
        elif self._models_max > 1:
            message = f"The file is for more than {self._models_max} models."
            self._error("mismatched_model", message, "body.model", number)
        else:
            message = (
                f"The model is {_shown(model)}, but {_shown(next(iter(self.models)))} in the first "
                "request; a file is for one model, unless the metadata of the batch has "
                '"allow_mixed_models": "true".'
            )
            self._error("mismatched_model", message, "body.model", number)

    def _text(
        self, fields: dict[str, msgspec.Raw], key: str, param: str, number: int
    ) -> str | None:
        if key not in fields:
            message = f"{param} is missing."
            self._error("missing_required_parameter", message, param, number)
            return None
        try:
            return _decode_text(fields[key])
        except (msgspec.DecodeError, UnicodeDecodeError):
            self._error("invalid_value", f"{param} has to be a string.", param, number)
            return None

    def _too_long(self, number: int) -> None:
        self.count += 1
        limit = self._request_bytes_max
        self._error("invalid_value", f"The line is longer than {limit} bytes.", None, number)

    def _too_many(self) -> None:
        self.full = True
        limit = self._requests_max
        self._error("too_many_tasks", f"The file has more than {limit} requests.", None, None)

    def _error(self, code: str, message: str, param: str | None, line: int | None) -> None:
        self.error_count += 1
        if line is None:  # what concerns the whole file comes first
            self.errors.insert(0, LineError(code, message, param, line))
        elif len(self.errors) < self._errors_max:
            self.errors.append(LineError(code, message, param, line))


def _is_utf8(data: bytes) -> bool:
    """Tell whether ``data`` is UTF-8, without a decoded copy of the whole."""
    if data.isascii():
        return True
    decoder = codecs.getincrementaldecoder("utf-8")()
    view = memoryview(data)
    try:
        for start in range(0, len(data), _UTF8_STEP_BYTES):
            decoder.decode(view[start : start + _UTF8_STEP_BYTES])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _inputs(line: bytes) -> int:
    """Return how many texts or token lists a request wants embedded; 1 where that is unclear."""
    try:
        given = _decode_embeddings(line).body.input
        if not bytes(given).startswith(b"["):
            return 1
        items = _decode_list(given)
    except msgspec.DecodeError:
        return 1
    many = items and bytes(items[0])[:1] in {b'"', b"["}
    return len(items) if many else 1


def _those(known: list[str]) -> str:
    """Say which models there are."""
    if not known:
        return "There is none yet: register one, or start a worker."
    more = f" and {len(known) - _NAMED_MAX} more" if len(known) > _NAMED_MAX else ""
    return f"There is {', '.join(map(_shown, known[:_NAMED_MAX]))}{more}."


def _shown(value: str) -> str:
    """Return a user's text, quoted, without control characters and not too long."""
    cut = value if len(value) <= _SHOWN_CHARACTERS_MAX else value[:_SHOWN_CHARACTERS_MAX] + "…"
    return repr(cut)
