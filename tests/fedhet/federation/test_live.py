"""A federation with Flower's own processes, from start to end: serve, join, approve, SuperNode online, revoke."""

import contextlib
import importlib.util
import json
import os
import signal
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from fedhet.federation.common.errors import EnrollError
from fedhet.federation.pki import tls
from fedhet.federation.server.operator import Federation
from fedhet.federation.server.superlink import SuperLink

MAIN = "import typer; from fedhet.cli import federation; app = typer.Typer(); federation.mount(app); app()"


found = importlib.util.spec_from_file_location("living", Path(__file__).with_name("living.py"))
living = importlib.util.module_from_spec(found)
found.loader.exec_module(living)
free_port, until = living.free_port, living.until


def nodes(superlink):
    """The nodes' states, as Flower itself tells them."""
    return {str(row["node-id"]): row["status"] for row in superlink.nodes()}


def superlink_died(parent):
    """Kill the SuperLink that this process started, the hard way."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            stat, line = (entry / "stat").read_text(), (entry / "cmdline").read_bytes()
            if int(stat.rpartition(")")[2].split()[1]) == parent and b"flower-superlink" in line:
                found.append(int(entry.name))
    [pid] = found
    os.kill(pid, signal.SIGKILL)


@pytest.mark.transport
@pytest.mark.slow
def test_a_device_joins_works_is_revoked_and_is_gone(tmp_path):
    home, state, port = tmp_path / "op", tmp_path / "dev", free_port()
    environment = {**os.environ, "FEDHET_HOME": str(home), "FEDHET_CLIENT": str(state), "OMP_NUM_THREADS": "1"}
    environment |= {"FEDHET_PASSPHRASE": "correct horse"}

    def command(*words):
        return [sys.executable, "-c", MAIN, *map(str, words)]

    def fedhet(*words, **given):
        done = subprocess.run(command(*words, "--json"), env=environment, capture_output=True, text=True, **given)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    with contextlib.ExitStack() as stack:

        def start(name, *words):
            log = stack.enter_context((tmp_path / f"{name}.log").open("wb"))
            process = subprocess.Popen(command(*words), env=environment, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            return process

        def log(name):
            return (tmp_path / f"{name}.log").read_text()

        fedhet("ca", "init", "--endpoint", f"127.0.0.1:{port}")
        serving = start("serve", "serve", "--host", "127.0.0.1")
        federation, superlink = Federation(home), SuperLink(home / "flower")
        federation.authority.lock.open("correct horse")
        stack.callback(federation.close)
        _, token = federation.invite("st-mary", "silo")
        until(lambda: superlink.listens() or serving.poll() is not None, 40, "the SuperLink")
        assert serving.poll() is None, log("serve")
        told = fedhet("join", "-", "--wait", 0, "--benchmark", 0.1, "--partition", "1/3", input=token.line)
        assert told["state"] == "pending"
        federation.approve("st-mary")
        assert fedhet("client", "poll")["state"] == "active"
        node = until(lambda: federation.registry.client("st-mary").flower_node, 30, "the registration")

        agent = start("agent", "client", "run")
        heard = state / "work" / "supernode.log"  # asking the SuperLink starts a program each time

        def online():
            return heard.is_file() and "online as" in heard.read_text()

        until(lambda: online() or agent.poll() is not None, 40, "the SuperNode")
        assert agent.poll() is None, log("agent")
        assert nodes(superlink)[node] == "online"

        root = (home / "ca" / "root.pem").read_bytes()
        trust, old = tls.trusting(root), tls.trusting(root)
        with httpx.Client(verify=trust, trust_env=False, base_url=f"https://127.0.0.1:{port}") as outside:
            assert outside.get("/health").status_code == 200
            old.maximum_version, old.minimum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"https://127.0.0.1:{port}/health", verify=old, trust_env=False)
            for path in ("/v1/control/list-nodes", "/v1/control/start-run", "/v1/runtime/acquire-task"):
                assert outside.post(path).status_code == 404

        superlink_died(serving.pid)
        until(lambda: "superlink ended with -9" in log("serve"), 20, "the death to be noticed")
        until(superlink.listens, 40, "the SuperLink's second life")
        assert nodes(superlink)[node] == "online"

        fedhet("clients", "revoke", "st-mary", "--reason", "stolen")
        assert agent.wait(30) == EnrollError("E202").exit_code, log("agent")
        assert "stolen" in log("agent")
        until(lambda: federation.registry.client("st-mary").flower_node is None, 30, "the node to be taken away")
        assert node not in nodes(superlink) or nodes(superlink)[node] != "online"

        serving.send_signal(signal.SIGTERM)
        assert serving.wait(30) == 0, log("serve")
        assert not superlink.listens()
        actions = [row["action"] for row in federation.audit.rows()]
        assert sorted(actions) == sorted(["found", "serve", "invite", "enrol", "approve", "profile", "revoke", "stop"])
        federation.audit.check()
        assert token.secret not in log("serve") + log("agent")
