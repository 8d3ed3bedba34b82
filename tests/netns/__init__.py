"""Real packets: a throw-away node made of network namespaces, and behaviour cases replayed against it.

| module | promise |
|---|---|
| `capability` | why no such node can be made here, as a sentence for pytest.skip; "" when it can |
| `layout` | which addresses and ports a case needs, and where each of them lives; pure |
| `universe` | namespaces, links and routes of one node under test and of everything around it |
| `servers` | every endpoint answers "who am I, whom do I see", in all namespaces at once |
| `clients` | one connection attempt with real packets, and what became of it |
| `sctp` | SCTP INIT chunks and ICMP echo requests, made and read without kernel support |
| `verdicts` | an expectation of a case against what happened, as sentences; pure |
| `flowtable` | conntrack entries of the node: planted, listed |
| `support` | which cases can be replayed here, and why not the others; pure |
| `planes` | data planes to replay against: the contract, one command a step, a running agent, none at all |
| `replay` | a case from its first step to its last, all failures in one AssertionError |

Nothing here touches the network namespace it was started in; root is not needed inside `unshare -rn`.
"""
