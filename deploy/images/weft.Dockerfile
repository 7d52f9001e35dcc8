# The operator's command, which has control plane, sidecar and demo as well: one static program, no shell, not root.
# `cargo xtask images` makes the context, and can build this without an engine; see README.md.
FROM scratch
ARG VERSION
ARG REVISION
ARG CREATED
LABEL org.opencontainers.image.title="weft" \
      org.opencontainers.image.description="The operator's command of the Weft service mesh" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY LICENSE sbom.json /
COPY weft /weft
COPY --chown=15010:15010 data/ /data/
ENV TMPDIR=/data
WORKDIR /data
# The control plane's user: the operator's credential lies in its volume.
USER 15010:15010
STOPSIGNAL SIGTERM
ENTRYPOINT ["/weft"]
CMD ["--help"]
