"""Empty or altered files of a federation or a device: each error has the file, a code and a remedy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fedhet.federation.common.errors import EnrollError
from fedhet.federation.device.state import Device
from fedhet.federation.pki.ca import Authority
from fedhet.federation.pki.identity import Identity
from fedhet.federation.server.operator import Federation

NOW = 1_800_000_000.0


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    made = Federation.create(tmp_path_factory.mktemp("home") / "op", "ward", "localhost:9", clock=lambda: NOW)
    made.close()
    return made.folder


def used(folder: Path) -> None:
    """Everything that a server reads of its home."""
    federation = Federation(folder, lambda: NOW)
    authority = federation.authority
    authority.root, authority.issuers(), authority.left(NOW)
    authority.renew_server(NOW)
    authority.server_key()
    authority.crl([], NOW)
    federation.registry.clients()
    federation.close()


@pytest.mark.parametrize("damage", [b"", b"\x00\xff[{ not what it was"], ids=["empty", "altered"])
@pytest.mark.parametrize(
    "name",
    ["ca/ca.json", "ca/root.pem", "ca/issuing.pem", "ca/issuing.key", "ca/server.pem", "policy.yaml", "registry.db"],
)
def test_a_damaged_file_of_a_home_is_named(home: Path, tmp_path: Path, name: str, damage: bytes) -> None:
    shutil.copytree(home, tmp_path / "op")
    used(tmp_path / "op")
    (tmp_path / "op" / name).write_bytes(damage)
    if name == "registry.db" and not damage:  # SQLite takes it for a new one; `audit verify` misses the clients
        return used(tmp_path / "op")
    with pytest.raises(EnrollError) as refused:
        used(tmp_path / "op")
    assert refused.value.code == "E324" and str(tmp_path / "op" / name) in refused.value.detail
    assert not damage or "https://" not in refused.value.detail
    return None


@pytest.mark.parametrize("damage", [b"", b"\x00\xff[{"], ids=["empty", "altered"])
@pytest.mark.parametrize("name", ["client.json", "identity.key", "node.key"])
def test_a_damaged_file_of_a_device_is_named(tmp_path: Path, name: str, damage: bytes) -> None:
    folder = tmp_path / "device"
    folder.mkdir(mode=0o700)
    Identity.create(folder)
    (folder / "client.json").write_text("{}")
    (folder / "client.json").chmod(0o600)
    (folder / name).write_bytes(damage)
    device = Device(folder)
    with pytest.raises(EnrollError) as refused:
        _ = device.about, device.identity
    assert refused.value.code == "E324" and str(folder / name) in refused.value.detail


def test_a_wrong_passphrase_is_none_of_a_files_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedhet.federation.pki import key_encryption

    monkeypatch.setattr(key_encryption, "COST", 4)
    made = Federation.create(tmp_path / "op", "ward", "localhost:9", passphrase="correct horse", clock=lambda: NOW)
    made.close()
    with pytest.raises(EnrollError) as refused:
        Authority.load(tmp_path / "op" / "ca").lock.open("another horse")
    assert refused.value.code == "E323"
