"""Providers touch the world: one file per kind of world, all behind `protocol.Provider`."""
