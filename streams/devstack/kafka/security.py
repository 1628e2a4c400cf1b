"""The listener of a local Kafka with security: TLS, SCRAM and OAUTHBEARER, and access control lists."""

from __future__ import annotations

import secrets
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from streams.errors import ConfigurationError, LocalKafkaError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

LISTENER = "SECURED"
KEYSTORE = "keystore.p12"
AUTHORITY = "authority.pem"

_MECHANISM = "SCRAM-SHA-512"
_COMMON = "org.apache.kafka.common.security"


@dataclass(frozen=True, slots=True)
class Security:
    """The security of a local Kafka, at a second listener beside the plain one.

    ``users`` are names and passwords for SCRAM-SHA-512; they are set by the first start in a folder.
    OAUTHBEARER accepts unsigned tokens: for tests only. Clients of this listener need rights by access
    control lists, and have none at first. Clients of the plain listener have all rights, e.g. to grant
    rights.
    """

    users: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def format_arguments(self) -> list[str]:
        """The arguments of Kafka's storage tool that create the users."""
        for name, password in self.users.items():
            if not name or set(",=[]'\"") & {*name, *password}:
                raise ConfigurationError(
                    f"the user name {name!r} or its password is not allowed: "
                    "the name must not be empty, and neither may contain any of , = [ ] ' \""
                )
        return [
            argument
            for name, password in self.users.items()
            for argument in ("--add-scram", f"{_MECHANISM}=[name={name},password={password}]")
        ]

    def client_settings(self, user: str | None, folder: Path) -> dict[str, str]:
        """A client's settings for TLS, and for authentication as that user of ``folder``'s cluster."""
        encrypted = {"security.protocol": "SASL_SSL", "ssl.ca.location": str(folder / AUTHORITY)}
        if user is None:
            return encrypted
        if user not in self.users:
            raise ConfigurationError(
                f"this Kafka has no user {user!r}", hint=f"users are: {', '.join(self.users) or 'none'}"
            )
        return {
            **encrypted,
            "sasl.mechanism": _MECHANISM,
            "sasl.username": user,
            "sasl.password": self.users[user],
        }

    def server_properties(self, folder: Path) -> dict[str, str]:
        """The properties of each server for security. ``folder`` is the cluster's, with the certificate."""
        listener = f"listener.name.{LISTENER.lower()}"
        return {
            "listener.security.protocol.map": f"PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,{LISTENER}:SASL_SSL",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
            f"{listener}.sasl.enabled.mechanisms": f"{_MECHANISM},OAUTHBEARER",
            f"{listener}.{_MECHANISM.lower()}.sasl.jaas.config": (
                f"{_COMMON}.scram.ScramLoginModule required;"
            ),
            f"{listener}.oauthbearer.sasl.jaas.config": (
                f"{_COMMON}.oauthbearer.OAuthBearerLoginModule required "
                'unsecuredLoginStringClaim_sub="nobody";'
            ),
            f"{listener}.ssl.keystore.type": "PKCS12",
            # Relative to the server's working folder, which is in the cluster's folder.
            f"{listener}.ssl.keystore.location": f"../{KEYSTORE}",
            f"{listener}.ssl.keystore.password": (folder / KEYSTORE).with_suffix(".password").read_text(),
        }


def make_certificate(java: Path, folder: Path, host: str) -> None:
    """Create a self-signed certificate for ``host`` in ``folder``, unless it exists.

    :raises LocalKafkaError: Java's keytool failed.
    """
    keystore = folder / KEYSTORE
    if (folder / AUTHORITY).exists():
        return
    keystore.unlink(missing_ok=True)
    password = secrets.token_hex(16)
    secret = keystore.with_suffix(".password")
    secret.touch(mode=0o600)
    secret.write_text(password, encoding="ascii")
    store = ["-keystore", str(keystore), "-storetype", "PKCS12", "-storepass:file", str(secret)]
    key = [
        "-keyalg",
        "EC",
        "-groupname",
        "secp256r1",
        "-validity",
        "3650",
        "-dname",
        "CN=streams local Kafka",
    ]
    names = ["-ext", f"SAN=IP:{host},DNS:localhost", "-ext", "BC=ca:true"]
    for command in (
        ["-genkeypair", "-alias", "server", *store, *key, *names],
        ["-exportcert", "-rfc", "-alias", "server", *store, "-file", str(folder / AUTHORITY)],
    ):
        done = subprocess.run(
            [str(java), "-m", "java.base/sun.security.tools.keytool.Main", *command],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise LocalKafkaError(
                f"Java's keytool could not create a certificate: {done.stdout}{done.stderr}"
            )
