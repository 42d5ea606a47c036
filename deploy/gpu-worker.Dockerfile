# A worker: vLLM's own image, and beside its Python an environment of ours, as the two need different
# versions of the same libraries. ENGINE_IMAGE: vllm/vllm-openai with CUDA, or vllm/vllm-openai-cpu.
ARG ENGINE_IMAGE=vllm/vllm-openai:v0.32.0

FROM ${ENGINE_IMAGE} AS build
USER root
WORKDIR /source
COPY . .
RUN python3 -m venv /opt/vllm-batch \
    && /opt/vllm-batch/bin/python -m pip install \
        --no-cache-dir --disable-pip-version-check ".[gpu-worker,tracing]"

FROM ${ENGINE_IMAGE}
USER root
COPY --from=build /opt/vllm-batch /opt/vllm-batch
# The engine's Python by a name that is the same in all of its images; a link would lose the
# environment that it belongs to.
RUN printf '#!/bin/sh\nexec "%s" "$@"\n' "$(command -v python3)" > /usr/local/bin/engine-python \
    && chmod 755 /usr/local/bin/engine-python \
    && useradd --uid 10001 --home-dir /var/lib/vllm-batch --no-create-home vllm-batch \
    && install -d -o vllm-batch -g vllm-batch /var/lib/vllm-batch /srv/blobs
ENV PYTHONUNBUFFERED=1 \
    HOME=/var/lib/vllm-batch \
    VLLM_BATCH_HOME=/var/lib/vllm-batch \
    VLLM_BATCH_ENGINE_PYTHON=/usr/local/bin/engine-python \
    VLLM_NO_USAGE_STATS=1
WORKDIR /var/lib/vllm-batch
USER 10001:10001
ENTRYPOINT []
CMD ["/opt/vllm-batch/bin/python", "-m", "batch_gpu_worker"]
