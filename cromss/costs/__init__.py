"""What a run costs: work counted, hardware looked up or measured, hours and money derived. Torch and settings; no cluster."""
