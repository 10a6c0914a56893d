"""Floor 4: bringing versions into service and out of it."""
