# The app's image: locked dependencies, the library, the apps and their schemas.
FROM python:3.12-slim

WORKDIR /app
COPY requirements/runtime.txt requirements/
RUN pip install --no-cache-dir --require-hashes -r requirements/runtime.txt

COPY pyproject.toml README.md LICENSE ./
COPY streams streams
# pip builds the wheel with hatchling, which is not part of the image.
RUN pip install --no-cache-dir --no-deps .

COPY apps apps
COPY schemas schemas

RUN useradd --create-home streams
USER streams

# SIGTERM commits and leaves the group: the container stops within ten seconds.
STOPSIGNAL SIGTERM
ENV STREAMS_LOG_FORMAT=json
ENTRYPOINT ["streams"]
CMD ["run", "apps.log_analysis.topology:app"]
