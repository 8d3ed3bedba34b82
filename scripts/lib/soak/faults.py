"""What goes wrong: a fault every few seconds, chosen at random, each over after a moment."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable

from soak.agent import Agent
from tests.apiserver import ApiServer, faults


class Faults:
    """Does harm. `happen` takes at most some seconds; `counts` says how often each was done.

    The agent is killed only as long as `kills`: what is measured of a process needs one that lives.
    """

    def __init__(self, agent: Agent, server: ApiServer, dice: random.Random) -> None:
        self.counts: Counter[str] = Counter()
        self.kills = True
        self._agent = agent
        self._server = server
        self._dice = dice
        self._all: dict[str, Callable[[], None]] = {
            "flushes of the ruleset": lambda: _nft("flush ruleset"),
            "attempts to delete our table": lambda: _nft("delete table ip netagent"),
            "reloads of iptables-nft": _reload,
            "commits of neighbours": lambda: _nft("add table ip theirs; delete table ip theirs"),
            "SIGHUPs": lambda: self._agent.send(signal.SIGHUP),
            "stops for a second": self._stop,
            "connections to the API server cut": self._server.cut_connections,
            "connections to the API server lost without a word": self._server.lose_connections,
            "API server away for two seconds": self._away,
            "histories compacted": self._compacted,
            "errors 500 for a second": lambda: self._fault(faults.status(500)),
            "answers truncated for a second": lambda: self._fault(faults.truncated()),
            "events twice for a second": lambda: self._fault(faults.duplicated()),
            "kills and restarts": self._kill,
        }

    def happen(self) -> None:
        """One of them."""
        kinds = sorted(kind for kind in self._all if self.kills or kind != "kills and restarts")
        kind = self._dice.choice(kinds)
        self._all[kind]()
        self.counts[kind] += 1

    def _stop(self) -> None:
        self._agent.send(signal.SIGSTOP)
        time.sleep(1)
        self._agent.send(signal.SIGCONT)

    def _kill(self) -> None:
        self._agent.kill()
        time.sleep(self._dice.uniform(0, 1))
        self._agent.start()

    def _away(self) -> None:
        self._server.refuse()
        time.sleep(2)
        self._server.accept()

    def _compacted(self) -> None:
        self._server.compact()
        self._server.cut_connections()

    def _fault(self, fault: faults.Fault) -> None:
        with self._server.fault(fault):
            self._server.cut_connections()
            time.sleep(1)


def _nft(script: str) -> None:
    """What somebody else tries; what the kernel refuses has failed, as it should."""
    subprocess.run(["nft", "-f", "-"], input=script, text=True, capture_output=True, timeout=60, check=False)


def _reload() -> None:
    for table in ("nat", "filter"):
        for flag in ("-F", "-X"):
            subprocess.run(["iptables-nft", "-t", table, flag], capture_output=True, timeout=60, check=False)
