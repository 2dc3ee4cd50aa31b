"""The runtime carries plans out and serves traffic: commands, apply, state storage, the router."""
