# Workstation: distil, finetune, eval. On x86-64 pip takes torch with CUDA (several GB): run with --gpus all.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG EXTRAS=train
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
LABEL org.opencontainers.image.title="edgekd workstation" \
      org.opencontainers.image.description="Distils, tunes and evaluates edgekd students" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
# rasterio's GDAL takes libexpat from the system; distill.compile=true compiles with gcc.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev libexpat1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin edgekd \
    && install --directory --owner=edgekd --group=edgekd /work
COPY --from=build /opt/edgekd /opt/edgekd
ENV PATH=/opt/edgekd/bin:${PATH} LANG=C.UTF-8 HOME=/tmp PYTHONUNBUFFERED=1
RUN python -c "import rasterio, torch, transformers, edgekd.train.finetune, edgekd.train.distill.loop"
WORKDIR /work
USER 10001:10001
ENTRYPOINT ["edgekd"]
CMD ["--help"]
