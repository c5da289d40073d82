"""Generated items for guards."""
