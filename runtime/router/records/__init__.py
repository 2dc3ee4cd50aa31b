"""What became of requests: metrics, access log, usage, inference tables, traces."""
