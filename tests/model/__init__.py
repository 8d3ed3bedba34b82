"""Any order of anything: the kernel equals the plan after each quiet moment."""
