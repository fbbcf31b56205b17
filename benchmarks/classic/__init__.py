"""The classic MIL sets and bags of digits: what the aggregators do where others have been."""
