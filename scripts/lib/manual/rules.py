"""The page netagent-rules(7): the tables that netagent makes, for people who read them with nft."""

from __future__ import annotations

from typing import Final

from manual.roff import Page

# Of each set and map: what an element of it says. A test holds the names to those of the program.
SETS: Final = {
    "frontends": (
        "Address . protocol . port that clients dial : number of its shape. The comment names the Service port, the "
        "counter counts new connections."
    ),
    "nodeports": "Protocol . node port : number of its shape. With comment and counter, as above.",
    "shapes": "Number of a shape : where to go, one of the chains by shape below, or drop.",
    "backends": (
        "Address . protocol . port . list:slot : endpoint. A frontend with n endpoints has the slots 0 to n-1 of "
        "list 0; list 1 are the local endpoints of a Service whose external traffic policy is Local."
    ),
    "nodeport_backends": "Protocol . node port . list:slot : endpoint.",
    "cluster_ips": "Cluster IPs of Services: a port there that is no frontend is refused.",
    "hairpin": "Endpoint . endpoint: a connection of an endpoint that was led to itself is masqueraded.",
    "source_ranges": "Address . protocol . port . range of clients that may dial it.",
    "affinity": (
        "List . client : number of the endpoint that the client keeps, until its time is up. The kernel writes it."
    ),
    "affinity_endpoints": "Number of an endpoint . protocol : endpoint.",
    "affinity_slots": "List . slot : number of the endpoint in that slot.",
    "affinity_ports": "Address . protocol . port : number of the Service port, for those with session affinity.",
    "affinity_nodeports": "Protocol . node port : the same for node ports.",
}
# Of each chain that every table has: what it does.
CHAINS: Final = {
    "prerouting": "Hook prerouting, priority -100: packets from elsewhere and from pods go to services.",
    "output": "Hook output, priority -100: packets of the node itself go to services.",
    "services": (
        "Looks for the frontend: in frontends, else a cluster IP without such a port is refused, else an address of "
        "a ServiceCIDR that no Service has is dropped, else in nodeports, for local addresses that accept node "
        "ports."
    ),
    "to-endpoint": (
        "Translates to the endpoint in the slot that was chosen; to slot 0, should that slot have left in between."
    ),
    "nodeport-to-endpoint": "The same for node ports.",
    "refuse": "A reset for TCP, port unreachable for everything else.",
    "postrouting": (
        "Hook postrouting, priority 100: takes its own number off the packet, and masquerades what is marked or "
        "comes back to itself."
    ),
    "forward": (
        "Hook forward, priority 0: drops TCP packets of endpoints that connection tracking calls INVALID. There "
        "unless netagent.dropInvalid or conntrack.tcpBeLiberal says otherwise."
    ),
}
# Of the name of a chain by shape: what a part of it means.
NAMES: Final = {
    "ranges-": "Sources are checked against source_ranges first; others are dropped.",
    "nodeport-": "The list is under protocol and port alone.",
    "cluster-ip-": "Masquerades clients that are no pods, as for cluster IPs.",
    "external-": "Masquerades everybody.",
    "local-": "External traffic policy Local: clients from outside keep their address, and get local endpoints.",
    "random-3": "A uniform choice of three endpoints; random-3-2: and of two local ones, for clients from outside.",
    "-affinity-600": "A client keeps its endpoint for 600 seconds.",
}
_DESCRIPTION = """
In mode nftables all rules of netagent stand in two tables, `ip netagent` and `ip6 netagent`. The number of rules does
not depend on the number of Services: Services and endpoints are elements of the sets and maps below, and what
Services differ in otherwise is in the name of a chain that all Services of the same shape share. A change is one
transaction of the kernel, for both tables.

Only the first packet of a connection meets these rules; connection tracking translates the others. While netagent is
stopped, the tables stay and serve. What others change in them, netagent undoes.
"""
_IPTABLES = """
In mode iptables the same Services are chains of the tables nat and filter whose names begin with `NETAGENT-`, with
jumps to them from the built-in chains. Frontends are told apart by a tree of chains over their addresses, endpoints
chosen by halving.
"""
_LOOKING = (
    ("The frontends, with new connections so far", "nft list map ip netagent frontends"),
    ("The endpoints of one of them", "nft list map ip netagent backends | grep '10.96.0.10 . tcp . 80 '"),
    ("All of it", "nft list table ip netagent"),
    ("What differs from what should be there", "netagent diff -f cluster.json --node-name NODE"),
    ("Mode iptables", "iptables-save | grep NETAGENT"),
)


def page(*, version: str) -> Page:
    """netagent-rules(7)."""
    written = Page("netagent-rules", 7, purpose="the tables that netagent makes in the kernel", version=version)
    written.heading("DESCRIPTION")
    written.prose(_DESCRIPTION)
    for title, table in (("SETS AND MAPS", SETS), ("CHAINS", CHAINS)):
        written.heading(title)
        for name, text in table.items():
            written.item(name, text)
    written.subheading("Chains by shape")
    written.paragraph("Their names are made of these parts, in this order:")
    for name, text in NAMES.items():
        written.item(name, text)
    written.heading("PACKET MARK AND PRIORITY")
    written.prose("""
A packet that is to be masqueraded carries bit 14 of the packet mark (0x4000, or what masqueradeBit says) from the
serving chain to postrouting, where the bit is taken off. The number of the chosen slot travels in the packet's
priority, list in the upper and slot in the lower half (1:2 is slot 2 of list 1; nft writes 0:0 as none), and is
taken off there, too.
""")
    written.heading("MODE IPTABLES")
    written.prose(_IPTABLES)
    written.heading("LOOKING AT THEM")
    for text, line in _LOOKING:
        written.paragraph(f"{text}:")
        written.verbatim([line])
    written.see_also([("netagent", 8), ("netagent.conf", 5), ("nft", 8), ("iptables-save", 8)])
    return written
