"""The serving REST API: requests -> Desired -> the same plan and executor as everybody else's.

It runs in a process of its own beside the router, which relays to its socket: `process` is that process,
`routes` the one table of what there is and who may call it.
"""
