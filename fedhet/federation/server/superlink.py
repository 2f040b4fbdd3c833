"""Flower's SuperLink behind the TLS proxy: how it is started, and how clients become its nodes.

A process that can connect to it can run programs as its account, so it has no port: it listens on a socket file in a
folder that only its account can enter (fedhet/flower/socket_files.py). A SuperExec, which authenticates with a secret,
starts its ServerApps.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fedhet.federation.common import private_files
from fedhet.federation.common.errors import EnrollError
from fedhet.federation.common.process_supervisor import Program, flower_environment, inherited
from fedhet.federation.pki import certificates, identity
from fedhet.federation.pki.certificates import DAY
from fedhet.federation.server import schema
from fedhet.federation.server.operator import Federation
from fedhet.flower import socket_files

CONNECTION_NAME = "federation"
"""The connection's name in Flower's config.toml."""
COMMAND_S = 120.0
"""Seconds for one `flwr` command."""
ADDRESS = socket_files.address(0)
"""The address under which Flower's programs know the socket file. Nothing listens there, so federations can share
it."""


@dataclass(frozen=True, slots=True)
class SuperLink:
    """A SuperLink's folder, of mode 0700."""

    folder: Path

    @property
    def socket(self) -> Path:
        """The socket file on which it listens."""
        return self.folder.resolve() / "superlink.sock"

    @property
    def root(self) -> Path:
        """The root certificate of its TLS. Flower authenticates nodes by key only over TLS."""
        return self.folder / "loopback-root.pem"

    @property
    def environment(self) -> dict[str, str]:
        """Environment of its processes and of `flwr` commands; with FEDHET_HOME a ServerApp finds the registry."""
        own = {"FEDHET_HOME": str(self.folder.parent.resolve()), **socket_files.environment({ADDRESS: self.socket})}
        return {**flower_environment((self.folder / "home").resolve(), inherited()), **own}

    def prepare(self, now: float) -> None:
        """Create the folder, the loopback certificate, the secret and Flower's config.toml, where they are missing.

        Raises EnrollError E317 if the folder's file system has no socket files.
        """
        for folder in (self.folder, self.folder / "home", self.folder / "logs"):
            private_files.private_folder(folder)
        self._check_socket_file()
        self._ensure_loopback_certificate(now)
        if not (self.folder / "superexec.secret").exists():
            private_files.write_file(self.folder / "superexec.secret", secrets.token_urlsafe(48))
        connection = f'address = "{ADDRESS}"\nroot-certificates = {json.dumps(str(self.root.resolve()))}\n'
        text = f'[superlink]\ndefault = "{CONNECTION_NAME}"\n[superlink.{CONNECTION_NAME}]\n{connection}'
        private_files.write_file(self.folder / "home" / "config.toml", text)

    def programs(self) -> list[Program]:
        """The programs to run: SuperLink and SuperExec."""
        at, environment = self.folder.resolve(), self.environment
        pair = str(at / "loopback.pem")
        secret = ("--superexec-auth-secret-file", str(at / "superexec.secret"))
        host, _, port = ADDRESS.rpartition(":")
        link = ["flower-superlink", "--host", host, "--port", port, "--enable-supernode-auth",
                "--ssl-ca-certfile", str(at / self.root.name), "--ssl-certfile", pair, "--ssl-keyfile", pair,
                "--isolation", "process", *secret, "--database", str(at / "superlink.db"),
                "--disable-runtime-dependency-installation"]  # fmt: skip
        execute = ["flower-superexec", "--runtime-api-address", ADDRESS, "--root-certificates",
                   str(at / self.root.name), *secret]  # fmt: skip
        logs, command = at / "logs", socket_files.command
        return [
            Program("superlink", command(*link), logs / "superlink.log", environment),
            Program("superexec", command(*execute), logs / "superexec.log", environment, 3.0),
        ]

    def register(self, line: str, name: str, known: Collection[str] = ()) -> str:
        """Register a SuperNode's public key (one OpenSSH line) and return its node id.

        If an interrupted call registered the key already, its node is the one whose id is not in `known`. Raises
        EnrollError E308.
        """
        path = self.folder / f"register-{secrets.token_hex(4)}.pub"
        private_files.write_file(path, line + "\n")
        try:
            return str(
                self.flwr("supernode", "register", str(path.resolve()), CONNECTION_NAME, "--name", name)["node-id"]
            )
        except EnrollError as error:
            unknown = {str(row["node-id"]) for row in self.nodes()} - set(known) if "in use" in error.detail else set()
            if len(unknown) != 1:
                raise
            return unknown.pop()
        finally:
            path.unlink()

    def unregister(self, node: str) -> None:
        """Unregister a node, which ends its SuperNode. A node that is not registered is no error. Raises E308."""
        try:
            self.flwr("supernode", "unregister", node, CONNECTION_NAME)
        except EnrollError:
            if node in {str(row.get("node-id")) for row in self.nodes()}:
                raise

    def nodes(self) -> list[Mapping[str, Any]]:
        """The nodes, as `flwr supernode list` reports them. Raises EnrollError E308."""
        return list(self.flwr("supernode", "list", CONNECTION_NAME)["nodes"])

    @classmethod
    def served(cls, home: Path) -> SuperLink:
        """The SuperLink that `fedhet serve` runs for the federation in this folder. Raises EnrollError E306 or E312."""
        if not (home / "registry.db").is_file():
            raise EnrollError("E306", f"{home} contains no federation: see --home and FEDHET_HOME")
        link = cls(home / "flower")
        if not link.listens():
            raise EnrollError(
                "E312", f"nothing listens at {link.socket}" if link.folder.exists() else "it was never started"
            )
        return link

    def listens(self) -> bool:
        """Whether its socket file accepts connections."""
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            probe.connect(socket_files.reachable(self.socket))
            return True
        return False

    def flwr(self, *arguments: str) -> dict[str, Any]:
        """Run a `flwr` command and return its JSON output. Raises EnrollError E308."""
        done, text = self._command(*arguments, "--format", "json"), " ".join(arguments[:2])
        try:
            answer = json.loads(done.stdout[done.stdout.index("{") :])
        except ValueError:
            raise EnrollError("E308", f"flwr {text}: {(done.stdout + done.stderr)[-300:]}") from None
        if done.returncode or not answer.get("success", True):
            raise EnrollError("E308", f"flwr {text}: {str(answer)[-300:]}")
        return dict(answer)

    def text(self, *arguments: str) -> str:
        """Run a `flwr` command and return its standard output. Raises EnrollError E308 if it takes too long."""
        return self._command(*arguments).stdout

    def _command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                socket_files.command("flwr", *arguments), env=self.environment, cwd=self.folder,
                capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=COMMAND_S, check=False,
                start_new_session=True,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            text = " ".join(arguments[:2])
            raise EnrollError("E308", f"flwr {text} did not end within {COMMAND_S:g} s") from None

    def _check_socket_file(self) -> None:
        probe = self.socket.with_name("probe.sock")
        probe.unlink(missing_ok=True)
        try:
            with socket.socket(socket.AF_UNIX) as first:
                first.bind(socket_files.reachable(probe))
        except OSError as error:
            reason = error.strerror or error
            text = f"{probe.parent} cannot contain a socket file ({reason}): choose a --home on a local disk"
            raise EnrollError("E317", text) from None
        probe.unlink()

    def _ensure_loopback_certificate(self, now: float) -> None:
        """Create a certificate for 127.0.0.1 and localhost under a new root, whose key is not stored."""
        pair = self.folder / "loopback.pem"
        if pair.exists():
            certificate = x509.load_pem_x509_certificate(pair.read_bytes())
            if certificate.not_valid_after_utc.timestamp() > now + 30 * DAY:
                return
        top, key = ec.generate_private_key(ec.SECP384R1()), identity.new_tls_key()
        root = certificates.authority("fedhet loopback", top, 400.0, now, 0)
        names = certificates.host_names(["127.0.0.1", "localhost"])
        leaf = certificates.leaf(key.public_key(), names, True, 365.0, now, (root, top))
        private_files.write_file(pair, certificates.text([leaf]) + identity.pem(key))
        private_files.write_file(self.root, certificates.text([root]))


def reconcile(federation: Federation, link: SuperLink) -> list[str]:
    """Register and unregister SuperLink nodes to match the registry; returns a line for each change. Idempotent."""
    done = []
    for node in federation.registry.retired():
        link.unregister(node)
        federation.registry.forget_node(node)
        done.append(f"unregistered {node}, whose key was replaced")
    for client in federation.registry.clients(schema.ACTIVE, schema.SUSPENDED):
        if client.flower_node is None and client.flower_public:
            known = [c.flower_node for c in federation.registry.clients() if c.flower_node is not None]
            node = link.register(client.flower_public, client.name, known)
            if federation.registry.set_flower_node(client.number, node, client.flower_public):
                done.append(f"registered {client.name} as {node}")
            else:  # its keys were replaced meanwhile; the next call registers the new key
                link.unregister(node)
                done.append(f"unregistered {node}, whose key was replaced")
    for client in federation.registry.clients(schema.REVOKED, schema.LEFT):
        if client.flower_node is not None:
            link.unregister(client.flower_node)
            federation.registry.set_flower_node(client.number, None)
            done.append(f"unregistered {client.name}")
    return done
