"""`wsi sweep`: settings searched on validation parts, by any number of processes."""
