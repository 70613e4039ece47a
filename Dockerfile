# docker build -t muster .
FROM python:3.13-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/data/hub

RUN useradd --uid 10001 --create-home muster \
    && install --directory --owner=muster --mode=0700 /data

WORKDIR /opt/muster
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY configs configs
COPY wire wire
COPY host host
COPY loadbalancer loadbalancer
COPY controller controller
COPY worker worker
COPY muster muster
RUN pip install --constraint constraints.txt .

USER muster
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["python", "-m", "controller", "--data-dir", "/data"]
CMD ["--host", "0.0.0.0"]
