FROM python:3.11-slim
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY edgekd edgekd
COPY engines engines
RUN pip install --no-cache-dir ".[onnxrt,geo,trust]"
WORKDIR /work
ENTRYPOINT ["edgekd"]
