"""The router as processes: listeners, TLS, workers, handing over, control socket."""
