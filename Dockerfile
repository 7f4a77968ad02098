# The gateway as an image: only what requirements-full.txt pins, no tool to build with, no root.
#
#     docker build -t gateway .
#     docker run -p 8000:8000 -v gateway:/data -e GATEWAY_JWT_SECRET gateway
#
# docs/operations.md says how it is run for real.

FROM python:3.12-slim AS packages
WORKDIR /build
COPY requirements-full.txt ./
RUN python -m venv --without-pip /venv \
    && python -m pip --python /venv/bin/python install --no-cache-dir --disable-pip-version-check \
        --only-binary :all: --require-hashes -r requirements-full.txt
# The project itself is not built: it is put where Python finds it, as scripts/environment does.
COPY gateway /venv/lib/python3.12/site-packages/gateway
COPY storage /venv/lib/python3.12/site-packages/storage
COPY push /venv/lib/python3.12/site-packages/push
RUN printf '#!/bin/sh\nexec /venv/bin/python -m gateway "$@"\n' >/venv/bin/gateway \
    && chmod 755 /venv/bin/gateway \
    && /venv/bin/python -m compileall -q /venv/lib/python3.12/site-packages

FROM python:3.12-slim
COPY --from=packages /venv /venv
COPY LICENSE /venv/LICENSE
RUN groupadd --system --gid 10001 gateway \
    && useradd --system --uid 10001 --gid gateway --no-create-home --home-dir /data gateway \
    && install -d -o gateway -g gateway -m 700 /data
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    GATEWAY_DATA_DIR=/data \
    GATEWAY_HOST=0.0.0.0
# By number: Kubernetes can tell then that it is not root.
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
# Whether the process answers; /readyz is for load balancers. A worker answers where GATEWAY_WORKER_PORT is 8000 too.
HEALTHCHECK --interval=30s --timeout=5s --start-period=15s CMD ["python", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open(f\"http://127.0.0.1:{os.environ.get('GATEWAY_PORT', '8000')}/healthz\", timeout=4)"]
ENTRYPOINT ["gateway"]
CMD ["serve"]
