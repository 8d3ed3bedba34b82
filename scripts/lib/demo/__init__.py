"""The demo: a throw-away node in network namespaces, `netagent run` on it, and real connections through it.

    __main__   sets the stage, plays the acts, says how it ended
    acts       what is tried, and what must come of it
    cluster    what the manifests say: Services, pods, and how to scale one
    universe   nodes, pods and links as network namespaces
    pods       the servers: each answers with its pod's name
    clients    bursts of connections, a steady stream of them, and connections that are kept
    agent      the netagent process
    report     the table, and what was not as expected

Run it with scripts/demo, which gives it network and mount namespaces of its own.
"""
