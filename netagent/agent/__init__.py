"""Wires the stages together: what is dirty is planned, what differs is committed, and it goes on for ever."""
