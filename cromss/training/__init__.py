"""The training loop and what judges it. No Ray here."""
