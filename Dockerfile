# The app's image: locked dependencies, the library, the apps and their schemas. Nothing is written to it when
# it runs (--read-only): state is in the volume /var/lib/streams, temporary files are in /tmp.
FROM python:3.12-slim

WORKDIR /app
COPY requirements/console.txt requirements/
RUN pip install --no-cache-dir --require-hashes -r requirements/console.txt

COPY pyproject.toml README.md LICENSE ./
COPY streams streams
# pip builds the wheel with hatchling, which is not part of the image.
RUN pip install --no-cache-dir --no-deps .

COPY apps apps
COPY schemas schemas

# A number, so that Kubernetes can tell that it is not root. A new volume gets the folder's owner.
RUN useradd --uid 10001 --no-create-home streams && install --directory --owner=streams /var/lib/streams
USER 10001:10001

# SIGTERM commits and leaves the group: the container stops within ten seconds.
STOPSIGNAL SIGTERM
ENV STREAMS_LOG_FORMAT=json STREAMS_STATE_DIR=/var/lib/streams
ENTRYPOINT ["streams"]
CMD ["run", "apps.log_analysis.topology:app"]
