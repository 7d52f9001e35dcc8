# The sidecar: one static program, no shell, not root. `cargo xtask images` makes the context, and can build this without
# an engine; see README.md.
FROM scratch
ARG VERSION
ARG REVISION
ARG CREATED
LABEL org.opencontainers.image.title="weft-sidecar" \
      org.opencontainers.image.description="The sidecar of the Weft service mesh" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY LICENSE sbom.json /
COPY weft-sidecar /weft-sidecar
# Certificate, key and last known configuration. A read-only container needs a volume here, of one workload alone.
COPY --chown=15001:15001 data/ /data/
ENV WEFT_DATA_DIR=/data
WORKDIR /data
# Redirect rules leave what this user sends alone: change it here and there together.
USER 15001:15001
# The mesh's calls, and metrics with probes. The application's port and the admin port are on loopback.
EXPOSE 15006 15020
STOPSIGNAL SIGTERM
ENTRYPOINT ["/weft-sidecar"]
