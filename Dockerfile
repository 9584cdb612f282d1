# syntax=docker/dockerfile:1
# The node as an image: docker run --network host -v darkstream:/data -v /films:/films darkstream
# (mDNS needs the host's network; without it give --seed).

FROM python:3.13-slim AS build
WORKDIR /src
RUN python -m venv /opt/darkstream
ENV PATH=/opt/darkstream/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
COPY requirements.lock ./
RUN pip install --no-deps --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY mesh mesh
COPY ledger ledger
COPY node node
RUN pip install --no-deps --no-build-isolation --no-index .

FROM python:3.13-slim
LABEL org.opencontainers.image.title="DarkStream" \
      org.opencontainers.image.description="A peer-to-peer, self-organizing mesh of machines that converts videos" \
      org.opencontainers.image.licenses="MIT"
RUN useradd --uid 7440 --create-home --shell /usr/sbin/nologin darkstream \
 && install -d -o darkstream -g darkstream -m 0700 /data \
 && install -d -o darkstream -g darkstream /films
COPY --from=build /opt/darkstream /opt/darkstream
ENV PATH=/opt/darkstream/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    DARKSTREAM_HOME=/data
USER darkstream
VOLUME ["/data"]
WORKDIR /films
# control, bulk, join; mDNS
EXPOSE 7440-7442/tcp 5353/udp
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:7450/livez', timeout=2)"]
STOPSIGNAL SIGTERM
CMD ["mesh-node", "start", "--allow", "/films"]
