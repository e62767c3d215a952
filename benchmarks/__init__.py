"""Speed and memory, as ratios to floors measured in the same run: `make bench`."""
