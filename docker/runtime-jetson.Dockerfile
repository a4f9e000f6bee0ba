# Jetson Orin with JetPack 6.1 or 6.2 (L4T r36.4: CUDA 12.6, TensorRT 10.3, Python 3.10). TensorRT and its
# Python bindings are the base image's; pycuda has no wheels and is compiled in a stage of its own.
# Build it on the board. Run it with --runtime nvidia, which mounts the driver's libraries.
ARG BUILD_BASE=nvcr.io/nvidia/l4t-tensorrt:r10.3.0-devel
ARG BASE=nvcr.io/nvidia/l4t-tensorrt:r10.3.0-runtime

FROM ${BUILD_BASE} AS build
ARG EXTRAS=geo,jetson,trt,trust
# The bindings of TensorRT 10.3 are compiled for NumPy 1: they know numpy.core, not numpy._core.
ARG NUMPY="numpy<2"
ARG PIP_ARGS=""
ENV DEBIAN_FRONTEND=noninteractive PATH=/usr/local/cuda/bin:${PATH}
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY edgekd edgekd
COPY engines engines
# Without cuRAND, which the runtime image need not have.
RUN echo "CUDA_ENABLE_CURAND = False" > /etc/aksetup-defaults.py \
    && python3 -m venv --system-site-packages /opt/edgekd \
    && /opt/edgekd/bin/python -m pip install --no-cache-dir --upgrade pip \
    && /opt/edgekd/bin/python -m pip install --no-cache-dir --prefer-binary ${PIP_ARGS} ".[${EXTRAS}]" "${NUMPY}" \
    && /opt/edgekd/bin/python -m pip uninstall --yes pip setuptools

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="edgekd runtime, Jetson" \
      org.opencontainers.image.description="Finishes and runs edgekd bundles with JetPack's TensorRT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
# rasterio's GDAL takes libexpat from the system. The groups that the GPU's devices belong to are the
# host's and are given to `docker run`.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends libexpat1 python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin edgekd \
    && install --directory --owner=edgekd --group=edgekd /work
COPY --from=build /opt/edgekd /opt/edgekd
ENV PATH=/opt/edgekd/bin:${PATH} LANG=C.UTF-8 HOME=/tmp PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Found, not imported: libcuda and libnvdla_compiler are there only when the NVIDIA runtime mounts them.
RUN python -c "import cv2, numpy, pyogrio, rasterio, shapely, edgekd.runtime.session" \
    && python -c "import importlib.util as u, sys; sys.exit([n for n in ('tensorrt', 'pycuda') if not u.find_spec(n)] or 0)"
WORKDIR /work
USER 10001:10001
ENTRYPOINT ["edgekd"]
CMD ["--help"]
