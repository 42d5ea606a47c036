# The image of one of our services. SERVICE names the extras of pyproject.toml with its libraries:
# gateway,cli, watchdog, labelstudio-bridge or admin-ui. What is built in the first stage is copied into
# a small one that has no compiler, no pip and no source tree.
FROM python:3.11.14-bookworm AS build
ARG SERVICE
WORKDIR /source
COPY . .
RUN python -m venv --without-pip /opt/vllm-batch \
    && python -m pip --python /opt/vllm-batch/bin/python install \
        --no-cache-dir --disable-pip-version-check ".[${SERVICE},tracing]" \
    # 11 MB for downloads of many gigabytes. No service makes any; without it they go over HTTP.
    && python -m pip --python /opt/vllm-batch/bin/python uninstall --quiet --yes hf-xet \
    # A third of what compiled libraries weigh is there for debuggers.
    && find /opt/vllm-batch -name '*.so' -not -path '*.libs/*' -exec strip --strip-debug {} +

FROM python:3.11.14-slim-bookworm
COPY --from=build /opt/vllm-batch /opt/vllm-batch
# Volumes that are mounted here for the first time take over the owner of these folders.
RUN useradd --uid 10001 --home-dir /var/lib/vllm-batch --no-create-home vllm-batch \
    && install -d -o vllm-batch -g vllm-batch /var/lib/vllm-batch /srv/blobs
ENV PATH=/opt/vllm-batch/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/var/lib/vllm-batch \
    VLLM_BATCH_HOME=/var/lib/vllm-batch \
    # Configurations of models that were looked at; nothing else of the root filesystem is writable.
    HF_HOME=/tmp/huggingface
WORKDIR /var/lib/vllm-batch
USER 10001:10001
