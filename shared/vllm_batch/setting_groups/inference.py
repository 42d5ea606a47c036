"""Online requests, in the gateway and in the worker."""

from __future__ import annotations

from pydantic import BaseModel, Field

_MIB = 1024 * 1024


class InferenceSettings(BaseModel):
    """See the module; units come last in the names."""

    # Gateway: api
    inference_body_bytes_max: int = Field(
        4 * _MIB, ge=1024, description="largest body of an online request; what NATS carries in "
        "one message is a limit, too",
    )  # fmt: skip
    inference_answer_bytes_max: int = Field(
        64 * _MIB, ge=1024, description="largest whole answer of an online request; streamed ones "
        "may be of any length",
    )  # fmt: skip
    inference_timeout_seconds: float = Field(
        600.0, gt=0, description="longest time for an online request; a client may ask for less "
        "with the header x-request-timeout-seconds",
    )  # fmt: skip
    inference_in_flight_max: int = Field(
        1000, ge=1, description="online requests that one gateway has under way; more get a 429"
    )
    inference_window_bytes: int = Field(
        256 * 1024, ge=16 * 1024, description="most of an answer that waits for a slow client"
    )
    inference_accept_seconds: float = Field(
        2.0,
        gt=0,
        description="a worker that has not taken an online request by then is passed over",
    )
    inference_default_model: str = Field(
        "", description="model of /v1/inference where the request names none; default: the only one"
    )
    api_shutdown_seconds: int = Field(
        5, ge=0, description="a gateway that ends lets answers under way finish for this long"
    )

    # GPU worker
    inference_in_flight_factor: float = Field(
        1.0, gt=0, le=8, description="online requests a worker takes / engine_max_num_seqs"
    )
    inference_check_seconds: float = Field(
        1.0, gt=0, description="worker and gateway tell each other this often what is under way"
    )
    inference_silence_seconds: float = Field(
        5.0, gt=0, description="a worker that said nothing for this long is given up"
    )
