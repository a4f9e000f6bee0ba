# Raspberry Pi 4 and 5 with a 64-bit system, or any 64-bit Arm board or PC without a GPU: ONNX Runtime.
# Python and glibc (2.36) are those of Raspberry Pi OS 12; what is installed are wheels alone.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG EXTRAS=onnxrt,geo,trust,places,serve
ARG PIP_ARGS=""
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY edgekd edgekd
COPY engines engines
RUN python3 -m venv /opt/edgekd \
    && /opt/edgekd/bin/python -m pip install --no-cache-dir --prefer-binary ${PIP_ARGS} ".[${EXTRAS}]" \
    && /opt/edgekd/bin/python -m pip uninstall --yes pip setuptools

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="edgekd runtime, Raspberry Pi" \
      org.opencontainers.image.description="Runs edgekd bundles with ONNX Runtime on the CPU" \
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
# Maps, and bundles of places: edgekd run, watch, bench, and edgekd serve (docker/README.md: a token, a
# volume for rules, a port). Not ONNX Runtime: it does not import where a board is emulated, and images are built there, too.
RUN python -c "import cv2, numpy, pyogrio, rasterio, scipy.optimize, shapely, tokenizers, edgekd.runtime.session, edgekd.serve.app"
WORKDIR /work
USER 10001:10001
ENTRYPOINT ["edgekd"]
CMD ["--help"]
