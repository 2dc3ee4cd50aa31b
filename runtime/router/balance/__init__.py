"""Which entity by the split, which replica by load, and which of them is well."""
