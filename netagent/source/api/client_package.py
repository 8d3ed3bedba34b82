"""The parts of the package `kubernetes` that we use, without the rest of it.

Its `__init__` imports everything (dynamic client, watch, stream, informer, and through them jsonschema and the like),
and its loader of kubeconfig files imports the generic client and two OAuth libraries for what the least of all nodes
use. Measured with kubernetes 37.0.2 on top of an agent of 22 MB:

| imported | seconds | MB |
|---|---|---|
| `import kubernetes.config`, and `client.rest` for the transport | 0.28 | 26 |
| the same modules without the package's `__init__` | 0.18 | 22 |
| as here, in a pod (`incluster_config`, `rest`) | 0.04 | 5 |
| as here, with a kubeconfig (`kube_config`, `rest`) | 0.06 | 6 |
| of which urllib3, the transport of that package | 0.04 | 4 |

How: while the modules are imported, empty packages stand in `sys.modules` where those `__init__`s would be; afterwards
the interpreter knows of none of them, so that `import kubernetes` elsewhere would find the package as it is. A
kubeconfig that names an auth-provider (OIDC) needs what is left out; it gets the whole package. So does a version of
the package that cannot be taken apart like this.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import logging
import sys
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from netagent.errors import ConfigError

log = logging.getLogger(__name__)

# Packages of which only modules are wanted, not what their __init__ imports.
_HOLLOW = ("kubernetes", "kubernetes.client", "kubernetes.config", "kubernetes.utils")
# Modules that are only for OIDC, and the name that is imported from them.
_OAUTH = {"oauthlib": None, "oauthlib.oauth2": None, "requests_oauthlib": "OAuth2Session"}

_importing = threading.Lock()


class ClientPackage(NamedTuple):
    """What we use of `kubernetes`: names are its own; `kube_config` and `incluster_config` are modules."""

    Configuration: Any
    RESTClientObject: Any
    ConfigException: Any
    incluster_config: Any
    kube_config: Any  # None unless asked for


def load(*, kubeconfig: bool, whole: bool = False) -> ClientPackage:
    """Import what is needed, with `whole` all of it. ConfigError when the package is not installed."""
    with _importing:
        if importlib.util.find_spec("kubernetes") is None:
            raise ConfigError("the Python package 'kubernetes' is not installed")
        if not whole:
            try:
                with _hollow_packages():
                    return _import(kubeconfig=kubeconfig)
            except (ImportError, AttributeError) as error:
                log.debug("importing the whole package kubernetes", extra={"reason": str(error)})
        return _import(kubeconfig=kubeconfig)


def _import(*, kubeconfig: bool) -> ClientPackage:
    from kubernetes.client import configuration

    client = sys.modules["kubernetes.client"]
    if client.__spec__ is not None and client.__spec__.loader is None:
        # What config/*.py import from the package; ApiClient is called for OIDC alone.
        client.__dict__.update(Configuration=configuration.Configuration, ApiClient=None)
    from kubernetes.client import rest
    from kubernetes.config import config_exception, incluster_config

    kube_config: Any = None
    if kubeconfig:
        kube_config = importlib.import_module("kubernetes.config.kube_config")
    return ClientPackage(
        configuration.Configuration,
        rest.RESTClientObject,
        config_exception.ConfigException,
        incluster_config,
        kube_config,
    )


@contextmanager
def _hollow_packages() -> Iterator[None]:
    """Within this, `kubernetes` and its packages have modules and no contents; afterwards all is as it was before."""
    names = (*_HOLLOW, *_OAUTH)
    before = {name: module for name, module in sys.modules.items() if _is_ours(name)}
    for name in before:
        del sys.modules[name]
    try:
        spec = importlib.util.find_spec("kubernetes")
        roots = list((spec and spec.submodule_search_locations) or ())
        for name in names:
            hollow = types.ModuleType(name)
            hollow.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
            if name in _HOLLOW:
                hollow.__path__ = ["/".join((root, *name.split(".")[1:])) for root in roots]
            if member := _OAUTH.get(name):
                setattr(hollow, member, None)
            sys.modules[name] = hollow
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, hollow)
        yield
    finally:
        for name in [name for name in sys.modules if _is_ours(name)]:
            del sys.modules[name]
        sys.modules.update(before)


def _is_ours(name: str) -> bool:
    return name in _OAUTH or name == "kubernetes" or name.startswith("kubernetes.")
