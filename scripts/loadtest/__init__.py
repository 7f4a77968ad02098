"""The load test: phones on the client's core, many to a process, and what they see of a gateway."""
