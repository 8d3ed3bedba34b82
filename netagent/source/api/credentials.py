"""Where the API server is and who we are to it: kubeconfig or service account, followed as the files change."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import msgspec

from netagent.errors import ConfigError
from netagent.source.api import client_package

# Keys of a kubeconfig whose values are files, relative to its directory.
_FILE_KEYS = ("tokenFile", "certificate-authority", "client-certificate", "client-key")
_SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach the API server.

    With neither `kubeconfig` nor `server`: as the pod that we are (KUBERNETES_SERVICE_HOST and _PORT name the server,
    the service account's files say who we are). `kubeconfig` may be several paths, joined by ":". `server` replaces the
    address that either names; alone it is used without credentials (kubectl proxy). `temporary_directory` takes the
    certificates that a kubeconfig holds inline.
    """

    kubeconfig: str = ""
    context: str | None = None
    server: str | None = None
    service_account: str = _SERVICE_ACCOUNT
    temporary_directory: str | None = None
    environment: Mapping[str, str] | None = None


class Credentials:
    """The client configuration of `kubernetes`, as the files say now.

    Owns: that configuration, and how its files looked when it was read.
    Use: `refresh` before a request; then `authorization()` and `configuration`.
    Goals: a rotated token, certificate or CA and a replaced kubeconfig are in use with the next request; files that
    are half-written or gone for a moment leave the last good ones in use.
    Threading: none; the caller locks.
    """

    def __init__(self, access: Access) -> None:
        """ConfigError when there is no usable configuration."""
        self._access = access
        self._package: client_package.ClientPackage | None = None
        self._stamps: Mapping[str, object] = {}
        self.configuration: Any = None
        self.refresh(fresh=True)

    @property
    def package(self) -> client_package.ClientPackage:
        """What was imported of `kubernetes`."""
        assert self._package is not None
        return self._package

    def refresh(self, *, fresh: bool = False) -> bool:
        """Read the files again if they changed, with `fresh` in any case. True when the configuration is a new one.

        ConfigError when they cannot be used; the last configuration stays.
        """
        if not fresh and {path: _stamp(path) for path in self._stamps} == self._stamps:
            return False
        files = self._files()
        stamps = {path: _stamp(path) for path in files}  # before reading, so that a change meanwhile is seen later
        configuration = self._read(files)
        for path in (configuration.ssl_ca_cert, configuration.cert_file, configuration.key_file):
            if path:
                stamps.setdefault(path, _stamp(path))
        self.configuration, self._stamps = configuration, stamps
        return True

    def authorization(self) -> str | None:
        """The value of the header Authorization; runs an exec plugin whose token is about to expire."""
        setting = self.configuration.auth_settings().get("BearerToken")
        return setting["value"] if setting else None

    # --- reading -----------------------------------------------------------------------------------------------

    def _files(self) -> list[str]:
        access = self._access
        if access.kubeconfig:
            paths = [os.path.expanduser(path) for path in access.kubeconfig.split(":") if path]
            return [*paths, *(reference for path in paths for reference in _references(path))]
        if access.server:
            return []
        return [f"{access.service_account}/token", f"{access.service_account}/ca.crt"]

    def _read(self, files: list[str]) -> Any:
        access = self._access
        whole = bool(access.kubeconfig) and any(_names_auth_provider(path) for path in files)
        if self._package is None or whole:
            self._package = client_package.load(kubeconfig=bool(access.kubeconfig), whole=whole)
        package = self._package
        configuration = package.Configuration()
        # The loader knows its own error, but indexes into YAML as if it were always of the right shape, too.
        errors: tuple[type[Exception], ...] = (
            package.ConfigException,
            OSError,
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
        )
        try:
            if access.kubeconfig:
                import yaml

                errors = (*errors, yaml.YAMLError)
                package.kube_config.load_kube_config(
                    access.kubeconfig,
                    access.context,
                    configuration,
                    persist_config=False,
                    temp_file_path=access.temporary_directory,
                )
            elif not access.server:
                package.incluster_config.InClusterConfigLoader(
                    token_filename=files[0],
                    cert_filename=files[1],
                    environ=os.environ if access.environment is None else access.environment,
                ).load_and_set(configuration)
        except errors as error:
            raise ConfigError(f"cannot use {self._name()}: {' '.join(str(error).split())}") from error
        if access.server:
            configuration.host = access.server
        return configuration

    def _name(self) -> str:
        if self._access.kubeconfig:
            return f"the kubeconfig {self._access.kubeconfig}"
        return "the service account of this pod (no kubeconfig was given)"


def _stamp(path: str) -> object:
    """What differs when a file was replaced or written to; None when it is not there. Follows symlinks (`..data`)."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def _references(path: str) -> list[str]:
    """The files that a kubeconfig names; none when it cannot be read, of which the loader then complains."""
    import yaml

    try:
        with open(path, "rb") as file:
            content = yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, yaml.YAMLError, ValueError):
        return []
    found = []
    for section, noun in (("users", "user"), ("clusters", "cluster")):
        entries = content.get(section) if isinstance(content, dict) else None
        for entry in entries if isinstance(entries, list) else ():
            fields = entry.get(noun) if isinstance(entry, dict) else None
            if isinstance(fields, dict):
                found += [str(fields[key]) for key in _FILE_KEYS if fields.get(key)]
    return [os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(path)), name)) for name in found]


def _names_auth_provider(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return b"auth-provider" in file.read(1 << 20)
    except OSError:
        return False
