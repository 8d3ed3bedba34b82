"""Session affinity: the numbers that stand for lists and endpoints in the kernel's records.

A Service port with affinity has a *group*: two lists of endpoints, all of them and the local ones (`LOCAL`). The
kernel records for a client and a list the number of an endpoint: list in the upper 16 bits, index in the lower. An
index is not used again while it can be helped, so that the records of an endpoint that left lead nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from netagent.errors import InvariantError
from netagent.model import addresses
from netagent.nftables import slots
from netagent.plan import frontends

# Numbers of groups, above the bit that tells the two lists of a group apart.
_GROUPS = 1 << 15
_INDEXES = 1 << 16
_LOCAL = 1


class EndpointList:
    """The numbered endpoints of one list.

    Owns: the number of every endpoint in the list, and its place (slot). Use: `arrange`, then read `numbers` and
    `slots`. Threading: none.
    """

    def __init__(
        self, number: int, protocol: addresses.Protocol, *, numbers: Mapping[bytes, int], found: Sequence[bytes]
    ) -> None:
        self.number = number
        self.protocol = protocol
        self.numbers: Mapping[bytes, int] = numbers
        self.slots: Sequence[bytes] = found
        self._next = max((value % _INDEXES for value in self.numbers.values()), default=0) % (_INDEXES - 1) + 1

    def arrange(self, endpoints: Sequence[bytes]) -> None:
        """Make `endpoints` the content; those that stay keep number and, where possible, slot."""
        used = set(self.numbers.values())
        numbers = {endpoint: self.numbers[endpoint] for endpoint in endpoints if endpoint in self.numbers}
        for endpoint in endpoints:
            if endpoint not in numbers:
                numbers[endpoint] = self._unused(used)
                used.add(numbers[endpoint])
        self.numbers = numbers
        self.slots = slots.arrange(endpoints, self.slots)

    def _unused(self, used: set[int]) -> int:
        for _ in range(_INDEXES):
            candidate = self.number << 16 | self._next
            # Index 0 is the list itself.
            self._next = self._next % (_INDEXES - 1) + 1
            if candidate not in used:
                return candidate
        raise InvariantError("a list of endpoints with session affinity holds at most 65,535")


class Groups:
    """The affinity groups of one table.

    Owns: which Service port has which group, and which frontends use its lists. Use: `group` for the number, then
    `acquire` a list for a frontend; `release` it afterwards. Threading: none.
    """

    def __init__(self) -> None:
        self._group_of: dict[frontends.ServicePortName, int] = {}
        self._owner_of: dict[int, frontends.ServicePortName] = {}
        self._lists: dict[int, EndpointList] = {}
        self._users: dict[int, set[frontends.FrontendKey]] = {}
        self._next = 1

    def group(self, owner: frontends.ServicePortName, found: int | None = None) -> int:
        """The group of a Service port; a new one has the number `found`, if that is free."""
        number = self._group_of.get(owner)
        if number is None:
            number = found if found and found not in self._owner_of else self._unused()
            self._group_of[owner] = number
            self._owner_of[number] = owner
        return number

    def reserve(self, numbers: Iterator[int]) -> None:
        """Hand out numbers above these first: records with these may still be in the kernel."""
        self._next = max(max(numbers, default=0) % (_GROUPS - 1) + 1, self._next)

    def list_of(self, number: int) -> EndpointList | None:
        """The list of this number. It stays, empty, when its last user goes, as long as its group lives: the
        endpoints that come to it next must not get the numbers of those that left."""
        return self._lists.get(number)

    def acquire(self, endpoint_list: EndpointList, user: frontends.FrontendKey) -> None:
        """Count a frontend as user of a list."""
        self._lists[endpoint_list.number] = endpoint_list
        self._users.setdefault(endpoint_list.number, set()).add(user)

    def release(self, endpoint_list: EndpointList, user: frontends.FrontendKey) -> bool:
        """Forget a user; True when it was the last one: the list is to be emptied."""
        users = self._users[endpoint_list.number]
        users.discard(user)
        if users:
            return False
        del self._users[endpoint_list.number]
        group = endpoint_list.number >> 1
        both = [list_number(group, local=local) for local in (False, True)]
        if not any(number in self._users for number in both):
            for number in both:
                self._lists.pop(number, None)
            del self._group_of[self._owner_of.pop(group)]
        return True

    def _unused(self) -> int:
        for _ in range(_GROUPS):
            candidate = self._next
            self._next = self._next % (_GROUPS - 1) + 1
            if candidate not in self._owner_of:
                return candidate
        raise InvariantError("at most 32,767 Service ports with session affinity fit into one table")


def list_number(group: int, *, local: bool) -> int:
    """Number of a list of a group: the upper half of the numbers of its endpoints."""
    return group << 1 | (_LOCAL if local else 0)
