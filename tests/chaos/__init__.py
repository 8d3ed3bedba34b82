"""Drills: what a host does to netagent on a bad day, provoked here in namespaces of their own. See docs/chaos.md."""
