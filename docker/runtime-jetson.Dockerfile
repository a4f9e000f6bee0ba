# TensorRT and CUDA come from the base image, pycuda is compiled against them; Python is 3.10 there.
FROM nvcr.io/nvidia/l4t-jetpack:r36.4.0
RUN apt-get update && apt-get install -y --no-install-recommends python3-pip && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY edgekd edgekd
COPY engines engines
RUN pip3 install --no-cache-dir ".[geo,jetson,trt,trust]"
WORKDIR /work
ENTRYPOINT ["edgekd"]
