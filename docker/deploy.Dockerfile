# Build host: export, quantize, check (with NVIDIA's TensorRT-RTX on x86-64), build, sign. No GPU needed.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG EXTRAS=deploy,check,geo,trust
# On x86-64 pip takes torch's CUDA build by default, several GB; with the index of CPU wheels that
# PyTorch's "Get Started" page gives: --build-arg PIP_ARGS="--extra-index-url URL".
ARG PIP_ARGS=""
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY edgekd edgekd
COPY engines engines
RUN python3 -m venv /opt/edgekd \
    && /opt/edgekd/bin/python -m pip install --no-cache-dir --prefer-binary ${PIP_ARGS} ".[${EXTRAS}]"

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="edgekd build host" \
      org.opencontainers.image.description="Exports, quantizes, checks and builds edgekd bundles" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
# rasterio's GDAL takes libexpat from the system; the other wheels bring what they need.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libexpat1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin edgekd \
    && install --directory --owner=edgekd --group=edgekd /work
COPY --from=build /opt/edgekd /opt/edgekd
# From 1.29 on ONNX Runtime's Linux wheels tell Microsoft about models and runs unless this is set.
ENV PATH=/opt/edgekd/bin:${PATH} LANG=C.UTF-8 HOME=/tmp PYTHONUNBUFFERED=1 ORT_DISABLE_TELEMETRY=1
RUN python -c "import onnx, onnxruntime, rasterio, torch, edgekd.deploy.bundle"
WORKDIR /work
USER 10001:10001
ENTRYPOINT ["edgekd"]
CMD ["--help"]
