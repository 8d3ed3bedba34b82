"""The agent's local socket: what it answers to the people of its host, and how a command asks it."""
