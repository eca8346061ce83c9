"""What notebooks and scripts call: `cromss.open_store`, `cromss.load_encoder`; see `cromss/__init__.py`."""
