"""A stand-in for NanoMQ: it listens, authenticates and fails open as the real broker does."""
