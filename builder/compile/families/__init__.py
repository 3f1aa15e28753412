"""Model families: one file each with its shapes, weight names and graph; `blocks.py` holds what they share."""
