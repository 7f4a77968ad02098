"""What the operator's console is told of all processes: see `docs/console.md`.

`Watched` is what each process tells of itself while somebody looks, `Consoles` what a process that serves consoles
hears of all. Between them is the bus, with one topic for each direction.
"""
