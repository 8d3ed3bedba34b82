"""An API server for tests: list and watch of the kinds that a proxy needs, over real HTTP, with faults on demand.

`Cluster` holds the objects and their history, `ApiServer` serves them, `faults` goes wrong. As a process:
`python -m tests.apiserver --help`.
"""

from tests.apiserver.cluster import Cluster, Snapshot
from tests.apiserver.faults import Fault
from tests.apiserver.server import ApiServer

__all__ = ["ApiServer", "Cluster", "Fault", "Snapshot"]
