"""All drills. Importing this package registers them in `framework.DRILLS`."""

from tests.chaos.drills import churn, company, edits, kills, limits, models, pauses, storms
from tests.chaos.framework import DRILLS

__all__ = ["DRILLS", "churn", "company", "edits", "kills", "limits", "models", "pauses", "storms"]
