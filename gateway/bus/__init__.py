"""Publishing a packet to whoever is connected, wherever: `bus` is the contract."""
