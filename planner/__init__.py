"""The planner decides and does no I/O: values in, values out. Clock, ids and the world are arguments."""
