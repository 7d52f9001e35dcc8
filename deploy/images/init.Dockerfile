# Sets the redirect rules of transparent mode and ends: the static sidecar, nft and iptables with their libraries, and
# nothing else. `cargo xtask images` makes the context, and can build this without an engine; see README.md.
FROM scratch
ARG VERSION
ARG REVISION
ARG CREATED
LABEL org.opencontainers.image.title="weft-init" \
      org.opencontainers.image.description="Sets the redirect rules of the Weft service mesh" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED" \
      org.opencontainers.image.licenses="Apache-2.0 AND GPL-2.0-only AND GPL-2.0-or-later AND LGPL-2.1-or-later"
COPY LICENSE sbom.json /
COPY weft-sidecar /weft-sidecar
COPY tools/ /tools/
ENV WEFT_TOOLS=/tools
# The kernel gives NET_ADMIN, all that this needs, to a container's root only. Drop every other capability:
# `docker run --cap-drop ALL --cap-add NET_ADMIN`.
USER 0:0
ENTRYPOINT ["/weft-sidecar"]
CMD ["init"]
