"""The rules: every change of what is in transit, as a pure function from documents to documents.

A change that touches two clients is decided by one of them, its *owner*, and then *settled* with the other: the sender
owns which videos there are, the recipient how far each has come. The two are separate compare-and-set writes, the
owner's first. `docs/decisions/0001-two-writes.md` tells why each part is there.

    state.py      what is kept of one client, and its stored form
    policy.py     the numbers that the rules follow
    decisions.py  what a rule answers
    sending.py    what a sender's document decides: upload, delete, drop, the end of an account
    receiving.py  what a recipient's document decides: statuses and acknowledgements
    expiry.py     what time decides
    pairs.py      the second half of every change
    sealing.py    what every new state has in common
    devices.py    which device has learnt what, and when to wake one that has not
"""
