# syntax=docker/dockerfile:1
# The images of the service, on Debian 12.
#
#   docker build -t tim4rec-server .                              the server, on CPUs
#   docker build -t tim4rec-server:cuda --build-arg CUDA=ON .     the same with the cuda backend
#   docker build -t tim4rec-router --target router .              nginx as the router of deploy/k8s
#   docker build -t tim4rec-batch --target batch .                tim4rec-batch, for the job of deploy/k8s/overlays/batch
#
#   docker run --read-only -p 50051:50051 -p 9464:9464 -v ./my_model:/model:ro -v tim4rec-data:/data tim4rec-server
#
# The model is mounted at /model (read-only), the store at /data. /usr/share/tim4rec/sbom.cdx.json lists what is inside.
ARG CUDA=OFF

# Where nvcc comes from: the CUDA runtime is linked in, so that the last stage needs the driver only.
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04 AS cuda-ON
FROM debian:12-slim AS cuda-OFF
RUN mkdir /usr/local/cuda
# hadolint ignore=DL3006
FROM cuda-${CUDA} AS cuda

FROM debian:12-slim AS build
ARG CUDA
WORKDIR /src
COPY deploy/packages.txt deploy/install_packages.sh deploy/
RUN deploy/install_packages.sh
COPY --from=cuda /usr/local/cuda /usr/local/cuda
COPY . .
RUN PATH="$PATH:/usr/local/cuda/bin" cmake --preset release -DTIM4REC_TESTS=OFF "-DTIM4REC_CUDA=$CUDA" \
    && cmake --build build/release --target tim4rec-server \
    && strip build/release/bin/tim4rec-server
# The Debian packages that hold the shared libraries of the server: all that the last stage installs.
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=SC2016
RUN ldd build/release/bin/tim4rec-server | awk '$3 ~ /^\// { print $3 }' | xargs -n 1 realpath \
    | xargs -n 1 basename | sed 's#^#*/#' | xargs dpkg-query -S | cut -d: -f1 | sort -u > /runtime-packages.txt \
    && sed '/^\[tests\]$/,$d; /^#/d; /^$/d; s/ .*//' deploy/packages.txt \
    | xargs dpkg-query -W -f='${Package} ${Version}\n' > /built-with.txt

FROM debian:12-slim AS router
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="tim4rec-router" \
      org.opencontainers.image.description="nginx that sends each user's calls to the server that holds the user" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.base.name="debian:12-slim"
COPY deploy/sbom.sh /usr/share/tim4rec/sbom.sh
# hadolint ignore=DL3008
RUN apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends nginx-light \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin tim4rec \
    && sh /usr/share/tim4rec/sbom.sh tim4rec-router "$VERSION" /dev/null > /usr/share/tim4rec/sbom.cdx.json
COPY deploy/k8s/base/router/nginx.conf /etc/tim4rec/router/nginx.conf
USER 10001
EXPOSE 8443 8081
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["/bin/bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/8081 && printf 'GET /healthz HTTP/1.0\\r\\n\\r\\n' >&3 && grep -q ' 200 ' <&3"]
ENTRYPOINT ["/usr/sbin/nginx", "-e", "stderr", "-c", "/etc/tim4rec/router/nginx.conf"]

# The Python client, with the versions that the tests use.
FROM debian:12-slim AS client
# hadolint ignore=DL3008
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends ca-certificates python3-venv
WORKDIR /src
COPY proto proto
COPY tests/requirements.txt tests/requirements.txt
ENV PIP_CONSTRAINT=/src/tests/requirements.txt
RUN python3 -m venv /opt/tim4rec \
    && /opt/tim4rec/bin/pip install -q --no-cache-dir './proto/python[arrow]' \
    && /opt/tim4rec/bin/pip uninstall -q -y setuptools pip \
    && /opt/tim4rec/bin/python -c "import importlib.metadata as m; \
       print(*sorted(f'{d.name} {d.version}' for d in m.distributions()), sep='\n')" > /opt/tim4rec/packages.txt

FROM debian:12-slim AS batch
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="tim4rec-batch" \
      org.opencontainers.image.description="Recommendations for many users into Parquet files, from running servers" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.base.name="debian:12-slim"
COPY --from=client /opt/tim4rec /opt/tim4rec
COPY deploy/sbom.sh /usr/share/tim4rec/sbom.sh
# hadolint ignore=DL3008
RUN apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin tim4rec \
    && sh /usr/share/tim4rec/sbom.sh tim4rec-batch "$VERSION" /dev/null /opt/tim4rec/packages.txt \
       > /usr/share/tim4rec/sbom.cdx.json
USER 10001
HEALTHCHECK NONE
ENTRYPOINT ["/opt/tim4rec/bin/tim4rec-batch"]

FROM debian:12-slim AS server
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="tim4rec-server" \
      org.opencontainers.image.description="Sequential recommendation with an exact, durable state per user" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.base.name="debian:12-slim"
COPY --from=build /runtime-packages.txt /built-with.txt /src/deploy/sbom.sh /usr/share/tim4rec/
RUN apt-get update -qq \
    && xargs apt-get install -y -qq --no-install-recommends < /usr/share/tim4rec/runtime-packages.txt \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin tim4rec \
    && install -d -o tim4rec /data \
    && sh /usr/share/tim4rec/sbom.sh tim4rec-server "$VERSION" /usr/share/tim4rec/built-with.txt \
       > /usr/share/tim4rec/sbom.cdx.json
COPY --from=build /src/build/release/bin/tim4rec-server /usr/bin/tim4rec-server
USER 10001
# For the CUDA variant under NVIDIA's container runtime; without it they mean nothing.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
VOLUME /data
EXPOSE 50051 9464
STOPSIGNAL SIGTERM
# Ready, not only alive: docker restarts nothing by it, orchestrators wait for it.
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s \
    CMD ["/bin/bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/9464 && printf 'GET /readyz HTTP/1.0\\r\\n\\r\\n' >&3 && grep -q ' 200 ' <&3"]
ENTRYPOINT ["/usr/bin/tim4rec-server", "--model", "/model", "--data", "/data", \
            "--listen", "0.0.0.0:50051", "--metrics-listen", "0.0.0.0:9464"]
