# The image of cacheagent: Debian 12 with Debian's own Python, and the locked wheels, which are copied in. The build needs no
# network: `make image` prepares the base and build/wheels, see scripts/image.
ARG BASE=localhost/cacheagent-base:bookworm

FROM ${BASE} AS build
COPY build/wheels /wheels
# Debian's Python has no pip here; pip's own wheel runs as it lies. Everything is compiled now, since nothing can be written later.
RUN python3 -m venv --without-pip /opt/cacheagent \
    && python3 "$(echo /wheels/pip-*.whl)/pip" --python /opt/cacheagent/bin/python install --quiet --compile \
        --no-cache-dir --no-index --find-links /wheels --require-hashes --requirement /wheels/requirements.txt

FROM ${BASE}
LABEL org.opencontainers.image.title="cacheagent" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/cacheagent /opt/cacheagent
# Nothing of ours writes outside the cache directory: run it with a read-only root file system and no capabilities.
ENV PATH=/opt/cacheagent/bin:/usr/bin:/bin HOME=/nonexistent PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 65532:65532
ENTRYPOINT ["cacheagent"]
CMD ["--help"]
