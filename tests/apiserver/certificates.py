"""Certificates for tests, made by the program openssl."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

AVAILABLE = shutil.which("openssl") is not None


class Authority:
    """A certificate authority in a directory."""

    def __init__(self, directory: Path, name: str = "test-ca") -> None:
        self.directory = directory
        self.certificate = directory / f"{name}.crt"
        self._key = directory / f"{name}.key"
        _openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"),
            *("-subj", f"/CN={name}", "-keyout", str(self._key), "-out", str(self.certificate)),
            *("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"),
        )

    def issue(self, name: str) -> tuple[Path, Path]:
        """Certificate and key for this name; good for 127.0.0.1, too."""
        certificate, key, request = (self.directory / f"{name}.{suffix}" for suffix in ("crt", "key", "csr"))
        extensions = self.directory / f"{name}.ext"
        extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\nkeyUsage=digitalSignature\n")
        _openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}"),
            *("-keyout", str(key), "-out", str(request)),
        )
        _openssl(
            *("x509", "-req", "-days", "2", "-in", str(request), "-CA", str(self.certificate), "-CAkey"),
            *(str(self._key), "-CAcreateserial", "-extfile", str(extensions), "-out", str(certificate)),
        )
        return certificate, key

    def server_context(self, *, clients: bool = False) -> ssl.SSLContext:
        """What a server needs; with `clients` it asks for certificates of this authority."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.issue("server"))
        if clients:
            context.load_verify_locations(self.certificate)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def _openssl(*arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
