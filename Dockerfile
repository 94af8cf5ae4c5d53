# syntax=docker/dockerfile:1
# tim4rec-server on Debian 12, CPU. The model is mounted at /model (read-only), the store at /data.
#
#   docker build -t tim4rec-server .
#   docker run -p 50051:50051 -p 9464:9464 -v ./my_model:/model:ro -v tim4rec-data:/data tim4rec-server

FROM debian:12-slim AS build
WORKDIR /src
COPY deploy/packages.txt deploy/install_packages.sh deploy/
RUN deploy/install_packages.sh
COPY . .
RUN cmake --preset release -DTIM4REC_TESTS=OFF -DTIM4REC_CUDA=OFF \
    && cmake --build build/release --target tim4rec-server \
    && strip build/release/bin/tim4rec-server
# The Debian packages that hold the shared libraries of the server: all that the last stage installs.
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN ldd build/release/bin/tim4rec-server | awk '$3 ~ /^\// { print $3 }' | xargs -n 1 realpath \
    | xargs -n 1 basename | sed 's#^#*/#' | xargs dpkg-query -S | cut -d: -f1 | sort -u > /runtime-packages.txt

FROM debian:12-slim
LABEL org.opencontainers.image.title="tim4rec-server" \
      org.opencontainers.image.description="Sequential recommendation with an exact, durable state per user"
COPY --from=build /runtime-packages.txt /usr/share/tim4rec/runtime-packages.txt
RUN apt-get update -qq \
    && xargs apt-get install -y -qq --no-install-recommends < /usr/share/tim4rec/runtime-packages.txt \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin tim4rec \
    && install -d -o tim4rec /data
COPY --from=build /src/build/release/bin/tim4rec-server /usr/bin/tim4rec-server
USER 10001
VOLUME /data
EXPOSE 50051 9464
ENTRYPOINT ["/usr/bin/tim4rec-server", "--model", "/model", "--data", "/data", \
            "--listen", "0.0.0.0:50051", "--metrics-listen", "0.0.0.0:9464"]
