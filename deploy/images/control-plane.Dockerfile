# The control plane: one static program, no shell, not root. `cargo xtask images` makes the context, and can build this
# without an engine; see README.md.
FROM scratch
ARG VERSION
ARG REVISION
ARG CREATED
LABEL org.opencontainers.image.title="weft-control-plane" \
      org.opencontainers.image.description="The control plane of the Weft service mesh" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY LICENSE sbom.json /
COPY weft-control-plane /weft-control-plane
# Event log, certificate authority, operator's credential. A new volume takes owner and mode from here.
COPY --chown=15010:15010 data/ /data/
ENV WEFT_DATA_DIR=/data
VOLUME ["/data"]
WORKDIR /data
USER 15010:15010
# gRPC (xDS, certificates, configuration) and HTTP (API, metrics, health), both over TLS.
EXPOSE 15010 15080
STOPSIGNAL SIGTERM
ENTRYPOINT ["/weft-control-plane"]
