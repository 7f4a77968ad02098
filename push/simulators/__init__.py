"""Simulators of the push providers: real sockets, TLS and HTTP/2, and the providers' rules, for tests and developers.

Nothing of the gateway imports them.
"""
