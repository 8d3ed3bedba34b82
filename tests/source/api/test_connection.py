"""The door to the API server: who we are, how that follows its files, and what is loaded for it."""

from __future__ import annotations

import base64
import gc
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from urllib3.connection import HTTPConnection

from netagent.errors import ConfigError
from netagent.source.api.connection import Connection
from netagent.source.api.credentials import Access
from netagent.source.api.exchange import Request, SilenceError, TransportError
from tests import builders
from tests.apiserver import ApiServer, certificates, faults
from tests.patience import AN_HOUR, HANGS
from tests.source.api.following import Following

LIST = Request(path="/api/v1/services", parameters=(("limit", "1"),), silence_seconds=AN_HOUR)
WATCH = Request(
    path="/api/v1/services", parameters=(("watch", "1"), ("resourceVersion", "9999")), silence_seconds=AN_HOUR
)

needs_openssl = pytest.mark.skipif(not certificates.AVAILABLE, reason="needs the program openssl")


def kubeconfig(path: Path, server: str, *, cluster: dict[str, Any] | None = None, **user: Any) -> str:
    """Write a kubeconfig, as others do it: aside and renamed."""
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "one",
        "contexts": [
            {"name": "one", "context": {"cluster": "one", "user": "one"}},
            {"name": "nobody", "context": {"cluster": "one", "user": ""}},
        ],
        "clusters": [{"name": "one", "cluster": {"server": server} | (cluster or {})}],
        "users": [{"name": "one", "user": user}],
    }
    aside = path.with_suffix(".new")
    aside.write_text(yaml.safe_dump(content))
    aside.rename(path)
    return str(path)


def ask(connection: Connection, request: Request = LIST) -> int:
    answer = connection.get(request)
    while answer.read():
        pass
    answer.close()
    return answer.status


# --- who we are ---------------------------------------------------------------------------------------------------


def test_a_token_in_a_kubeconfig(server: ApiServer, tmp_path: Path) -> None:
    server.tokens = {"secret"}
    path = kubeconfig(tmp_path / "config", server.url, token="secret")
    with Connection(Access(kubeconfig=path)) as connection:
        assert ask(connection) == 200
    with Connection(Access(kubeconfig=path, context="nobody")) as connection:
        assert ask(connection) == 401


def test_a_token_file_that_is_rotated_is_read_again(server: ApiServer, tmp_path: Path) -> None:
    """As kubeadm sets up kube-proxy: a kubeconfig that names the service account's token."""
    server.tokens = {"old"}
    token = tmp_path / "token"
    token.write_text("old")
    path = kubeconfig(tmp_path / "config", server.url, tokenFile="token")
    with Connection(Access(kubeconfig=path)) as connection:
        assert ask(connection) == 200
        server.tokens = {"new"}
        assert ask(connection) == 401
        (tmp_path / "next").write_text("new")
        (tmp_path / "next").rename(token)
        assert ask(connection) == 200


def test_a_kubeconfig_that_is_replaced_is_read_again(server: ApiServer, tmp_path: Path) -> None:
    server.tokens = {"secret"}
    path = kubeconfig(tmp_path / "config", "http://127.0.0.1:1", token="secret")
    with Connection(Access(kubeconfig=path)) as connection:
        with pytest.raises(TransportError, match=r"no answer from http://127\.0\.0\.1:1: .*refused"):
            ask(connection)
        kubeconfig(Path(path), server.url, token="secret")
        assert ask(connection) == 200


@pytest.mark.parametrize("content", ["", "{", "apiVersion: v1\nkind: Conf", "current-context: [", "[]", "clusters: 3"])
def test_a_half_written_kubeconfig_leaves_the_last_one_in_use(
    content: str, server: ApiServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = kubeconfig(tmp_path / "config", server.url, token="secret")
    with Connection(Access(kubeconfig=path)) as connection:
        assert ask(connection) == 200
        Path(path).write_text(content)
        assert ask(connection) == 200
        assert ask(connection) == 200
        os.unlink(path)
        assert ask(connection) == 200
    warnings = [record for record in caplog.records if "going on with what was last read" in record.getMessage()]
    assert 1 <= len(warnings) <= 2


def test_without_any_configuration_the_operator_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot use the kubeconfig /nowhere/config"):
        Connection(Access(kubeconfig="/nowhere/config"))
    with pytest.raises(ConfigError, match=r"service account of this pod .no kubeconfig was given.: Service host/port"):
        Connection(Access(service_account=str(tmp_path), environment={}))


def test_an_exec_plugin(server: ApiServer, tmp_path: Path) -> None:
    server.tokens = {"from plugin 2"}
    plugin = tmp_path / "plugin"
    credential = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {}}
    script = f"""#!{sys.executable}
import json, pathlib
counter = pathlib.Path({str(tmp_path / "count")!r})
count = int(counter.read_text()) + 1 if counter.exists() else 1
counter.write_text(str(count))
print(json.dumps({credential!r} | {{"status": {{"token": f"from plugin {{count}}"}}}}))
"""
    plugin.write_text(script)
    plugin.chmod(0o755)
    made = {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin)}
    path = kubeconfig(tmp_path / "config", server.url, exec=made)
    with Connection(Access(kubeconfig=path)) as connection:
        assert ask(connection) == 401
        assert ask(connection) == 401  # a token is used until it is refused or expires
        assert ask(connection, Request(path=LIST.path, silence_seconds=AN_HOUR, fresh_credentials=True)) == 200


def test_in_a_pod(server: ApiServer, tmp_path: Path) -> None:
    """The override of the address replaces the scheme, too: the test server speaks plain HTTP here."""
    (tmp_path / "token").write_text("old")
    (tmp_path / "ca.crt").write_text("unused")
    environment = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
    access = Access(service_account=str(tmp_path), environment=environment)
    assert Connection(access).server == "https://[fd00::1]:443"
    server.tokens = {"old"}
    access = Access(service_account=str(tmp_path), environment=environment, server=server.url)
    assert Connection(access).server == server.url


@needs_openssl
def test_in_a_pod_with_a_token_that_is_rotated(tmp_path: Path) -> None:
    authority = certificates.Authority(tmp_path)
    (tmp_path / "token").write_text("old")
    (tmp_path / "ca.crt").write_text(authority.certificate.read_text())
    with ApiServer(tls=authority.server_context()) as server:
        server.tokens = {"old"}
        environment = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(server.port)}
        with Connection(Access(service_account=str(tmp_path), environment=environment)) as connection:
            assert ask(connection) == 200
            server.tokens = {"new"}
            (tmp_path / "token").write_text("newer")
            assert ask(connection) == 401
            (tmp_path / "token").write_text("new")
            assert ask(connection) == 200


@needs_openssl
def test_client_certificates_inline_and_as_files_that_are_rotated(tmp_path: Path) -> None:
    authority = certificates.Authority(tmp_path)
    certificate, key = authority.issue("node")
    with ApiServer(tls=authority.server_context(clients=True)) as server:
        path = kubeconfig(
            tmp_path / "config",
            server.url,
            cluster={"certificate-authority-data": _base64(authority.certificate)},
            **{"client-certificate-data": _base64(certificate), "client-key-data": _base64(key)},
        )
        inline = tmp_path / "inline"
        with Connection(Access(kubeconfig=path, temporary_directory=str(inline))) as connection:
            assert ask(connection) == 200
            assert {entry.stat().st_mode & 0o777 for entry in inline.iterdir()} == {0o600}
        path = kubeconfig(
            tmp_path / "config",
            server.url,
            cluster={"certificate-authority": authority.certificate.name},
            **{"client-certificate": certificate.name, "client-key": key.name},
        )
        with Connection(Access(kubeconfig=path)) as connection:
            assert ask(connection) == 200
            stranger = certificates.Authority(_made(tmp_path / "stranger")).issue("node")
            for new, old in zip(stranger, (certificate, key), strict=True):
                old.write_text(new.read_text())
            with pytest.raises(TransportError):
                ask(connection)
            authority.issue("node")
            assert ask(connection) == 200


@needs_openssl
def test_a_server_of_an_unknown_authority_is_not_trusted(tmp_path: Path) -> None:
    authority = certificates.Authority(tmp_path)
    stranger = certificates.Authority(_made(tmp_path / "stranger"))
    ca = tmp_path / "ca.crt"
    ca.write_text(authority.certificate.read_text())
    with ApiServer(tls=stranger.server_context()) as server:
        path = kubeconfig(tmp_path / "config", server.url, cluster={"certificate-authority": str(ca)}, token="secret")
        with Connection(Access(kubeconfig=path)) as connection:
            with pytest.raises(TransportError, match="CERTIFICATE_VERIFY_FAILED"):
                ask(connection)
            assert server.requests() == []
            ca.write_text(stranger.certificate.read_text())  # the authority was rotated
            assert ask(connection) == 200


@needs_openssl
def test_the_whole_source_over_tls_and_its_end(tmp_path: Path) -> None:
    authority = certificates.Authority(tmp_path)
    with ApiServer(tls=authority.server_context(), bookmark_seconds=0.2) as server:
        server.tokens = {"secret"}
        path = kubeconfig(
            tmp_path / "config", server.url, cluster={"certificate-authority": "test-ca.crt"}, token="secret"
        )
        with Following(server, access=Access(kubeconfig=path)) as following:
            following.until_calm()
            server.tokens = {"other"}
            server.cut_connections()
            following.until(lambda: sum("401" in error for error in following.errors()) == 4)
            assert "reloading the credentials" in following.errors()[0]
            kubeconfig(Path(path), server.url, cluster={"certificate-authority": "test-ca.crt"}, token="other")
            following.until_calm()
            assert following.source.stop()  # though nobody says anything for an hour


# --- exchanges ----------------------------------------------------------------------------------------------------


def test_the_selectors_reach_the_server_as_they_are(server: ApiServer) -> None:
    request = Request(
        path=LIST.path, parameters=(("labelSelector", "!a.b/c"), ("fieldSelector", "x!=None")), silence_seconds=AN_HOUR
    )
    with Connection(Access(server=server.url)) as connection:
        ask(connection, request)
    (seen,) = server.requests()
    assert seen.parameters == dict(request.parameters)
    assert seen.headers["accept-encoding"] == "identity"
    assert seen.headers["user-agent"].startswith("netagent/")


def test_silence_is_an_error(server: ApiServer) -> None:
    server.fault(faults.half_open())
    request = Request(path=LIST.path, silence_seconds=0.3)  # the server would say nothing for ever
    with Connection(Access(server=server.url)) as connection, pytest.raises(TransportError, match="timed out"):
        ask(connection, request)


def test_silence_in_the_middle_is_told_apart(server: ApiServer) -> None:
    request = Request(path=WATCH.path, parameters=WATCH.parameters, silence_seconds=0.3)
    with Connection(Access(server=server.url)) as connection:
        answer = connection.get(request)
        with pytest.raises(SilenceError, match="timed out"):
            answer.read()
        answer.close()
        server.cut_connections()
        answer = connection.get(request)
        server.cut_connections()
        with pytest.raises(TransportError) as caught:
            answer.read()
        assert not isinstance(caught.value, SilenceError)


@pytest.mark.parametrize("fresh", [False, True])
def test_a_fresh_connection_is_none_that_is_open_already(server: ApiServer, fresh: bool) -> None:
    request = Request(path=LIST.path, silence_seconds=HANGS if fresh else 0.5, fresh_connection=fresh)
    with Connection(Access(server=server.url)) as connection:
        assert ask(connection) == 200
        server.lose_connections()
        if fresh:
            assert ask(connection, request) == 200
        else:
            with pytest.raises(TransportError, match="timed out"):
                ask(connection, request)


def test_who_reads_can_be_interrupted_from_elsewhere(server: ApiServer) -> None:
    with Connection(Access(server=server.url)) as connection:
        answer = connection.get(WATCH)
        other = connection.get(WATCH)
        threading.Timer(0.1, answer.interrupt).start()
        with pytest.raises(TransportError) as caught:
            answer.read()  # nothing would come for an hour
        assert not isinstance(caught.value, SilenceError)
        answer.close()
        answer.interrupt()  # harmless
        server.apply(builders.service_manifest("new"))
        server.delete("Service", "new")
        other.close()
        assert ask(connection) == 200


def test_a_truncated_body_is_an_error(server: ApiServer) -> None:
    server.fault(faults.cut(after_bytes=20))
    with Connection(Access(server=server.url)) as connection, pytest.raises(TransportError, match="broke off"):
        ask(connection)


def test_a_redirection_is_not_followed(server: ApiServer) -> None:
    """Our token is for this server only."""
    server.fault(faults.status(302))
    with Connection(Access(server=server.url)) as connection:
        assert ask(connection) == 302


def test_abort_wakes_who_waits_and_refuses_what_comes(server: ApiServer) -> None:
    connection = Connection(Access(server=server.url))
    answer = connection.get(WATCH)
    broken: list[Exception] = []

    def read() -> None:
        try:
            while answer.read():
                pass
        except TransportError as error:
            broken.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    time.sleep(0.1)  # it reads by then, or will
    connection.abort()
    thread.join(HANGS)
    assert not thread.is_alive()
    with pytest.raises(TransportError, match="stopped"):
        connection.get(LIST)


# --- what is loaded -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("configured", ["pod", "kubeconfig"])
def test_the_generated_models_and_what_comes_with_them_are_not_loaded(configured: str, tmp_path: Path) -> None:
    path = kubeconfig(tmp_path / "config", "http://127.0.0.1:1", token="secret")
    (tmp_path / "token").write_text("token")
    (tmp_path / "ca.crt").write_text("unused")
    program = f"""
import json, sys
from netagent.source.api import connection, credentials
if {configured == "pod"}:
    environment = {{"KUBERNETES_SERVICE_HOST": "a", "KUBERNETES_SERVICE_PORT": "1"}}
    connection.Connection(credentials.Access(service_account={str(tmp_path)!r}, environment=environment))
else:
    connection.Connection(credentials.Access(kubeconfig={path!r}))
loaded = sorted(sys.modules)
import kubernetes.client
assert kubernetes.client.V1Service and kubernetes.client.ApiClient
print(json.dumps(loaded))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    unwanted = {"kubernetes.client.models", "pydantic", "requests", "aiohttp", "oauthlib", "jsonschema", "dateutil"}
    assert unwanted & loaded == set()
    assert "urllib3" in loaded


def test_a_kubeconfig_with_an_auth_provider_gets_the_whole_package(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path / "config", "http://127.0.0.1:1", **{"auth-provider": {"name": "oidc"}})
    program = f"""
import sys
from netagent.source.api import connection, credentials
connection.Connection(credentials.Access(kubeconfig={path!r}))
assert "requests_oauthlib" in sys.modules
assert sys.modules["kubernetes.config.kube_config"].ApiClient is not None
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_what_fails_again_and_again_leaves_nothing_for_the_collector(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        threading.Thread(target=_hang_up_on, args=(listening, 11), daemon=True).start()
        with Connection(Access(server=f"{scheme}://127.0.0.1:{port}")) as connection:
            assert _failure(connection)
            gc.disable()
            try:
                before = _connections_in_memory()
                for _ in range(10):
                    assert _failure(connection)
                assert _connections_in_memory() < before + 5  # of which other threads may make some
            finally:
                gc.enable()


def test_messages_do_not_tell_the_password_of_an_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with Connection(Access(server=f"https://admin:secret@127.0.0.1:{port}")) as connection:
        assert _failure(connection).startswith(f"no answer from https://127.0.0.1:{port}: ")


def _failure(connection: Connection) -> str:
    """What a request ends with. Not by pytest.raises, whose own notes are work for the collector."""
    try:
        connection.get(Request(path="/api/v1/nodes", silence_seconds=HANGS))
    except TransportError as error:
        return str(error)
    return ""


def _connections_in_memory() -> int:
    return sum(isinstance(item, HTTPConnection) for item in gc.get_objects())


def _hang_up_on(listening: socket.socket, times: int) -> None:
    for _ in range(times):
        accepted, _ = listening.accept()
        accepted.close()
