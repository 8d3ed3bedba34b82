"""Connections from loopback addresses to elsewhere, which the kernel has to be told to route."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

ROUTE_LOCALNET: Final = Path("/proc/sys/net/ipv4/conf/all/route_localnet")


def route() -> bool:
    """Have the kernel route packets with loopback addresses, in this network namespace; False, and a line in the log,
    if we may not. Without it a node port on 127.0.0.1 does not answer."""
    try:
        if ROUTE_LOCALNET.read_text().strip() != "1":
            ROUTE_LOCALNET.write_text("1\n")
            log.info("node ports answer on 127.0.0.1", extra={"set": "net.ipv4.conf.all.route_localnet=1"})
    except OSError as error:
        log.warning(
            "node ports do not answer on 127.0.0.1: net.ipv4.conf.all.route_localnet cannot be set to 1",
            extra={"reason": str(error.strerror)},
        )
        return False
    return True
