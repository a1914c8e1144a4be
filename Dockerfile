# The page in a container: `docker compose up`, or
#   docker build -t vamba-live . && docker run -p 127.0.0.1:7860:7860 vamba-live
# torch's wheel brings CUDA, so the same image runs on a GPU (--gpus all) and without one.
FROM python:3.11-slim

WORKDIR /srv/vamba-live
COPY packages.txt ./
RUN apt-get update \
    && xargs -a packages.txt apt-get install -y --no-install-recommends \
    && rm -rf /var/lib/apt/lists/*
ARG REQUIREMENTS=requirements.txt
COPY requirements.txt requirements-cluster.txt ./
RUN pip install --no-cache-dir -r "$REQUIREMENTS"

COPY app app
COPY pipeline pipeline
COPY assets assets
COPY app.py ./

# Uploads and kept streams are written below /data, and nothing else is.
RUN useradd --create-home vamba && mkdir -p /data/streams /data/uploads && chown -R vamba /data
USER vamba
ENV TMPDIR=/data/uploads VAMBA_STORE=/data/streams VAMBA_METRICS=0.0.0.0:9090 GRADIO_ANALYTICS_ENABLED=False
VOLUME /data
EXPOSE 7860 9090
HEALTHCHECK --interval=30s --timeout=10s --start-period=15m \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9090/health', timeout=8)"]
ENTRYPOINT ["python", "app.py", "--host", "0.0.0.0"]
