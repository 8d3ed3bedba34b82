"""The behaviour cases (see README.md) and what reads them."""
