"""`wsi study`: objectives or aggregators compared on the same splits, seeds and bags per step."""
